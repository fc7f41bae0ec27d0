"""A model that scores, behind a port: a reward model, a Q model, a predictor.

    GET  /about        {"kind": "reward model", "model": "runs/rm/model", "operations": ["scores"]}
    POST /OPERATION    JSON -> {"result": [...]}, one item for each that was sent, or {"error": "..."}

One thread owns the model and answers one request after another. As long as items are finished, be they of other
requests, a client that waits is sent blanks, which JSON ignores: its read timeout measures progress and not patience.
Only the standard library is needed, because a run on several ranks starts this for itself.
"""

from __future__ import annotations

import hmac
import importlib
import json
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

if TYPE_CHECKING:
    from posttrain.sampler.scorer import Connection

Model = TypeVar("Model")
Operation: TypeAlias = Callable[[Any], Iterator[Any]]  # JSON to the JSON of one item after another
BEAT_S = 1.0  # between looks at what has been finished
LARGEST = 2**28  # bytes of a request


@dataclass(frozen=True, slots=True)
class Kind(Generic[Model]):
    """A kind of model that runs in this process, in a process of its own, or behind a user's address."""

    name: str  # for a person: "reward model"
    where: str  # "module:NAME", by which another process imports this
    load: Callable[..., Model]  # load(name, device=..., **options): in this process
    about: Callable[[Any], Mapping[str, Any]]  # of a loaded model: what a client must know of it
    operations: Callable[[Any], Mapping[str, Operation]]  # of a loaded model
    client: Callable[[Connection], Model]  # what has the model's interface, and asks it elsewhere


def kind_at(where: str) -> Kind[Any]:
    """The kind that "module:NAME" names."""
    module, _, name = where.partition(":")
    return getattr(importlib.import_module(module), name)


class Service:
    """A model's operations, run one request after another in one thread."""

    def __init__(self, kind: Kind[Any], name: str, model: Any):
        self.operations = kind.operations(model)
        self.about = {"kind": kind.name, "model": name, "operations": sorted(self.operations), **kind.about(model)}
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="posttrain scorer")
        self.finished = 0  # items of all requests

    def begin(self, operation: str, payload: Any) -> Future[list[Any]]:
        return self.thread.submit(self.run, self.operations[operation], payload)

    def run(self, operation: Operation, payload: Any) -> list[Any]:
        out = []
        for item in operation(payload):
            out.append(item)
            self.finished += 1
        return out


class Listener(ThreadingHTTPServer):
    """A service on a port; 0 takes a free one. Raises OSError when the port is taken."""

    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, service: Service, host: str, port: int, key: str | None = None):
        self.service, self.key = service, key
        super().__init__((host, port), Handler)

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # HTTPServer's own looks up the host's name, which may take seconds
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client that has gone is no error of ours
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    @property
    def service(self) -> Service:
        assert isinstance(self.server, Listener)
        return self.server.service

    def shows_key(self) -> bool:
        """Whether the request shows the key, if one is asked for; who does not is told so."""
        assert isinstance(self.server, Listener)
        shown, key = self.headers.get("authorization", "").removeprefix("Bearer "), self.server.key
        if key is None or hmac.compare_digest(shown.encode(), key.encode()):
            return True
        self.close_connection = True  # its body may not have been read
        self.answer(401, {"error": "the request shows no key, or a wrong one (Authorization: Bearer KEY)"})
        return False

    def do_GET(self) -> None:
        known = {"/about": self.service.about, "/health": {}}
        if self.path != "/health" and not self.shows_key():
            return
        if self.path in known:
            self.answer(200, known[self.path])
        else:
            self.answer(404, {"error": f"there is no {self.path} here, only {', '.join(known)}"})

    def do_POST(self) -> None:
        if not self.shows_key():
            return
        service, operation = self.service, self.path.strip("/")
        try:
            payload = self.payload()
            if operation not in service.operations:
                raise ValueError(f"there is no operation {operation!r} here, only {', '.join(service.operations)}")
        except ValueError as error:
            self.close_connection = True  # its body may not have been read
            self.answer(400, {"error": str(error)})
            return
        future = service.begin(operation, payload)
        try:
            self.answer_in_time(future)
        finally:
            future.cancel()  # if the client has gone before its turn came

    def payload(self) -> Any:
        """The request's JSON. Raises ValueError."""
        if not self.headers.get("content-type", "").startswith("application/json"):
            raise ValueError(
                "the request is not application/json (a web page of another site could send anything else)"
            )
        length = int(self.headers.get("content-length") or 0)
        if not 0 < length <= LARGEST:
            raise ValueError(f"a request has 1 to {LARGEST} bytes and says how many; this one has {length}")
        return json.loads(self.rfile.read(length))

    def answer_in_time(self, future: Future[list[Any]]) -> None:
        """The result, after blanks while it is waited for and others' or its own items are finished."""
        service, begun = self.service, False
        seen = service.finished
        while not wait([future], BEAT_S).done:
            if service.finished == seen:
                continue
            if not begun:
                self.head(200, "Transfer-Encoding", "chunked")
                begun = True
            seen = service.finished
            self.chunk(b" ")
        status, said = outcome(future)
        if begun:
            self.chunk(json.dumps(said).encode())
            self.chunk(b"")
        else:
            self.answer(status, said)

    def answer(self, status: int, said: Mapping[str, Any]) -> None:
        body = json.dumps(said).encode()
        self.head(status, "Content-Length", str(len(body)))
        self.wfile.write(body)
        self.wfile.flush()

    def head(self, status: int, name: str, value: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()

    def chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged."""


def outcome(future: Future[list[Any]]) -> tuple[int, dict[str, Any]]:
    """Status and answer. What an operation raises is the client's to hear, and ends nobody else's requests."""
    try:
        return 200, {"result": future.result()}
    except (ValueError, TypeError, KeyError) as error:
        return 400, {"error": f"{type(error).__name__}: {error}"}
    except Exception as error:
        traceback.print_exception(error)
        return 500, {"error": f"{type(error).__name__}: {error}"}


def listen(kind: Kind[Any], name: str, *, host: str, port: int, key: str | None = None, **options: Any) -> None:
    """Load a model and serve it until interrupted, to those who show the key if there is one.

    Raises ValueError when it cannot be loaded, OSError when the port is taken.
    """
    service = Service(kind, name, kind.load(name, **options))
    with Listener(service, host, port, key) as listener, suppress(KeyboardInterrupt):
        where = f"http://{host}:{listener.server_port}"
        print(f"serving the {kind.name} {name} at {where}; Ctrl-C ends it", file=sys.stderr, flush=True)
        listener.serve_forever()
