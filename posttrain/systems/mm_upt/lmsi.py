"""LMSI (arXiv:2210.11610), the rival that imitates: one round of samples, and those that agree are learnt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

import posttrain as pt
from posttrain.systems.mm_upt.vote import Answer, majority


def learn_majority(
    policy: pt.TextPolicy, tasks: Sequence[pt.Task], find: Answer, samples: int, seed: int, *, steps: int, lr: float
) -> None:
    """Supervised learning of the samples that agree with the majority of their group, once over, in `steps` updates."""
    groups, vote = pt.rollout(pt.single_turn, tasks, {"policy": policy}, samples, pt.mix(seed, "lmsi")), majority(find)
    agreed = [
        row
        for group in groups
        for one, mark in zip(group, vote(group), strict=True)
        if isinstance(mark, pt.Score) and mark.value > 0
        for row in pt.rows_of(policy, one, one.turns)
    ]
    rows = [replace(row, advantage=torch.ones_like(row.advantage)) for row in agreed]
    optimizer = torch.optim.AdamW(policy.parameters(), lr=lr, weight_decay=0.0)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    for piece in order.tensor_split(steps):
        if len(piece):
            pt.update(policy, optimizer, [rows[i] for i in piece.tolist()], pt.likelihood, pt.token_mean)
