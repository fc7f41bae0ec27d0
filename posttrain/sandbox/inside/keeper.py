"""One program from birth to death: its process, its output with a cap, its deadline, and what it used.

The keeper is the program's parent, and in a pid namespace the first process: whatever the program starts ends with it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from . import body, walls

CHUNK = 65536
PATIENCE = 5.0  # seconds that killed processes may take to end
HIGH = 20  # descriptors are moved above this before they get their final numbers
CHANNEL = 3
ANSWERS = 2 << 20  # bytes of all answers of one process
TOO_MUCH = "its answers are larger than 2 MiB together"


def run_program(
    request: dict[str, Any], arguments: Callable[[], list[str]], confine: Callable[[], None]
) -> dict[str, Any]:
    """Runs the request's program in a child that calls `confine` first; says how it ended and what it used.

    arguments  reads those of the calls, if there are any; not before the child is born, which so has none of them
    """
    limits = request["limits"]
    woken = wake_by_children()
    walls.subreaper()
    stdin = unwritable(request["stdin"].encode(errors="surrogatepass"))
    (out, out_end), (err, err_end), (ready, ready_end) = os.pipe(), os.pipe(), os.pipe()
    ours, theirs = socket.socketpair()
    program = os.fork()
    if program == 0:
        become(request, [stdin, out_end, err_end, theirs.fileno()], ready_end, confine)
    for end in (stdin, out_end, err_end, ready_end):
        os.close(end)
    theirs.close()
    failure = b"".join(iter(lambda: os.read(ready, CHUNK), b"")).decode()
    if failure:
        kill_descendants(program)
        return {"failed": failure}
    began = time.monotonic()
    streams = {out: bytearray(), err: bytearray()}
    conversation = Conversation(ours, program, ANSWERS)
    asked = arguments()
    if request["calls"]:
        conversation.begin(asked)
    status, ended = watch(program, woken, streams, conversation, limits)
    took = time.monotonic() - began
    code = kill_descendants(program, ended)
    conversation.finish()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cap = limits["output_kib"] << 10
    for stream, held in streams.items():
        drain(stream, held, cap)
    if status is None:
        status = ending(code, streams[err]) if all(len(held) <= cap for held in streams.values()) else "output"
    texts = [bytes(held[:cap]).decode("utf-8", "replace") for held in streams.values()]
    return {
        "status": status,
        "exit": None if ended is None else code,
        "stdout": texts[0],
        "stderr": texts[1],
        "cpu_s": used.ru_utime + used.ru_stime,
        "wall_s": took,
        "memory_kib": used.ru_maxrss // (1024 if sys.platform == "darwin" else 1),
        "calls": conversation.heard,
        "broken": conversation.broken,
    }


def wake_by_children() -> int:
    """A descriptor on which something can be read once a child has ended."""
    woken, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC) if hasattr(os, "pipe2") else nonblocking_pipe()
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    return woken


def nonblocking_pipe() -> tuple[int, int]:
    ends = os.pipe()
    for end in ends:
        os.set_blocking(end, False)
    return ends


def unwritable(data: bytes) -> int:
    """A descriptor to read the data from, which the program cannot write to or make longer."""
    if sys.platform != "linux":
        import tempfile

        with tempfile.NamedTemporaryFile() as file:
            file.write(data)
            file.flush()
            return os.open(file.name, os.O_RDONLY)
    held = os.memfd_create("stdin", os.MFD_ALLOW_SEALING)
    view = memoryview(data)
    while view:
        view = view[os.write(held, view) :]
    os.lseek(held, 0, os.SEEK_SET)
    fcntl.fcntl(
        held, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    )
    return held


def become(request: dict[str, Any], ends: list[int], ready: int, confine: Callable[[], None]) -> None:
    """Turns this process into the program, and never returns."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.setsid()
        ends = ends if request["calls"] else ends[:CHANNEL]
        moved = [fcntl.fcntl(end, fcntl.F_DUPFD, HIGH) for end in (*ends, ready)]
        for number, end in enumerate(moved):
            os.dup2(end, number)
        ready = len(ends)
        os.closerange(ready + 1, 1 << 16)
        confine()
    except BaseException as error:
        os.write(ready, f"{type(error).__name__}: {error}".encode())
        os._exit(1)
    try:
        os.close(ready)
        source, files = request["source"], request["files"]
        if asked := request["calls"]:
            code = body.calls(CHANNEL, source, files, asked["function"], asked["traced"])
            code = body.shut_down() or code
        else:
            code = body.run_main(source, files)
    finally:
        os._exit(code)


