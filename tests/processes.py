"""Processes that tests start, waited for as long as they work: how long that takes says nothing on a busy machine."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

ASLEEP_S = 120.0  # in which no process of a tree that works uses less than `PULSE_S`, however busy the machine
PULSE_S = 1.0  # CPU seconds; more than Ray's own processes use while they wait
MOST_S = 600.0  # CPU seconds of one process: it is in an endless loop
LOOK_S = 5.0
TICKS = os.sysconf("SC_CLK_TCK")


def descendants(pid: int) -> dict[int, str]:
    """A process and those below it, with what they call themselves; none where there is no /proc."""
    parents, names = {}, {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):  # it has just ended
            parents[int(entry.name)] = int(fields(int(entry.name))[1])
            names[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ").strip()
    found, more = {pid}, {pid}
    while more:
        more = {one for one, parent in parents.items() if parent in more} - found
        found |= more
    return {one: names.get(one, "") for one in found}


def fields(pid: int) -> list[str]:
    """Of /proc/PID/stat, from the state on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def cpu_seconds(pid: int) -> float:
    """Of a process and the children that it has waited for; 0 for one that has ended."""
    with contextlib.suppress(OSError, ValueError):
        return sum(map(int, fields(pid)[11:15])) / TICKS
    return 0.0


class Started(Protocol):
    """What is asked of a process: `subprocess.Popen` has it."""

    pid: int
    args: Any

    @property
    def returncode(self) -> Any: ...
    def poll(self) -> int | None: ...


class Watch:
    """Over a process and those below it. `look` ends them and raises AssertionError once they sleep or never end."""

    def __init__(self, process: Started):
        self.process, self.used, self.since = process, {}, time.monotonic()

    def look(self) -> None:
        if not Path("/proc/self/stat").is_file():
            return
        used = {pid: cpu_seconds(pid) for pid in descendants(self.process.pid)}
        if max(used.values()) > MOST_S:
            self.end(f"has used {max(used.values()):.0f} CPU seconds")
        if any(seconds - self.used.get(pid, 0.0) >= PULSE_S for pid, seconds in used.items()):
            self.used, self.since = used, time.monotonic()
        elif time.monotonic() - self.since > ASLEEP_S:
            self.end(f"has done nothing for {ASLEEP_S:.0f} s")

    def end(self, why: str) -> None:
        for pid in descendants(self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        raise AssertionError(f"{self.process.args} {why}")


def output(process: subprocess.Popen) -> tuple[str, str]:
    """What it writes to its pipes until it ends."""
    watch = Watch(process)
    while True:
        try:
            return process.communicate(timeout=LOOK_S)
        except subprocess.TimeoutExpired:
            watch.look()


def ran(words: list[str], **options) -> subprocess.CompletedProcess:
    """A program from its start to its end, with what it wrote."""
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options) as process:
        written = output(process)
    return subprocess.CompletedProcess(words, process.returncode, *written)


def wait_until(process: Started, happened: Callable[..., bool], *arguments: Any) -> None:
    """Wait until `happened(*arguments)`, by the work of this process; AssertionError if it ends before."""
    watch, looked = Watch(process), time.monotonic()
    while not happened(*arguments):
        assert process.poll() is None or happened(*arguments), (
            f"{process.args} ended before: exit code {process.returncode}"
        )
        time.sleep(0.002)
        if time.monotonic() - looked > LOOK_S:
            watch.look()
            looked = time.monotonic()


def comes_true(happened: Callable[..., bool], *arguments: Any) -> bool:
    """Whether `happened(*arguments)` becomes true, by the work of a process that is not ours to watch."""
    end = time.monotonic() + ASLEEP_S
    while not (found := happened(*arguments)) and time.monotonic() < end:
        time.sleep(0.005)
    return found
