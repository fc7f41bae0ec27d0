"""A program that stays in the sandbox, of which one function is called again and again.

    with sandbox("zygote", packages=("numpy",)) as box, open_session(box, Program(SOURCE), "answer") as session:
        session.call(1, 2, wall_s=5)

It saves the birth of a process, which with large packages is most of the work. Its price is that one call can spoil
what the next one finds: let the source guard itself against what it is given, and open a new session now and then.
"""

from __future__ import annotations

import json
import socket
import time
from types import TracebackType
from typing import Any, Self

from posttrain.sandbox.backends import BIRTH_S, Zygote
from posttrain.sandbox.calls import RaisedError, ReturnedValue
from posttrain.sandbox.packages import ROOMY
from posttrain.sandbox.program import USUAL, Limits, Program, headed, request

LOADING_S = ROOMY.wall_s + BIRTH_S  # of a zygote that must import its packages first


class SessionEnded(Exception):
    """The program is no more: it exited, crashed, or was ended here because it did not answer.

    exit  its exit code; minus the signal's number if it was killed; None if it was ended here
    """

    def __init__(self, reason: str, exit: int | None = None) -> None:
        super().__init__(reason)
        self.exit = exit


class Session:
    """Calls of a function in a process that stays. Use it from one thread at a time; `close` it, or use it in a `with`.

    Raises ValueError when the program does not load, SessionEnded when it ends, RuntimeError when the sandbox fails.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self._unread = connection, bytearray()
        loaded = json.loads(self._line(LOADING_S))
        if "error" in loaded:
            self.close()
            raise ValueError(f"the program of the session does not load: {loaded['error']}")

    def call(self, *arguments: Any, wall_s: float) -> ReturnedValue | RaisedError:
        """What the function returns or raises, both of JSON's types. After `wall_s` seconds the program is killed.

        Raises SessionEnded when there is no answer, RuntimeError when the sandbox fails.
        """
        line = self._line(wall_s, json.dumps(arguments).encode() + b"\n")
        try:
            said = json.loads(line)
            return RaisedError(*map(str, said["raised"])) if "raised" in said else ReturnedValue(said["value"])
        except (ValueError, TypeError, KeyError, RecursionError):
            self.close()
            raise SessionEnded("its answer is not the harness'") from None

    def _line(self, wall_s: float, asked: bytes = b"") -> bytes:
        """The next line that the program says, after it has been told something."""
        deadline = time.monotonic() + wall_s
        self._connection.settimeout(wall_s)
        try:
            self._connection.sendall(asked)
            while (end := self._unread.find(b"\n")) < 0:
                self._connection.settimeout(max(0.001, deadline - time.monotonic()))
                if not (data := self._connection.recv(1 << 20)):
                    raise self._ending()
                self._unread += data
        except TimeoutError:
            self.close()
            raise SessionEnded(f"no answer in {wall_s:g} s") from None
        except OSError:  # it has ended, and its last words may not have been read
            raise self._ending() from None
        line = bytes(self._unread[:end])
        del self._unread[: end + 1]
        return line

    def _ending(self) -> Exception:
        """What its keeper said last."""
        self._connection.settimeout(BIRTH_S)
        try:
            while data := self._connection.recv(1 << 16):
                self._unread += data
        except OSError:
            pass
        self.close()
        last = self._unread.rpartition(b'{"')[2]
        try:
            said = json.loads(b'{"' + last)
        except ValueError:
            return RuntimeError("the sandbox's process has died")
        if "failed" in said:
            return RuntimeError(f"the sandbox has failed: {said['failed']}")
        code = said["ended"]
        return SessionEnded(f"exit code {code}" if code is None or code >= 0 else f"signal {-code}", code)

    def close(self) -> None:
        """The program is killed. More calls are an OSError."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_session(box: Zygote, program: Program, function: str, limits: Limits = USUAL) -> Session:
    """A session of the function that the program defines. `limits.wall_s` is not looked at: each call has its own.

    Raises ValueError when the program does not load, RuntimeError when it is killed meanwhile or the sandbox fails.
    """
    asked = request(program, limits, {"function": function, "traced": False}) | {"stays": True}
    ours, theirs = socket.socketpair()
    with theirs:
        socket.send_fds(box.live_process().control, [b"run"], [theirs.fileno()])
    ours.sendall(headed(json.dumps(asked)))
    try:
        return Session(ours)
    except SessionEnded as error:
        raise RuntimeError(f"the program of the session ended while it loaded: {error}") from None
