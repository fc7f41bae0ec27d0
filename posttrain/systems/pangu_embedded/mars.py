"""MARS: a router of rewards, each source on a scale of its own.

A prompt's source says who grades it: rules for mathematics, tests for code, a preference model for the rest. With raw
rewards the source with the largest scale rules a mixed batch. "Adaptive" is not defined in public; here a source's
rewards are z-scored over a window of its last ones, and those of a source without bounds may be squashed into (0, 1).
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import posttrain as pt
from posttrain.chat import without_thinking
from posttrain.grade.stated import whole_reply
from posttrain.measure import repetition

Scaling = Literal["zscore", "sigmoid", "none"]


class Router:
    """A reward that hands each group to that of its task's source.

    scaling   of each source by name: "zscore", "sigmoid" (of the z-score), or "none" (the default)
    window    rewards of a source over which its mean and deviation are taken, those of the group among them
    Raises ValueError for a task of a source that has no reward.
    """

    def __init__(
        self,
        rewards: Mapping[str, pt.Reward],
        source: Callable[[pt.Task], str],
        scaling: Mapping[str, Scaling] | None = None,
        window: int = 256,
    ):
        self.rewards, self.source = dict(rewards), source
        self.scaling, self.window = dict(scaling or {}), window
        self.seen: dict[str, deque[float]] = {name: deque(maxlen=window) for name in self.rewards}

    def __call__(self, group: pt.Group) -> list[pt.Score | pt.Invalid]:
        name = self.source(group[0].task)
        if name not in self.rewards:
            raise ValueError(f"a task of the source {name!r}, which has no reward: there are {sorted(self.rewards)}")
        scores = pt.group_scores(self.rewards[name], group)
        self.seen[name].extend(score.value for score in scores if isinstance(score, pt.Score))
        return [self.rescale(name, score) if isinstance(score, pt.Score) else score for score in scores]

    def rescale(self, name: str, score: pt.Score) -> pt.Score:
        how, value = self.scaling.get(name, "none"), score.value
        if how != "none":
            value = (value - statistics.fmean(self.seen[name])) / (statistics.pstdev(self.seen[name]) + 1e-6)
        if how == "sigmoid":
            value = 1 / (1 + math.exp(-value))
        return replace(score, value=value, parts={**score.parts, name: score.value})

    def on_scales(self, scaling: Mapping[str, Scaling]) -> Router:
        """The same rewards on these scales; it remembers nothing."""
        return Router(self.rewards, self.source, scaling, self.window)

    def state_dict(self) -> dict[str, Any]:
        return {name: list(values) for name, values in self.seen.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, values in state.items():
            self.seen[name] = deque(values, maxlen=self.window)


def with_auxiliaries(
    reward: pt.Reward,
    well_formed: Callable[[pt.Rollout], bool],
    *,
    format_weight: float = 0.1,
    repetition_weight: float = 0.2,
    width: int = 8,
) -> pt.Reward:
    """R = r + 0.1 [well formed] - 0.2 (share of repeated 8-grams of words), of every source. The weights are ours."""

    def with_parts(group: pt.Group) -> list[pt.Score | pt.Invalid]:
        return [
            add_parts(one, score) if isinstance(score, pt.Score) else score
            for one, score in zip(group, pt.group_scores(reward, group), strict=True)
        ]

    def add_parts(one: pt.Rollout, score: pt.Score) -> pt.Score:
        form, again = float(well_formed(one)), repetition(one.text.split(), width)
        value = score.value + format_weight * form - repetition_weight * again
        return replace(
            score, value=value, parts={**score.parts, "task": score.value, "format": form, "repetition": again}
        )

    return with_parts


def answers(rollout: pt.Rollout) -> bool:
    """Whether the last reply says something once its thinking is closed: the format of stage `reinforce`."""
    return bool(without_thinking(whole_reply(rollout)).strip())
