"""Table-R1: reasoning about tables, by rewards of each task's own or from verified traces (arXiv:2505.23621).

answers    what a reply says: its form, its answer, and whether that is right
reward     form + accuracy by kind of task; the looser scorer of the evaluation, kept apart
questions  the four published formats and a user's own; prompts that are too long are dropped or cut, and counted
"""

from __future__ import annotations

from collections.abc import Mapping

import posttrain as pt

__all__ = ["PARTS", "recipe"]


def surrogate() -> pt.Loss:
    """Clip-higher (0.2, 0.28) with the dual clip at 10."""
    return pt.clipped(0.2, 0.28, dual=10.0)


def recipe(reward: pt.Reward, *, samples: int = 16, evaluation: pt.Reward | None = None) -> pt.Recipe:
    """GRPO as published: group z-scores, token mean, clip-higher with a dual clip, neither KL nor entropy."""
    return pt.Recipe(
        reward,
        advantage=pt.normalised,
        loss=surrogate(),
        reduce=pt.token_mean,
        samples=samples,
        evaluation=evaluation,
    )


PARTS: Mapping[str, pt.Part] = {
    "clip": lambda plain, tiny: pt.with_surrogate(plain, surrogate()),
}