class Conversation:
    """Arguments to the program and answers from it, one call at a time, with its CPU seconds for each.

    heard   [answer, CPU seconds of the process since the arguments went in], first of the loading
    broken  why it ended early, if it spoke out of turn or too much
    """

    def __init__(self, channel: socket.socket, program: int, cap: int) -> None:
        self.channel, self.program, self.cap = channel, program, cap
        self.waiting: list[str] = []
        self.count = 0
        self.heard: list[tuple[str, float | None]] = []
        self.broken: str | None = None
        self.outgoing, self.incoming = memoryview(b""), bytearray()
        self.goes_on, self.since = False, 0.0
        channel.setblocking(False)

    def begin(self, arguments: list[str]) -> None:
        self.waiting, self.count, self.goes_on = arguments[::-1], len(arguments), True

    def events(self) -> int:
        return select.POLLIN | (select.POLLOUT if self.outgoing else 0)

    def go_on(self) -> bool:
        """Sends and receives what can be without waiting; False once the program has closed its end."""
        self.goes_on = self._exchange() and not self.broken
        return self.goes_on

    def _exchange(self) -> bool:
        try:
            if self.outgoing:
                self.outgoing = self.outgoing[self.channel.send(self.outgoing) :]
            data = self.channel.recv(CHUNK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self.incoming += data
        if b"\n" in data:
            self.take_answer()
        elif len(self.incoming) > self.cap:
            self.broken = TOO_MUCH
        return bool(data)

    def finish(self) -> None:
        """Hears what the program said last before it ended."""
        self.outgoing = memoryview(b"")
        while self.goes_on and select.select([self.channel], [], [], 0)[0] and self.go_on():
            pass

    def take_answer(self) -> None:
        now = walls.processor_seconds(self.program)
        line, _, more = self.incoming.partition(b"\n")
        self.cap -= len(line)
        if self.cap < 0:
            self.broken = TOO_MUCH
        elif more or self.outgoing or len(self.heard) > self.count:
            self.broken = "it answered before it was asked"
        if self.broken:
            return
        self.heard.append((line.decode("utf-8", "replace"), None if now is None else now - self.since))
        self.incoming.clear()
        if self.waiting:
            self.since = walls.processor_seconds(self.program) or 0.0
            self.outgoing = memoryview(self.waiting.pop().encode() + b"\n")
        else:
            self.channel.shutdown(socket.SHUT_WR)


def watch(
    program: int, woken: int, streams: dict[int, bytearray], conversation: Conversation, limits: dict[str, Any]
) -> tuple[str | None, int | None]:
    """Until the program ends or breaks a limit: the limit's name, if it broke one; its exit code, if it ended."""
    deadline = time.monotonic() + limits["wall_s"]
    cap = limits["output_kib"] << 10
    poller = select.poll()
    for stream in (woken, *streams):
        poller.register(stream, select.POLLIN)
    channel = conversation.channel.fileno()
    while (left := deadline - time.monotonic()) > 0:
        if conversation.goes_on:
            poller.register(channel, conversation.events())
        for stream, _ in poller.poll(left * 1000 + 1):
            more = conversation.go_on() if stream == channel else read_on(stream, streams.get(stream))
            if not more:
                poller.unregister(stream)
        if conversation.broken:
            return "killed", None
        if any(len(held) > cap for held in streams.values()):
            return "output", None
        if (code := exit_code(program)) is not None:
            return None, code
    return "timeout", None


def read_on(stream: int, held: bytearray | None) -> bool:
    """Adds what the stream has to what is held of it; False at its end."""
    data = os.read(stream, CHUNK)
    if held is not None:
        held += data
    return bool(data)


def exit_code(program: int) -> int | None:
    ended, status = os.waitpid(program, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def kill_descendants(program: int, code: int | None = None) -> int | None:
    """Kills what is left below this process and waits until it is gone; the program's exit code."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getpid() == 1:
                os.kill(-1, signal.SIGKILL)
            else:
                for process in (*children(), *([program] if code is None else [])):
                    os.kill(process, signal.SIGKILL)
        try:
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == program:
                    code = os.waitstatus_to_exitcode(ended[1])
        except ChildProcessError:
            break
        time.sleep(0.001)
    return code


def children() -> list[int]:
    """The processes whose parent this one is; where there is no /proc, none."""
    found = []
    with contextlib.suppress(OSError):
        for entry in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError), open(f"/proc/{entry}/stat", "rb") as file:
                if int(file.read().rpartition(b")")[2].split()[1]) == os.getpid():
                    found.append(int(entry))
    return found


def drain(stream: int, held: bytearray, cap: int) -> None:
    """What is in the pipe already, up to a little more than the cap."""
    os.set_blocking(stream, False)
    with contextlib.suppress(BlockingIOError):
        while len(held) <= cap and (data := os.read(stream, CHUNK)):
            held += data


def ending(code: int | None, stderr: bytearray) -> str:
    if code is None or code < 0:
        return "killed"
    if code == 0:
        return "finished"
    return "memory" if bytes(stderr).rstrip().rpartition(b"\n")[2].startswith(b"MemoryError") else "error"
