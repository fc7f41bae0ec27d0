"""What both sides of the benchmark share: a step is taken when a line comes in, and its cost is written out."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def options() -> argparse.ArgumentParser:
    """What the driver tells either side."""
    parser = argparse.ArgumentParser()
    parser.add_argument("work")
    parser.add_argument("folder")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--lr", type=float, default=1e-5)
    parser.add_argument("--seed", type=int, default=0)
    return parser


class Clock:
    """Wall and CPU seconds of the step that is being taken, by part."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        for kind, seconds in (("wall", time.perf_counter() - wall), ("cpu", time.process_time() - cpu)):
            self.spent[f"{kind}_{name}"] = self.spent.get(f"{kind}_{name}", 0.0) + seconds


def wait() -> None:
    """Until the driver wants a step; the process ends when it wants no more."""
    if not sys.stdin.readline().strip():
        raise SystemExit


def tell(**facts: float) -> None:
    status = Path("/proc/self/status").read_text()
    peak = int(re.search(r"VmHWM:\s*(\d+)", status)[1])  # type: ignore[index]
    print("@" + json.dumps({**facts, "peak_mib": peak / 1024}), flush=True)
