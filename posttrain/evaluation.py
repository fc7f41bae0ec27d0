"""How good a policy is: graded samples of every task, and what follows from them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from posttrain.core import Env, Group, Invalid, Reward, Rollout, Sampler, Score, Task
from posttrain.episode import decoded_with, single_turn
from posttrain.group import play_and_grade
from posttrain.run.progress import progress_bar

GROUPS_AT_ONCE = 64  # tasks sampled together


@dataclass(slots=True)
class Evaluation:
    """Groups of rollouts with their scores, [P][G]."""

    groups: list[Group] = field(default_factory=list)
    scores: list[list[Score | Invalid]] = field(default_factory=list)

    @property
    def values(self) -> list[list[float]]:
        """[P][G] rewards; what could not be graded is left out."""
        return [[score.value for score in marks if isinstance(score, Score)] for marks in self.scores]

    @property
    def rollouts(self) -> list[Rollout]:
        """Of all tasks, one after the other."""
        return [rollout for group in self.groups for rollout in group]

    @property
    def marks(self) -> list[Score | Invalid]:
        """Of every rollout."""
        return [score for marks in self.scores for score in marks]

    @property
    def graded(self) -> list[tuple[Rollout, Score]]:
        """Every rollout that could be graded, with its score."""
        pairs = zip(self.rollouts, self.marks, strict=True)
        return [(rollout, score) for rollout, score in pairs if isinstance(score, Score)]

    def part(self, name: str) -> float:
        """The mean of a part of the rewards over samples."""
        return statistics.fmean(score.parts[name] for _, score in self.graded)

    @property
    def reward(self) -> float:
        """The mean over tasks of the mean over samples."""
        return statistics.fmean(statistics.fmean(values) for values in self.values if values)

    @property
    def length(self) -> float:
        return statistics.fmean(rollout.decisions for rollout in self.rollouts)

    @property
    def invalid(self) -> int:
        return sum(isinstance(score, Invalid) for score in self.marks)


def evaluate(
    players: Mapping[str, Sampler],
    tasks: Sequence[Task],
    reward: Reward,
    env: Env = single_turn,
    *,
    samples: int = 1,
    seed: int = 0,
    temperature: float | None = None,
    max_new: int | None = None,
    watch: Callable[[int], object] = lambda more: None,
) -> Evaluation:
    """Sample and grade every task. `watch(n)` is called after each batch with the number of tasks finished.

    temperature, max_new   of the policy's replies, where its environment does not say: 0 is greedy; the policy's own if
                           not given
    Raises ValueError when not one sample could be graded.
    """
    if temperature is not None or max_new is not None:
        env = decoded_with(env, temperature, max_new)
    found = Evaluation()
    for start in range(0, len(tasks), GROUPS_AT_ONCE):
        some, _ = play_and_grade(tasks[start : start + GROUPS_AT_ONCE], env, reward, players, samples, seed + start)
        found.groups += [one.group for one in some]
        found.scores += [one.scores for one in some]
        watch(len(some))
    if tasks and not any(found.values):
        reason = next(score.reason for score in found.scores[0] if isinstance(score, Invalid))
        raise ValueError(f"no sample of {len(tasks)} tasks could be graded; the first because: {reason}")
    return found


def evaluate_with_bar(
    players: Mapping[str, Sampler], tasks: Sequence[Task], reward: Reward, env: Env = single_turn, **options: Any
) -> Evaluation:
    """`evaluate` with a progress bar in a terminal."""
    with progress_bar("tasks", len(tasks)) as watch:
        return evaluate(players, tasks, reward, env, watch=watch, **options)
