"""Credit: z-scores over a prompt's last groups, and only for the best and the worst of a group (B2-DiffuRL)."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

import posttrain as pt
from posttrain.advantage import EPSILON


class Windowed:
    """An advantage that remembers: a reward's distance from the mean of its task's last groups, in their deviations.

    window   groups of a task before this one that count beside it (8 as released, where they are stages)
    limit    the largest advantage, either way
    Where scores have turns, turn k is compared with the turns k of the task. Deviations are the population's, as in
    the tracker of DDPO's release.
    """

    def __init__(self, window: int = 8, limit: float = 5.0):
        if window < 0:
            raise ValueError(f"Windowed({window}): the number of groups before this one is 0 or more")
        self.window, self.limit = window, limit
        self.seen: dict[str, deque[list[list[float]]]] = {}

    def __call__(self, group: pt.Group, scores: list[pt.Score]) -> list[Tensor]:
        earned = [list(score.turns) or [score.value] for score in scores]
        past = self.seen.setdefault(group[0].task.key, deque(maxlen=self.window))
        known = [turns for members in (*past, earned) for turns in members]
        past.append(earned)
        columns = [[turns[k] for turns in known if len(turns) > k] for k in range(max(map(len, earned)))]
        credit = [[self.distance(value, columns[k]) for k, value in enumerate(turns)] for turns in earned]
        return [
            pt.fill_turns(rollout, values if score.turns else values * len(rollout.turns))
            for rollout, score, values in zip(group, scores, credit, strict=True)
        ]

    def distance(self, value: float, known: list[float]) -> float:
        z = (value - statistics.fmean(known)) / (statistics.pstdev(known) + EPSILON)
        return min(max(z, -self.limit), self.limit)

    def state_dict(self) -> dict[str, Any]:
        return {key: list(groups) for key, groups in self.seen.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.seen = {key: deque(groups, maxlen=self.window) for key, groups in state.items()}


def selected(advantage: pt.Advantage, least: float = 0.5) -> pt.Advantage:
    """Credit for the best of a group where it is at least `least`, and for the worst where it is below `-least`.

    Compared is the credit of the last decision. All others get none; with `keep=credited` they are not trained. A step
    in which no group has either trains nothing.
    """

    def best_and_worst(group: pt.Group, scores: list[pt.Score]) -> list[Tensor]:
        credit = advantage(group, scores)
        order = sorted((i for i in range(len(credit)) if len(credit[i])), key=lambda i: credit[i][-1].item())
        kept = {i for i in order[-1:] if credit[i][-1] >= least} | {i for i in order[:1] if credit[i][-1] < -least}
        return [values if i in kept else torch.zeros_like(values) for i, values in enumerate(credit)]

    return best_and_worst
