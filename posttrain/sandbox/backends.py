"""The three sandboxes: a zygote that forks, bubblewrap, and none to speak of."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
import weakref
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Self

from posttrain.sandbox.inside.view import DEVICES, WORK, below_tmp
from posttrain.sandbox.inside.walls import Walls
from posttrain.sandbox.packages import ONE_THREAD, check_importable, check_there, package_folders
from posttrain.sandbox.program import (
    LOST,
    USUAL,
    Limits,
    Outcome,
    Program,
    frame_request,
    outcome,
    parse_answer,
    request,
)

INSIDE = Path(__file__).parent / "inside"
CODE = "/posttrain-sandbox"  # where `INSIDE` is in a container, wherever it lies on the machine
KILLED = 128  # from here on, an exit code of bwrap says by which signal what it ran was killed
BIRTH_S = 30.0  # a start of an interpreter, or the end of a program, takes no longer even on a busy machine
HANGUP_MS = 50  # between a keeper's end and its zygote's closed socket, which are closed one after the other
FLAGS = ("-P", "-s", "-S")  # with an environment of our own this is `-I`, which would ignore PYTHONHASHSEED
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": WORK,
    "TMPDIR": WORK,  # /tmp may be the interpreter's
    "LANG": "C.UTF-8",
    "PYTHONUTF8": "1",
    "PYTHONHASHSEED": "0",  # the same program gives the same output
}
NEEDED = ("network", "processes", "files", "privileges")


def interpreter(function: str, *arguments: str, code: str = str(INSIDE.parent)) -> list[str]:
    """The command that calls a function of inside/zygote.py in an interpreter that holds nothing of this one.

    code  where that interpreter finds the folder "inside"
    """
    boot = f"import sys; sys.path.insert(0, {code!r}); from inside import zygote; del sys.path[0]; "
    call = f"zygote.{function}({', '.join(arguments)})"
    return [os.path.realpath(sys.executable), *FLAGS, "-c", boot + call]


@functools.cache
def machine_report() -> dict[str, Any]:
    """What inside/walls.py finds, asked once of an interpreter of its own."""
    done = subprocess.run(
        interpreter("examine"), env=ENVIRONMENT, stdin=subprocess.DEVNULL, capture_output=True, timeout=BIRTH_S
    )
    if done.returncode:
        raise RuntimeError(f"the sandbox cannot examine this machine: {done.stderr.decode(errors='replace')[-500:]}")
    return json.loads(done.stdout)


def probe() -> dict[str, str]:
    """What this machine offers for a sandbox, one line each; and which sandboxes can be had."""
    found = machine_report()
    return {
        **found["lines"],
        "bubblewrap": bwrap() or "no: there is no bwrap on the PATH",
        "memory cgroup": cgroup(),
        "isolated": ", ".join(found["isolates"]),
    }


def bwrap() -> str:
    """Where it is; empty if it is not on the PATH."""
    place = shutil.which("bwrap")
    return os.path.abspath(place) if place else ""


def cgroup() -> str:
    """Which version is mounted. The sandboxes use none: what they limit, they limit by rlimits."""
    if Path("/sys/fs/cgroup/cgroup.controllers").is_file():
        return "version 2 (not used)"
    return "version 1 (not used)" if Path("/sys/fs/cgroup/memory").is_dir() else "no"


def sandbox(
    kind: Literal["best", "zygote", "bubblewrap", "plain"] = "best", packages: Sequence[str] = ()
) -> Zygote | Bubblewrap | Plain:
    """A sandbox of that kind; "best" is the first of the three that isolates on this machine.

    packages  that programs may import besides the standard library, such as "sklearn", or modules of them, such as
              "sklearn.tree": the zygote imports these, and no others, before it forks. With any, programs may read
              all of this environment's site-packages
    Raises ValueError naming what this machine lacks for the kind, or the package that cannot be imported.
    """
    chosen = choose(kind)
    check_there(packages)
    box = chosen(packages=tuple(packages))
    check_importable(box, packages)
    return box


def choose(kind: str) -> type[Zygote] | type[Bubblewrap] | type[Plain]:
    """Raises ValueError naming what this machine lacks for the kind."""
    if kind == "plain":
        return Plain
    lacks = lacking(kind if kind != "best" else "zygote")
    if kind == "best" and lacks:
        return Bubblewrap if not lacking("bubblewrap") else Plain
    if lacks:
        raise ValueError(f"sandbox({kind!r}): this machine lacks {lacks}; `posttrain doctor` shows what it has")
    return Bubblewrap if kind == "bubblewrap" else Zygote


def lacking(kind: str) -> str | None:
    """What this machine lacks for a sandbox of that kind, for people; None if nothing."""
    if kind == "bubblewrap":
        return Bubblewrap.lacking()
    if kind != "zygote":
        raise ValueError(f"sandbox({kind!r}): not one of best, zygote, bubblewrap, plain")
    missing = [name for name in NEEDED if name not in machine_report()["isolates"]]
    reasons = [f"{name} ({line})" for name, line in machine_report()["lines"].items() if line.startswith("no: ")]
    return f"isolation of {', '.join(missing)}: {', '.join(reasons)}" if missing else None


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def remove_folder(folder: str, owner: int) -> None:
    if os.getpid() == owner:  # not in a fork of it
        shutil.rmtree(folder, ignore_errors=True)


class FolderSandbox(ABC):
    """What the sandboxes share: many programs side by side, and a folder that ends with the sandbox."""

    name: str
    isolates: tuple[str, ...]

    def __init__(self, packages: tuple[str, ...] = ()) -> None:
        self.packages, self.readable = packages, package_folders() if packages else ()
        self.environment = ENVIRONMENT | (ONE_THREAD if packages else {})
        self.folder = tempfile.mkdtemp(prefix="posttrain-sandbox-")
        os.chmod(self.folder, 0o711)
        self._end = weakref.finalize(self, remove_folder, self.folder, os.getpid())

    def run(self, program: Program, limits: Limits = USUAL) -> Outcome:
        return outcome(self.answer(request(program, limits)))

    def run_all(self, programs: Sequence[Program], limits: Limits = USUAL, at_once: int | None = None) -> list[Outcome]:
        return [outcome(said) for said in self.answers([request(each, limits) for each in programs], at_once)]

    @abstractmethod
    def answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        """The keeper's reply to a request, as inside/keeper.py makes it."""

    def answers(self, requests: Sequence[dict[str, Any]], at_once: int | None) -> list[dict[str, Any]]:
        if at_once is not None and at_once < 1:
            raise ValueError(f"at_once={at_once}: not above zero")
        with ThreadPoolExecutor(at_once or cores(), "posttrain sandbox") as threads:
            return list(threads.map(self.answer, requests))

    def close(self) -> None:
        self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Zygote(FolderSandbox):
    """Forks a prepared Python for each program, in namespaces of its own, behind Landlock and seccomp: about 10 ms.

    without  names of `inside.walls.Walls` not to be put up although this machine could: to measure or test the rest
    """

    name = "zygote"

    def __init__(self, without: tuple[str, ...] = (), packages: tuple[str, ...] = ()) -> None:
        super().__init__(packages)
        self.without = without
        self._lock = threading.Lock()
        self._born: ZygoteProcess | None = None
        self.isolates = tuple(self.live_process().isolates)

    def answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        text = frame_request(asked)
        failed = ""
        for _ in range(2):
            born = self.live_process()
            said = parse_answer(born.answer_to(text, asked["limits"]["wall_s"] + BIRTH_S))
            if said and "failed" not in said:
                return said
            failed = said["failed"] if said else "its process has died" if born.has_died() else ""
        if not failed:  # what kept the program was killed twice, and nothing else was
            return dict(LOST)
        raise RuntimeError(f"the sandbox has failed twice in one program: {failed}")

    def live_process(self) -> ZygoteProcess:
        with self._lock:
            if not self._end.alive:
                raise ValueError("this sandbox is closed")
            if self._born is None or self._born.process.poll() is not None:
                if self._born is not None:
                    self._born.end()
                asked = (self.folder, self.without, self.packages, self.readable)
                self._born = ZygoteProcess(asked, self.environment)
            return self._born

    def close(self) -> None:
        with self._lock:
            if self._born is not None:
                self._born.end()
            self._born = None
            super().close()


