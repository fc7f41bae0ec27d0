"""A chat server in this process, for what asks one over HTTP."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@contextmanager
def chat_server(answer: Callable[[Sequence[Any]], str]) -> Iterator[str]:
    """The address of a server that answers conversations, OpenAI's messages, so."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

        def reply(self, body):
            said = json.dumps(body).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def do_GET(self):
            self.reply({"data": [{"id": "chat"}]})

        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))["messages"]
            self.reply({"choices": [{"message": {"content": answer(asked)}, "finish_reason": "stop"}]})

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
