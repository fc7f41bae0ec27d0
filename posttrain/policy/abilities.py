"""What this machine can do: how fast its processor is in each precision, and how much memory is free."""

from __future__ import annotations

import functools
import platform
import sys
import time
from pathlib import Path

import torch

from posttrain import ranks

ROWS, SIZE, TRIES = 64, 512, 10
CGROUPS = tuple(  # limits of a container, in versions 2 and 1
    tuple(Path("/sys/fs/cgroup") / file for file in files)
    for files in (
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    )
)
SLOWER = 1.2  # times as long as in float32: beyond this it is not timing noise

agreed: list[float] = []  # the primary rank's slowdown, once several ranks that compute on CPUs have taken it over


def product_seconds(kind: torch.dtype) -> float:
    """The best time of a product [64, 512] x [512, 512] on one thread of the CPU."""
    rows, weight = torch.ones(ROWS, SIZE, dtype=kind), torch.ones(SIZE, SIZE, dtype=kind)
    times, threads = [], torch.get_num_threads()
    torch.set_num_threads(1)  # several wait for one another on a busy machine
    for _ in range(TRIES):
        clock = time.perf_counter()
        torch.mm(rows, weight)
        times.append(time.perf_counter() - clock)
    torch.set_num_threads(threads)
    return min(times)


@functools.cache
def bfloat16_slowdown() -> float:
    """How many times as long as in float32 a product takes in bfloat16: below 1 with AMX or AVX-512 BF16."""
    return product_seconds(torch.bfloat16) / product_seconds(torch.float32)


def agree_on_slowdown() -> None:
    """Have ranks that compute on CPUs decide alike, by the primary's measurement: all of them call this together."""
    if ranks.world() > 1 and (not torch.cuda.is_available() or torch.distributed.get_backend() == "gloo"):
        agreed[:] = [ranks.run_on_primary(lambda: bfloat16_slowdown(), "for the speed of bfloat16")]


def choose_bf16(asked: bool, device: torch.device) -> bool:
    """Whether to run in bfloat16: as asked, but not on a CPU that it makes slower, which is said.

    Several ranks must not decide differently, and load on the CPU what they may compute on GPUs: they do as asked,
    unless they have agreed (`agree_on_slowdown`).
    """
    several = ranks.world() > 1
    if not asked or device.type != "cpu" or (several and not agreed):
        return asked
    slowdown = agreed[0] if several else bfloat16_slowdown()
    if slowdown <= SLOWER:
        return True
    if ranks.is_primary():
        print(
            f"bf16: on this CPU ({cpu_name()}) a product takes {slowdown:.1f} times as long in bfloat16 as in "
            "float32, so the model runs in float32",
            file=sys.stderr,
        )
    return False


def free_memory() -> int | None:
    """Bytes that this process may still take without being killed; None where the system does not say."""
    found = []
    file = Path("/proc/meminfo")
    if file.is_file():
        lines = dict(line.split(":", 1) for line in file.read_text().splitlines() if ":" in line)
        if "MemAvailable" in lines:
            found.append(int(lines["MemAvailable"].split()[0]) * 1024)
    for most, used, parts in CGROUPS:
        if most.is_file() and used.is_file() and (limit := most.read_text().strip()).isdigit():
            taken = int(used.read_text()) - cached_files(parts)
            found.append(max(int(limit) - taken, 0))
    return min(found, default=None)


def cached_files(parts: Path) -> int:
    """Bytes of files that the kernel keeps in a container's memory, and gives up when it is wanted."""
    lines = [line.split() for line in parts.read_text().splitlines()] if parts.is_file() else []
    return max((int(line[1]) for line in lines if line[0] in ("inactive_file", "total_inactive_file")), default=0)


def cpu_name() -> str:
    """As the system calls it."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
