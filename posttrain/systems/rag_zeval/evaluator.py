"""An evaluator at work: the share of each answer's claims that a reference supports."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import posttrain as pt
from posttrain.chat import opened_thinking
from posttrain.systems.rag_zeval.prompts import judge_request
from posttrain.systems.rag_zeval.trajectory import Assessed, BrokenTrajectory, trajectory

WARMTH, AT_ONCE = 0.1, 2  # temperature and candidates in one trajectory, as published; the nucleus of 0.9 is not used
ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Comparison:
    """Answers to a question, and the reference that they are held against."""

    question: str
    reference: str
    answers: tuple[str, ...]


class Evaluator(Protocol):
    """Scores answers, wherever it is."""

    def scores(self, asked: Sequence[Comparison], seed: int = 0) -> list[list[float | str]]:
        """[B][K] shares of supported claims; a text says why there is none."""
        ...


class LocalEvaluator:
    """A trained evaluator, or any chat model that follows its rules."""

    def __init__(self, player: pt.Sampler, temperature: float = WARMTH, attempts: int = ATTEMPTS):
        self.player, self.env = player, partial(evaluation, temperature=temperature, attempts=attempts)

    def scores(self, asked: Sequence[Comparison], seed: int = 0) -> list[list[float | str]]:
        tasks = [pt.Task(str(i), (), one) for i, one in enumerate(asked)]
        groups = pt.rollout(self.env, tasks, {"policy": self.player}, 1, seed)
        return [scores_of(group[0]) for group in groups]


def evaluation(task: pt.Task[Comparison], temperature: float = WARMTH, attempts: int = ATTEMPTS) -> pt.Episode:
    """Two answers at a time. Facts: [K] `Assessed`, None for an answer that says nothing, or a text that says why not.

    A broken trajectory is asked for again, and at last each answer by itself, so that none spoils its neighbour's.
    """
    asked, out = task.truth, list[Assessed | str | None]([None] * len(task.truth.answers))
    said = [i for i, text in enumerate(asked.answers) if text.strip()]
    for start in range(0, len(said), AT_ONCE):
        pair = said[start : start + AT_ONCE]
        found = yield from assess(asked, pair, temperature, attempts)
        if isinstance(found[0], str) and len(pair) > 1:
            found = []
            for one in pair:
                found += yield from assess(asked, [one], temperature, attempts)
        for i, one in zip(pair, found, strict=True):
            out[i] = one
    return out


def assess(
    asked: Comparison, some: Sequence[int], temperature: float, attempts: int
) -> Generator[list[pt.Ask], list[pt.Reply], list[Assessed | str]]:
    """Some of the answers, in one trajectory; of each a text where all attempts were broken."""
    request = judge_request(asked.question, asked.reference, [asked.answers[i] for i in some])
    found: list[Assessed | str] = []
    for _ in range(attempts):
        reply = yield from pt.ask(request, temperature=temperature)
        found = read(reply, len(some))
        if isinstance(found[0], Assessed):
            break
    return found


def read(reply: pt.Reply, candidates: int) -> list[Assessed | str]:
    try:
        return [*trajectory(opened_thinking(reply) + str(reply.content), candidates, lenient=True)]
    except BrokenTrajectory as broken:
        cut = f" (cut off after {len(reply.logp)} tokens)" if reply.stop == "length" else ""
        return [f"{broken.kind}: {broken}{cut}"] * candidates


def scores_of(rollout: pt.Rollout) -> list[float | str]:
    """[K] of an `evaluation`; an answer that says nothing has no supported claim."""
    if isinstance(rollout.facts, pt.Failure):
        return [rollout.facts.reason] * len(rollout.task.truth.answers)
    return [one.score if isinstance(one, Assessed) else 0.0 if one is None else one for one in rollout.facts]
