"""Dr. CPPO: the samples of largest |advantage| are learned, and the advantage is the reward less the group's mean.

A_g = r_g - mean r, without the group's deviation (Dr. GRPO, arXiv:2503.20783); of the G samples of a task the N of
largest |A_g| are kept (CPPO, arXiv:2503.22342); three updates on each batch of

    -min(rho A, clip(rho, 1 - 0.1, 1 + 0.1) A),   rho = pi / pi_old of a token,

averaged over each sequence and then over sequences. There is no KL term and no reference.
"""

from __future__ import annotations

import torch
from torch import Tensor

import posttrain as pt


def largest(count: int, plain: pt.Advantage = pt.centred) -> pt.Advantage:
    """The credit of the `count` rollouts of a group whose mean |credit| is largest, and none for the others.

    Of equals the first are kept. Raises ValueError for a count below 1.
    """
    pt.at_least(1, kept=count)

    def advantage(group: pt.Group, scores: list[pt.Score]) -> list[Tensor]:
        credit = list(plain(group, scores))
        sizes = [float(one.abs().mean()) if len(one) else 0.0 for one in credit]
        chosen = set(sorted(range(len(credit)), key=lambda i: -sizes[i])[:count])
        return [one if i in chosen else torch.zeros_like(one) for i, one in enumerate(credit)]

    return advantage


def recipe(
    reward: pt.Reward,
    *,
    samples: int = 16,
    kept: int = 4,
    updates: int = 3,
    clip: float = 0.1,
    evaluation: pt.Reward | None = None,
) -> pt.Recipe:
    """Dr. CPPO with the paper's numbers.

    samples  G, of each task
    kept     N, of these; all of them is plain Dr. GRPO
    updates  passes over each batch, a step of the optimizer each
    Rows without credit are neither learned nor counted: a group whose samples all earn the same leaves the mean.
    """
    if kept > samples:
        raise ValueError(f"`kept={kept}`: there are only `samples={samples}`")
    return pt.Recipe(
        reward,
        advantage=largest(kept),
        loss=pt.clipped(clip, clip),
        reduce=pt.sequence_mean,
        samples=samples,
        epochs=updates,
        keep=pt.credited,
        evaluation=evaluation,
    )