class ZygoteProcess:
    """A zygote's process, the socket to it, and what it said of itself. Raises RuntimeError if it does not start.

    asked  the arguments of inside/zygote.py's `serve` behind the socket
    """

    def __init__(self, asked: tuple[Any, ...], environment: dict[str, str]) -> None:
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        number = theirs.fileno()
        errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `end_process`
        self.process = subprocess.Popen(
            interpreter("serve", str(number), *map(repr, asked)),
            env=environment,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            pass_fds=(number,),
            start_new_session=True,
        )
        theirs.close()
        self._end = weakref.finalize(self, end_process, self.process, self.control, errors, os.getpid())
        self.control.settimeout(BIRTH_S)
        hello = b""
        with contextlib.suppress(OSError):
            hello = self.control.recv(1 << 16)
        if not hello:
            errors.seek(0)
            reason = errors.read().decode(errors="replace")[-500:] or f"nothing heard in {BIRTH_S:.0f} s"
            self.end()
            raise RuntimeError(f"the sandbox's process did not start: {reason}")
        self.isolates: list[str] = json.loads(hello)["isolates"]

    def answer_to(self, text: bytes, patience_s: float) -> bytes:
        """What the keeper of this request answers; nothing if it, or the zygote, died or said nothing in time."""
        ours, theirs = socket.socketpair()
        deadline = time.monotonic() + patience_s
        said = bytearray()
        with ours:
            try:
                with theirs:
                    socket.send_fds(self.control, [b"run"], [theirs.fileno()])
                ours.settimeout(patience_s)
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it answers before it has read all
                    ours.sendall(text)
                    ours.shutdown(socket.SHUT_WR)
                while data := ours.recv(1 << 16):
                    said += data
                    ours.settimeout(max(0.001, deadline - time.monotonic()))
            except TimeoutError:
                self.end()  # stuck, which no program can bring about
                return b""
            except OSError:  # reset: no more is to come
                pass
        return bytes(said)

    def has_died(self) -> bool:
        """Asked after no answer. A zygote that dies closes its sockets and ends its keepers before it is dead."""
        number = self.control.fileno()
        if number >= 0:  # else ended by this side
            control = select.poll()
            control.register(number, 0)  # POLLHUP alone
            if not control.poll(HANGUP_MS):
                return False
        self.process.wait()
        return True

    def end(self) -> None:
        self._end()


