"""RL with Cold Start: chains of thought distilled and filtered, learned first, then reinforced (arXiv:2505.22334).

    distil   a larger teacher answers; chains whose last answer is right are kept (rejection sampling)
    sft      the student learns them
    rl       GRPO on right or wrong, from there

Reflection ("wait, let me check") stands in replies before any reinforcement, and is no sign of a right answer:
`reflection.gap` says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import posttrain as pt

__all__ = ["PARTS", "SYSTEM", "recipe"]

SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."  # in every stage


def recipe(
    reward: pt.Reward, *, kl: float = 0.01, reference: pt.TextPolicy | None = None, samples: int = 10
) -> pt.Recipe:
    """GRPO as in EasyR1: clip 0.2/0.3, dual clip 3, token mean, a k3 term of 0.01. No reward for a format."""
    made = pt.grpo(reward, samples=samples, kl=kl, reference=reference, low=0.2, high=0.3, dual=3.0)
    return replace(made, reduce=pt.token_mean)


PARTS: Mapping[str, pt.Part] = {
    "dual_clip": lambda plain, tiny: pt.with_surrogate(plain, pt.clipped(0.2, 0.3, dual=3.0), reduce=pt.token_mean),
}
