"""Groups of rollouts with their scores: played, graded while others are still sampled, and described."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from posttrain import ranks
from posttrain.concurrency import future_of
from posttrain.core import Env, Group, Invalid, Metrics, Reward, Rollout, Sampler, Score, ShardedSampler, Task
from posttrain.episode import rollout
from posttrain.reward import group_scores, group_std
from posttrain.unaltered import unaltered


@dataclass(frozen=True, slots=True)
class GradedGroup:
    """A group with its scores, [G] each."""

    group: Group
    scores: list[Score | Invalid]

    @property
    def valid(self) -> list[tuple[Rollout, Score]]:
        return [(r, s) for r, s in zip(self.group, self.scores, strict=True) if isinstance(s, Score)]


@dataclass(frozen=True, slots=True)
class ScoredRollout:
    """A rollout with its score and the credit of its decisions."""

    rollout: Rollout
    score: Score | Invalid
    advantage: Tensor | None  # [N]; None when the rollout could not be graded


def play_and_grade(
    tasks: Sequence[Task],
    env: Env,
    reward: Reward,
    players: Mapping[str, Sampler],
    samples: int,
    seed: int,
    places: Sequence[int] = (),
) -> tuple[list[GradedGroup], Metrics]:
    """[P] groups with their scores: each graded as soon as its last episode is over, while others are still sampled.
    Those of a reward that waits for somebody are graded side by side.

    Where there are several ranks, each plays its share of the tasks, and all of them get all groups. `places` are the
    tasks' places among those of the step, on which their draws depend; in order from 0 if not given.
    """
    places = places or range(len(tasks))
    numbers = ranks.share(range(len(tasks)))
    done: dict[int, GradedGroup] = {}
    futures: dict[int, Future[GradedGroup]] = {}
    grading = 0.0

    def scored(group: Group) -> GradedGroup:
        with unaltered(group):
            return GradedGroup(group, group_scores(reward, group))

    def grade(i: int, group: Group) -> None:
        nonlocal grading
        clock = time.perf_counter()
        if getattr(reward, "waits", False):
            futures[i] = future_of(partial(scored, group), "posttrain grading")
        else:
            done[i] = scored(group)
        grading += time.perf_counter() - clock

    clock = time.perf_counter()
    with ExitStack() as stack:
        for player in players.values():
            if isinstance(player, ShardedSampler):
                stack.enter_context(player.gather_parameters())
        rollout(env, [tasks[i] for i in numbers], players, samples, seed, grade, [places[i] for i in numbers])
        sampled = time.perf_counter()
        done |= {i: future.result() for i, future in futures.items()}
        grading += time.perf_counter() - sampled
    sampling = time.perf_counter() - clock - grading
    found = ranks.merge_shares([done[i] for i in range(len(numbers))], "for the rollouts of a step")
    return found, {"seconds_sample": sampling, "seconds_grade": grading}


def limit_invalid(seen: Sequence[GradedGroup], most: float) -> None:
    """Raises ValueError when more than a share of `most` of the rollouts could not be graded."""
    scores = [score for one in seen for score in one.scores]
    reasons = [score.reason for score in scores if isinstance(score, Invalid)]
    if len(reasons) > most * len(scores):
        raise ValueError(
            f"{len(reasons)} of {len(scores)} rollouts could not be graded (limit: a share of {most}); "
            f"the first because: {reasons[0]}"
        )


def group_metrics(seen: Sequence[GradedGroup]) -> Metrics:
    """What a person wants to know of all that was played and graded in a step; see docs/metrics.md."""
    played = [rollout for one in seen for rollout in one.group]
    valid = [score for one in seen for _, score in one.valid]
    values = [score.value for score in valid]
    compared = [group_std(one.scores) == 0 for one in seen if len(one.valid) > 1]
    metrics = {
        "reward": statistics.fmean(values) if values else 0.0,
        "reward_std": statistics.pstdev(values) if values else 0.0,
        "groups_flat": statistics.fmean(compared) if compared else 0.0,
        "invalid": 1 - len(valid) / len(played),
        "length": statistics.fmean(rollout.decisions for rollout in played),
        "truncated": statistics.fmean(rollout.truncated for rollout in played),
        "turns": statistics.fmean(len(rollout.turns) for rollout in played),
        "rollouts": float(len(played)),
        "decisions": float(sum(rollout.decisions for rollout in played)),
    }
    named: dict[str, list[float]] = defaultdict(list)
    for score in valid:
        for name, value in score.parts.items():
            named[f"part/{name}"].append(value)
    return metrics | {name: statistics.fmean(part) for name, part in named.items()}
