"""How good a policy is: graded samples of every task, and what follows from them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from posttrain.core import Env, Group, Invalid, Reward, Rollout, Sampler, Score, Task
from posttrain.episode import decoded_with, single_turn
from posttrain.group import GradedGroup, play_and_grade

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

    def require_graded(self) -> None:
        """Raises ValueError when there are tasks and not one sample could be graded."""
        if self.groups and not any(self.values):
            reason = next(score.reason for score in self.scores[0] if isinstance(score, Invalid))
            raise ValueError(f"no sample of {len(self.groups)} tasks could be graded; the first because: {reason}")


def graded_batches(
    players: Mapping[str, Sampler],
    tasks: Sequence[Task],
    reward: Reward,
    env: Env = single_turn,
    *,
    samples: int = 1,
    seed: int = 0,
    temperature: float | None = None,
    max_new: int | None = None,
    first: int = 0,
) -> Iterator[list[GradedGroup]]:
    """The graded groups of all tasks from the one numbered `first`, a multiple of `GROUPS_AT_ONCE`, in batches.

    What is drawn depends on a task's number and not on where this begins. Other arguments are those of `evaluate`.
    """
    if temperature is not None or max_new is not None:
        env = decoded_with(env, temperature, max_new)
    for start in range(first, len(tasks), GROUPS_AT_ONCE):
        some, _ = play_and_grade(tasks[start : start + GROUPS_AT_ONCE], env, reward, players, samples, seed + start)
        yield some


def evaluate(
    players: Mapping[str, Sampler],
    tasks: Sequence[Task],
    reward: Reward,
    env: Env = single_turn,
    *,
    watch: Callable[[int], object] = lambda more: None,
    **options: Any,
) -> Evaluation:
    """Sample and grade every task. `watch(n)` is called after each batch with the number of tasks finished.

    samples, seed          of every task, 1 if not given; of all draws
    temperature, max_new   of the policy's replies, where its environment does not say: 0 is greedy; the policy's own if
                           not given
    Raises ValueError when not one sample could be graded.
    """
    found = Evaluation()
    for some in graded_batches(players, tasks, reward, env, **options):
        found.groups += [one.group for one in some]
        found.scores += [one.scores for one in some]
        watch(len(some))
    found.require_graded()
    return found
