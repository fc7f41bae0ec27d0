"""An evaluator at work: the share of each answer's claims that a reference supports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import posttrain as pt
from posttrain.chat import opened_thinking
from posttrain.systems.rag_zeval.prompts import judged
from posttrain.systems.rag_zeval.trajectory import Assessed, BrokenTrajectory, trajectory

WARMTH, AT_ONCE = 0.1, 2  # temperature, and candidates in one trajectory, as published; its nucleus of 0.9 is not
ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Asked:
    """Answers to a question, and what they are held against."""

    question: str
    reference: str
    answers: tuple[str, ...]


class Evaluator(Protocol):
    """Scores answers, wherever it is."""

    def scores(self, asked: Sequence[Asked], seed: int = 0) -> list[list[float | str]]:
        """[B][K] shares of supported claims; a text says why there is none."""
        ...


class LocalEvaluator:
    """A trained evaluator, or any chat model that follows its rules."""

    def __init__(self, player: pt.Sampler, temperature: float = WARMTH, attempts: int = ATTEMPTS):
        self.player, self.env = player, partial(evaluation, temperature=temperature, attempts=attempts)

    def scores(self, asked: Sequence[Asked], seed: int = 0) -> list[list[float | str]]:
        tasks = [pt.Task(str(i), (), one) for i, one in enumerate(asked)]
        groups = pt.rollout(self.env, tasks, {"policy": self.player}, 1, seed)
        return [scores_of(group[0]) for group in groups]


def evaluation(task: pt.Task[Asked], temperature: float = WARMTH, attempts: int = ATTEMPTS) -> pt.Episode:
    """Two answers at a time; a broken trajectory is asked for again. Facts: [K] `Assessed`, or why there is none."""
    asked, out = task.truth, list[Assessed | str]()
    for start in range(0, len(asked.answers), AT_ONCE):
        some = asked.answers[start : start + AT_ONCE]
        found: list[Assessed | str] = []
        for _ in range(attempts):
            reply = yield from pt.ask(judged(asked.question, asked.reference, some), temperature=temperature)
            found = read(reply, len(some))
            if isinstance(found[0], Assessed):
                break
        out += found
    return out


def read(reply: pt.Reply, candidates: int) -> list[Assessed | str]:
    try:
        return [*trajectory(opened_thinking(reply) + str(reply.content), candidates, lenient=True)]
    except BrokenTrajectory as broken:
        return [f"{broken.kind}: {broken}"] * candidates


def scores_of(rollout: pt.Rollout) -> list[float | str]:
    """[K] of an `evaluation`."""
    if isinstance(rollout.facts, pt.Failure):
        return [rollout.facts.reason] * len(rollout.task.truth.answers)
    return [one.score if isinstance(one, Assessed) else one for one in rollout.facts]
