"""What goes into a sandbox, what comes out, and what a sandbox is."""

from __future__ import annotations

import json
import math
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import PurePosixPath
from types import TracebackType
from typing import Any, Literal, Protocol, Self

from posttrain.sandbox.inside.view import INODES

MOST = {"wall_s": 10**6, "memory_mib": 1 << 24, "output_kib": 1 << 20, "processes": 1 << 15, "file_mib": 1 << 20}
PAGE, NAME, PATH = 4096, 255, 4000  # bytes: what the smallest file takes; of a file's name; of one with its folders
Status = Literal["finished", "error", "timeout", "memory", "output", "killed"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one run of a program may use.

    wall_s      seconds from its first to its last instruction
    memory_mib  MiB of address space of each of its processes, the interpreter's own 30 or so included
    output_kib  KiB of stdout, and as many of stderr
    processes   processes and threads at a time, the program itself included; where there is no pid namespace to end
                them all with, or bubblewrap is run by root and cannot count them, never more than one
    file_mib    MiB of one file; and of its working folder, where a sandbox isolates "disk"
    Raises ValueError for a limit that is not above zero, that is larger than any program needs (`MOST`), or, but for
    seconds, that is not a whole number.
    """

    wall_s: float = 10.0
    memory_mib: int = 512
    output_kib: int = 64
    processes: int = 1
    file_mib: int = 16

    def __post_init__(self) -> None:
        for each in fields(self):
            value, whole = getattr(self, each.name), each.name != "wall_s"
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
                raise ValueError(f"Limits({each.name}={value!r}): not a {'whole ' if whole else ''}number")
            if math.isnan(value) or value <= 0:
                raise ValueError(f"Limits({each.name}={value}): not above zero")
            if value > MOST[each.name]:
                raise ValueError(f"Limits({each.name}={value}): above {MOST[each.name]}")


USUAL = Limits()


@dataclass(frozen=True, slots=True)
class Program:
    """A Python program. `files` are written to its working folder first, by their relative names: text, or bytes.

    Raises ValueError for a name that leads out of the folder, or for what is neither.
    """

    source: str
    stdin: str = ""
    files: Mapping[str, str | bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        texts = {
            "source": self.source,
            "stdin": self.stdin,
            **{f"files[{name!r}]": held for name, held in self.files.items() if not isinstance(held, bytes)},
        }
        for name, text in texts.items():
            if not isinstance(text, str):
                raise ValueError(f"Program({name}=...): a {type(text).__name__}, not text")
        for name in self.files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in name:
                raise ValueError(f"Program(files={{{name!r}: ...}}): not the name of a file below the working folder")
            try:
                name.encode()
            except UnicodeEncodeError as error:
                raise ValueError(f"Program(files={{{name!r}: ...}}): not the name of a file: {error}") from None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended and what it used.

    status      finished: exit code 0; error: another, an exception's 1 for one; memory: an exception that was
                MemoryError; timeout, output: ended by the sandbox at that limit; killed: by a signal, its own or the
                kernel's
    exit        exit code; minus the signal's number if killed; None if the sandbox ended it
    stdout, stderr  as UTF-8, what is not being replaced, cut at the limit
    cpu_s, memory_kib  what the kernel counted for all of its processes together, and for the largest: no program can
                forge them. Its birth is in them, about 2 ms and 10 MiB
    wall_s      seconds
    """

    status: Status
    exit: int | None
    stdout: str
    stderr: str
    cpu_s: float
    wall_s: float
    memory_kib: int


class Sandbox(Protocol):
    """Runs programs that nobody trusts. Any thread may use it; `close` it, or use it in a `with`.

    isolates  what a program is kept from: "network", "processes" (of others), "files" (all but its own and the
              interpreter's), "privileges", "memory" (more than its limit), "disk" (more than its limit),
              "system calls" (that no such program needs)
    """

    @property
    def name(self) -> str: ...
    @property
    def isolates(self) -> tuple[str, ...]: ...

    def run(self, program: Program, limits: Limits = ...) -> Outcome:
        """The outcome of one program. Raises RuntimeError if the sandbox itself fails, twice."""
        ...

    def run_all(self, programs: Sequence[Program], limits: Limits = ..., at_once: int | None = None) -> list[Outcome]:
        """The outcomes, in the programs' order; `at_once` of them run side by side, by default one for each core."""
        ...

    def answers(self, requests: Sequence[dict[str, Any]], at_once: int | None) -> list[dict[str, Any]]:
        """What the keepers say to requests as `request` makes them: the other two and `run_calls` use it."""
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def request(
    program: Program, limits: Limits, calls: dict[str, Any] | None = None, arguments: Sequence[str] = ()
) -> dict[str, Any]:
    """What a keeper is asked, in JSON's types. `calls`: the function to call, traced or not; a line of `arguments` for
    each call. Raises ValueError for files that no working folder within these limits can hold."""
    check_room(program.files, limits.file_mib)
    return {
        "source": program.source,
        "stdin": program.stdin,
        "files": json_files(program.files),
        "limits": asdict(limits),
        "calls": calls,
        "arguments": list(arguments),
    }


def json_files(files: Mapping[str, str | bytes]) -> dict[str, Any]:
    """Text as it is, bytes as a list of their base64 alone."""
    return {name: [b64encode(held).decode()] if isinstance(held, bytes) else held for name, held in files.items()}


def check_room(files: Mapping[str, str | bytes], file_mib: int) -> None:
    """Raises ValueError naming what does not fit into a working folder of that many MiB."""
    folders = {str(folder) for name in files for folder in PurePosixPath(name).parents}
    for name in files:
        if any(len(part.encode()) > NAME for part in PurePosixPath(name).parts) or len(name.encode()) > PATH:
            raise ValueError(f"Program(files={{{name[:40]!r}...: ...}}): the name is too long for a file")
        if str(PurePosixPath(name)) in folders or name.endswith("/"):
            raise ValueError(f"Program(files={{{name!r}: ...}}): the name of a folder too")
    if len(files) + len(folders) > INODES:
        raise ValueError(f"Program(files=...): {len(files)} files and {len(folders)} folders, more than {INODES}")
    held = [text if isinstance(text, bytes) else text.encode(errors="surrogatepass") for text in files.values()]
    size = sum(-len(each) // PAGE * -PAGE for each in held)
    if size > file_mib << 20:
        raise ValueError(f"Program(files=...): {size} bytes in all, more than Limits(file_mib={file_mib})")


def outcome(said: dict[str, Any]) -> Outcome:
    """The outcome in a keeper's answer."""
    return Outcome(**{name: said[name] for name in Outcome.__slots__})


LOST = {
    **dict(status="killed", exit=None, stdout="", stderr="what kept the program died, twice"),
    **dict(cpu_s=0.0, wall_s=0.0, memory_kib=0, calls=[], broken=None),
}


def frame_request(asked: dict[str, Any]) -> bytes:
    """The request as a keeper reads it: the arguments of calls apart, since it reads them later."""
    return headed(json.dumps({**asked, "arguments": None})) + headed(json.dumps(asked["arguments"]))


def headed(text: str) -> bytes:
    """The text behind its length in bytes, in twelve digits."""
    part = text.encode()
    return b"%012d" % len(part) + part


def parse_answer(text: bytes) -> dict[str, Any]:
    """A keeper's answer; empty if the keeper was killed before it had written all of it."""
    try:
        return json.loads(text)
    except ValueError:
        return {}