def end_process(process: subprocess.Popen, control: socket.socket, errors: IO[bytes], owner: int) -> None:
    """A zygote ends, and with it all that it keeps."""
    control.close()
    errors.close()
    if os.getpid() == owner:  # not in a fork of it
        process.kill()
        process.wait()


class FreshProcess(FolderSandbox):
    """A fresh interpreter for each program."""

    @abstractmethod
    def command(self, limits: dict[str, Any]) -> list[str]:
        """What to start: a keeper that reads one request from stdin and writes its answer to stdout."""

    def answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        failed = ""
        for _ in range(2):
            done = subprocess.Popen(
                self.command(asked["limits"]),
                env=self.environment,
                cwd=self.folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
            with done:
                try:
                    text, errors = done.communicate(frame_request(asked), asked["limits"]["wall_s"] + BIRTH_S)
                    killed = done.returncode < 0 or done.returncode >= KILLED
                    failed = "" if killed else f"exit code {done.returncode}: {errors.decode(errors='replace')[-500:]}"
                except subprocess.TimeoutExpired:
                    text, failed = b"", "nothing heard in time"
                    done.kill()
            said = parse_answer(text)
            if said and "failed" not in said:
                return said
            failed = said.get("failed", failed)
        if not failed:
            return dict(LOST)
        raise RuntimeError(f"the sandbox has failed twice in one program: {failed}")


class Plain(FreshProcess):
    """A process with limits. It isolates nothing, and says so."""

    name = "plain"
    isolates = ("memory",) if sys.platform == "linux" else ()

    def __init__(self, packages: tuple[str, ...] = ()) -> None:
        super().__init__(packages)
        warnings.warn("the plain sandbox isolates nothing: run only programs that you trust", stacklevel=3)

    def command(self, limits: dict[str, Any]) -> list[str]:
        return interpreter("alone", repr([*Walls(packages=self.readable)]), repr(self.folder))


class Bubblewrap(FreshProcess):
    """A container by bwrap for each program, and within it what the zygote has but for namespaces: about 0.1 s."""

    name = "bubblewrap"

    def __init__(self, packages: tuple[str, ...] = ()) -> None:
        super().__init__(packages)
        found = Walls(*machine_report()["walls"])
        seccomp = found.seccomp
        self.walls = [*Walls(False, False, found.counted, True, True, True, found.landlock, seccomp, self.readable)]
        self.program = bwrap()
        self.sized = "--size" in subprocess.run([self.program, "--help"], capture_output=True, text=True).stdout
        extra = (["disk"] if self.sized else []) + (["system calls"] if seccomp else [])
        self.isolates = ("memory", "network", "processes", "files", "privileges", *extra)

    @staticmethod
    def lacking() -> str | None:
        if not bwrap():
            return "bubblewrap: there is no bwrap on the PATH (apt install bubblewrap)"
        tried = subprocess.run(
            [bwrap(), "--unshare-all", "--ro-bind", "/", "/", "true"], capture_output=True, text=True
        )
        return None if tried.returncode == 0 else f"what bubblewrap needs: {tried.stderr.strip()}"

    def answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        if os.getuid() == 0:  # nobody in the container is root outside of it, whose processes Linux does not count
            asked = {**asked, "limits": {**asked["limits"], "processes": 1}}
        return super().answer(asked)

    def command(self, limits: dict[str, Any]) -> list[str]:
        bound = ["--ro-bind", str(INSIDE), f"{CODE}/inside"]
        places = [os.path.realpath(p) for p in (sys.base_prefix, sys.base_exec_prefix)]
        for place in sorted({p for p in (*places, *self.readable) if not p.startswith("/usr")}):
            bound += ["--ro-bind", place, place]
        for place in ("/lib", "/lib64", "/bin"):
            if os.path.islink(place):
                bound += ["--symlink", os.readlink(place), place]
            elif os.path.isdir(place):
                bound += ["--ro-bind", place, place]
        return [
            *(self.program, "--unshare-all", "--as-pid-1", "--die-with-parent", "--new-session", "--cap-drop", "ALL"),
            *("--uid", "65534", "--gid", "65534", "--ro-bind", "/usr", "/usr", *bound),
            *(word for device in DEVICES for word in ("--dev-bind", device, device)),
            *(("--size", str(limits["file_mib"] << 20)) if self.sized else ()),
            *("--tmpfs", WORK, *(() if below_tmp(self.readable) else ("--symlink", WORK[1:], "/tmp"))),
            *("--remount-ro", "/", "--chdir", WORK),
            *interpreter("alone", repr(self.walls), repr(WORK), code=CODE),
        ]
