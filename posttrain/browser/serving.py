"""Pages served on loopback, to a browser of this machine."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TypeAlias

Pages: TypeAlias = Callable[[str], tuple[str, bytes] | None]  # a path with its query -> content type and body


class PageServer:
    """Serves what `pages` gives on a free port of 127.0.0.1, until it is closed; what is None is not found."""

    def __init__(self, pages: Pages):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                found = pages(self.path)
                kind, body = found or ("text/plain", b"not found")
                self.send_response(200 if found else 404)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None: ...

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None: ...  # the browser hung up

        self.server = Server(("127.0.0.1", 0), Handler)
        self.origin = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, name="pages", daemon=True).start()

    def __enter__(self) -> PageServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
