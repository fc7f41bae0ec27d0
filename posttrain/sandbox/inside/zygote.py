"""A process that has Python ready and forks itself for each program; and the same for one program alone."""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
from typing import Any

from . import keeper, kernel, session, view, walls

OFTEN = (
    *("bisect", "collections", "copy", "dataclasses", "datetime", "decimal", "fractions", "functools", "heapq"),
    *("inspect", "itertools", "math", "operator", "random", "re", "statistics", "string", "textwrap", "typing"),
)


def serve(
    control_number: int,
    empty: str,
    without: tuple[str, ...] = (),
    packages: tuple[str, ...] = (),
    readable: tuple[str, ...] = (),
) -> None:
    """Answers requests until the other end of the control socket is closed. Each comes with a socket of its own, on
    which the program is read and its outcome written.

    packages  to be imported before the first of them, from the folders `readable`
    """
    control = socket.socket(fileno=control_number)
    found, _ = walls.examine_machine(empty)
    found = found._replace(**{name: walls.Walls._field_defaults[name] for name in without}, packages=readable)
    preferred_victim()
    if found.user:
        walls.in_new_user_namespace()
    own = walls.in_new_pid_namespace() if found.pids else -1
    if found.mounts:
        kernel.unshare(kernel.NEWNS)
        view.enter(empty, readable)
    control.send(json.dumps({"walls": found, "isolates": found.isolates()}).encode())
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the keepers that end are reaped by the kernel
    if packages:
        import_packages(packages, found)
    preload_modules()
    while True:
        message, descriptors, *_ = socket.recv_fds(control, 16, 1)
        if not message:
            return
        with socket.socket(fileno=descriptors[0]) as connection:
            try:
                if found.pids:
                    kernel.unshare(kernel.NEWPID)
                if os.fork() == 0:
                    control.close()
                    become_keeper(connection, found, empty)
            except OSError as error:
                answer(connection, failure(error))
            if found.pids:
                kernel.back_to(own)


def become_keeper(connection: socket.socket, found: walls.Walls, empty: str) -> None:
    """Turns this process into the keeper of one program, and never returns."""
    try:
        try:
            said = keep(connection.fileno(), found, empty)
        except BaseException as error:
            said = failure(error)
        answer(connection, said)
    finally:
        os._exit(0)


def failure(error: BaseException) -> dict[str, Any]:
    """What is answered where the sandbox fails, and not the program."""
    return {"failed": f"{type(error).__name__}: {error}"}


def answer(connection: socket.socket, said: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # the trainer waits no longer
        connection.sendall(json.dumps(said).encode())


def preferred_victim() -> None:
    """If memory runs out, the kernel ends a program of the sandbox before the trainer."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")


def import_packages(packages: tuple[str, ...], found: walls.Walls) -> None:
    sys.path += found.packages
    if found.mounts:  # some write temporary files meanwhile; each keeper mounts a folder of its own over this one
        view.working_folder(packages=found.packages)
        os.chdir(view.WORK)
    for name in packages:
        with contextlib.suppress(Exception):  # a program that imports it is told why it fails
            importlib.import_module(name)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)  # all forks share its state: let it be the same in every zygote
    os.chdir("/")
    tempfile.tempdir = None  # found anew by each program


def preload_modules() -> None:
    """Modules that programs use often are imported here once, and what is in memory now is not collected again."""
    for name in OFTEN:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()


def keep(number: int, found: walls.Walls, empty: str) -> dict[str, Any]:
    """This process keeps the program that it reads from this descriptor; returns what is to be answered."""
    kernel.set_process(kernel.PDEATHSIG, signal.SIGKILL)
    untouchable()
    request = json.loads(read_headed(number))
    if found.network:
        kernel.unshare(walls.APART)
    if found.mounts:
        kernel.unshare(kernel.NEWNS)
        view.working_folder(request["limits"]["file_mib"], found.packages)
    return outcome(request, number, found, view.WORK if found.mounts else empty)


def untouchable() -> None:
    """No program of the same user may read this process' memory, or end it by a signal that Python handles."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        kernel.set_process(kernel.DUMPABLE, 0)


def read_headed(number: int) -> bytes:
    """What comes first on a descriptor, after its length in twelve digits; and not a byte more is read."""
    return exactly(number, int(exactly(number, 12)))


def exactly(number: int, size: int) -> bytes:
    data = bytearray()
    while len(data) < size and (more := os.read(number, size - len(data))):
        data += more
    return bytes(data)


def outcome(request: dict[str, Any], rest: int, found: walls.Walls, folder: str) -> dict[str, Any]:
    """The program's, run in the folder if that is a mount of its own, else in a new one below it.

    rest  the descriptor from which to read the arguments of calls, and on which to speak with a program that stays
    """

    def run_in(work: str) -> dict[str, Any]:
        confine = functools.partial(walls.confine, found, request["limits"], work)
        if request.get("stays"):
            return session.hold(request, rest, confine)
        return keeper.run_program(request, lambda: json.loads(read_headed(rest)), confine)

    if found.mounts:
        os.chdir(folder)
        return run_in(folder)
    work = tempfile.mkdtemp(dir=folder)
    if found.shed:
        os.chown(work, view.NOBODY, view.NOBODY)
    os.chdir(work)
    try:
        return run_in(work)
    finally:
        os.chdir("/")
        for inner, folders, _ in os.walk(work):
            for name in folders:
                with contextlib.suppress(OSError):
                    os.chmod(os.path.join(inner, name), 0o700, follow_symlinks=False)
        shutil.rmtree(work, ignore_errors=True)


def alone(found: list[Any], folder: str) -> None:
    """Keeps the one program that is read from stdin; its outcome goes to stdout."""
    untouchable()
    made = walls.Walls(*found)
    sys.path += made.packages
    said = outcome(json.loads(read_headed(0)), 0, made, folder)
    sys.stdout.write(json.dumps(said))
    sys.stdout.flush()


def examine() -> None:
    """Writes what this machine offers to stdout."""
    with tempfile.TemporaryDirectory() as empty:
        found, lines = walls.examine_machine(empty)
    sys.stdout.write(json.dumps({"walls": found, "isolates": found.isolates(), "lines": lines}))
