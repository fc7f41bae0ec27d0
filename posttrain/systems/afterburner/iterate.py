"""The iterative optimisation framework: ask for better code, execute it, keep the better of both, ask again.

It is an environment: one round of it is trained, ten are played at test time.
"""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import posttrain as pt
from posttrain.systems.afterburner.measurement import METRICS, Bench, Exercise, Metric, Performance, beyond

EMPTY = Performance(False, why="there is no code yet")


class Rewrite:
    """A task's truth: what is to be written, the metric that counts, and the code to start from, if any.

    Its `repr`, which a run's rollouts hold, is short: an exercise may have hundreds of solutions.
    """

    def __init__(self, exercise: Exercise, metric: Metric, original: str | None = None):
        self.exercise, self.original = exercise, original
        self.metric: Metric = metric

    def __repr__(self) -> str:
        return f"{self.exercise.name} by {self.metric}, from {self.original!r}"


@dataclass(frozen=True, slots=True)
class Best:
    """The best code so far, and how it performs."""

    code: str | None
    performance: Performance = EMPTY


class Dialogue(Protocol):
    """How a rewrite is asked for, and how code is found in a reply (None if there is none)."""

    def prompt(self, task: pt.Task[Rewrite], best: Best) -> tuple[pt.Message, ...]: ...
    def code(self, text: str) -> str | None: ...


def is_improvement(best: Performance, new: Performance, metric: Metric) -> bool:
    """Whether new code replaces the best: failed code by anything, passing code by what passes and is strictly smaller.

    (The release keeps the larger integral.)
    """
    if not best.passed:
        return True
    return new.passed and new.of(metric) < best.of(metric)


def course(bench: Bench, rewrite: Rewrite, codes: Sequence[str | None]) -> list[Best]:
    """The best code before the first of `codes` and after each of them; a reply without code changes nothing.

    Raises EpisodeFailed when the sandbox failed.
    """
    found = bench([(rewrite.exercise, code) for code in (rewrite.original, *codes)])
    path: list[Best] = []
    for code, performance in zip((rewrite.original, *codes), found, strict=True):
        if isinstance(performance, pt.Invalid):
            raise pt.EpisodeFailed(performance.reason)
        if not path:
            path.append(Best(code, performance if code is not None else EMPTY))
        elif code is not None and is_improvement(path[-1].performance, performance, rewrite.metric):
            path.append(Best(code, performance))
        else:
            path.append(path[-1])
    return path


def iterate(rounds: int, bench: Bench, dialogue: Dialogue, temperature: float | None = None) -> pt.Env:
    """The environment of this many rounds; its facts are the code of each reply.

    The best code is measured before each ask, but not after the last one: the reward measures the whole group at once.
    `temperature` 0 is greedy decoding, as published for test time. Raises ValueError for fewer than one round.
    """
    if rounds < 1:
        raise ValueError(f"rounds={rounds}: it must be at least 1")

    def env(task: pt.Task[Rewrite]) -> pt.Episode:
        codes: list[str | None] = []
        for _ in range(rounds):
            best = course(bench, task.truth, codes)[-1]
            reply = yield from pt.ask(dialogue.prompt(task, best), temperature=temperature)
            codes.append(dialogue.code(str(reply.content)))
        return codes

    return env


Course: TypeAlias = "tuple[Rewrite, list[Best]]"  # what was asked, and the best code after each round


def courses(bench: Bench, rollouts: Sequence[pt.Rollout]) -> list[Course]:
    """The course of each episode. Episodes that could not be played or measured are dropped with a warning.

    Raises ValueError when all of them are.
    """
    found: list[Course] = []
    lost: list[str] = []
    for one in rollouts:
        if isinstance(one.facts, pt.Failure):
            lost.append(one.facts.reason)
            continue
        try:
            found.append((one.task.truth, course(bench, one.task.truth, one.facts)[1:]))
        except pt.EpisodeFailed as error:
            lost.append(str(error))
    if not found:
        raise ValueError(f"none of {len(lost)} episodes could be played and measured; the first because: {lost[0]}")
    if lost:
        warnings.warn(
            f"{len(lost)} of {len(rollouts)} episodes could not be played and measured and are left out; the first "
            f"because: {lost[0]}",
            stacklevel=2,
        )
    return found


def curve(paths: Sequence[Course], people: Callable[[Any], Sequence[Performance]]) -> list[dict[str, float]]:
    """After each round: PASS@1, and for each metric the mean BEYOND of the tasks that ask for it, 0 where code fails.

    people  returns the passed solutions of an exercise; a task whose exercise has none counts for PASS@1 only
    """
    known: dict[int, Sequence[Performance]] = {}
    table: list[dict[str, float]] = []
    for i in range(max(len(path) for _, path in paths)):
        row = {"pass": statistics.fmean(path[i].performance.passed for _, path in paths)}
        for metric in METRICS:
            ranks: list[float] = []
            for rewrite, path in paths:
                if rewrite.metric == metric:
                    others = known.setdefault(id(rewrite.exercise), people(rewrite.exercise))
                    own = path[i].performance
                    rank = beyond(own.of(metric), [other.of(metric) for other in others])
                    ranks.append(rank if own.passed or math.isnan(rank) else 0.0)
            ranks = [rank for rank in ranks if not math.isnan(rank)]
            row[f"beyond {metric}"] = statistics.fmean(ranks) if ranks else math.nan
        table.append(row)
    return table
