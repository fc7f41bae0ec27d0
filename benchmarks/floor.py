"""The least time that a step can take on this machine: operations over its measured rate of matrix products."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

from workloads import Workload


@dataclass(frozen=True)
class Machine:
    float32: float  # floating-point operations a second in large matrix products
    bfloat16: float
    bandwidth: float  # bytes a second, read from memory


def measured(threads: int) -> Machine:
    import torch

    torch.set_num_threads(threads)

    def rate(kind: Any, size: int = 2048) -> float:
        a, b = torch.randn(size, size).to(kind), torch.randn(size, size).to(kind)
        return 2 * size**3 / seconds(lambda: a @ b)

    block = torch.ones(2**26)  # 256 MiB: no cache holds it
    return Machine(rate(torch.float32), rate(torch.bfloat16), block.numel() * 4 / seconds(block.sum))


def seconds(call: Any, times: int = 7) -> float:
    call()
    found = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def floor(work: Workload, facts: dict[str, float], machine: Machine, mixed: bool) -> float:
    """CPU seconds of a step, every token of a prompt computed once: in sampling, and three times over in learning.

    Rows without credit teach nothing and are not counted in learning. Logits, and in ours attention, are float32 also
    in mixed precision. A step of decoding reads all weights at least once, which binds where few rows are decoded
    together.
    """
    rate = machine.bfloat16 if mixed else machine.float32
    trunk, attention, logits = operations(work, facts)
    weights = (trunk_parameters(work) * (2 if mixed else 4) + work.vocabulary * work.hidden * 4) * work.new * work.turns
    after = facts["tokens_after"] / (facts["tokens_after"] + facts["tokens_prompt"])
    decode = max(after * trunk / rate + logits / machine.float32, weights / machine.bandwidth)
    prefill = (1 - after) * trunk / rate
    learn = 3 * facts["with_credit"] * (trunk / rate + (attention + logits) / machine.float32)
    return decode + prefill + attention / machine.float32 + learn


def trunk_parameters(work: Workload) -> int:
    attention = work.hidden * work.hidden * 2 + 2 * work.hidden * (work.hidden // work.heads * work.key_heads)
    return work.layers * (attention + 3 * work.hidden * work.inner)


def operations(work: Workload, facts: dict[str, float]) -> tuple[float, float, float]:
    """Of one forward pass over the step's tokens: layers, attention, logits of what was sampled."""
    tokens = facts["tokens_prompt"] + facts["tokens_after"]
    return (
        2.0 * trunk_parameters(work) * tokens,
        4.0 * work.hidden * work.layers * facts["pairs"],
        2.0 * work.vocabulary * work.hidden * facts["tokens_sampled"],
    )
