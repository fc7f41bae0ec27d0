"""Candidates whose ranking is known: answers of one model that trusts the passage more, less, or not at all.

alpha 0 is the model with the passage, -1 the model without it, -1.4 a model that shuns it. A larger alpha ranks higher.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import posttrain as pt
from posttrain.records import Place, records, with_unique_keys
from posttrain.systems.rag_zeval.prompts import judge_request
from posttrain.systems.rag_zeval.reward import Ranked

ALPHAS = (0.0, -0.5, -1.0, -1.4)


@dataclass(frozen=True)
class Passage:
    """A question, and the passage that answers it."""

    key: str
    question: str
    passage: str


@dataclass(frozen=True)
class Candidates:
    """Different answers to a question, the best first, with what they were made by."""

    key: str
    question: str
    reference: str
    responses: tuple[str, ...]
    alphas: tuple[float, ...]


def passages(data: str | Path, limit: int | None = None, split: str = "train") -> list[Passage]:
    """Questions with a `passage` (or `context`). Raises ValueError naming file, line and what is missing."""

    def passage(place: Place, record: Mapping[str, Any]) -> Passage:
        key = str(record.get("id", place.line))
        return Passage(key, text_of(record, place, "question", "query"), text_of(record, place, "passage", "context"))

    return with_unique_keys((place, passage(place, record)) for place, record in records(data, limit, split))


def candidates(data: str | Path, limit: int | None = None, split: str = "train") -> list[Candidates]:
    """Rows of stage synthesise, or your own: `question`, `reference`, `responses` and their `alphas`, any ranks.

    Raises ValueError naming file, line and what is missing.
    """
    rows = records(data, limit, split)
    return with_unique_keys((place, candidates_of_row(record, place)) for place, record in rows)


def candidates_of_row(record: Mapping[str, Any], place: Place) -> Candidates:
    responses, alphas = list_of(record, "responses", str, place), list_of(record, "alphas", int | float, place)
    if len(responses) != len(alphas):
        raise ValueError(f"{place}: there are {len(responses)} `responses` and {len(alphas)} `alphas`")
    if len({text.strip() for text in responses}) < len(responses) or len(responses) < 2:
        raise ValueError(f"{place}: a ranking needs two or more `responses`, each another text")
    if len(set(alphas)) < len(alphas) or not all(map(math.isfinite, alphas)):
        raise ValueError(f"{place}: two of the `alphas` are the same, or one is not finite: nothing is ranked by them")
    order = sorted(range(len(alphas)), key=lambda i: -alphas[i])
    question, reference = text_of(record, place, "question"), text_of(record, place, "reference", "passage")
    key, ranks = str(record.get("id", place.line)), tuple(float(alphas[i]) for i in order)
    return Candidates(key, question, reference, tuple(responses[i] for i in order), ranks)


def text_of(record: Mapping[str, Any], place: Place, *names: str, empty: bool = False) -> str:
    """The text of the first of these columns that has one; `empty`: it may say nothing."""
    found = next((record[name] for name in names if isinstance(record.get(name), str)), None)
    if found is None or not (empty or found.strip()):
        raise ValueError(f"{place}: there is no `{names[0]}`, or it is no text")
    return found


def list_of(record: Mapping[str, Any], name: str, kind: Any, place: Place) -> list[Any]:
    found = record.get(name)
    if not isinstance(found, list) or not all(isinstance(one, kind) and not isinstance(one, bool) for one in found):
        raise ValueError(f"{place}: `{name}` is a list of {'texts' if kind is str else 'numbers'}, not {found!r}"[:300])
    return found


def distinct(responses: Mapping[float, str]) -> dict[float, str]:
    """Responses by alpha without repetitions, each under the highest alpha that made it, the best first."""
    out: dict[float, str] = {}
    for alpha in sorted(responses, reverse=True):
        text = responses[alpha].strip()
        if text and text not in out.values():
            out[alpha] = text
    return out


# ---- what an evaluator is trained on


def task(one: Candidates, count: int, draw: random.Random) -> pt.Task[Ranked]:
    """So many of the candidates, or all, in a random order: otherwise an earlier one would be the better one."""
    chosen = draw.sample(range(len(one.responses)), min(count, len(one.responses)))
    shown = [one.responses[i] for i in chosen]
    ranks = tuple(one.alphas[i] for i in chosen)
    return pt.Task(
        f"{one.key}/{len(chosen)}", judge_request(one.question, one.reference, shown), Ranked(one.reference, ranks)
    )


class Keyed(Protocol):
    @property
    def key(self) -> str: ...


Item = TypeVar("Item", bound=Keyed)


class Curriculum(Generic[Item]):
    """A Source that shows few candidates at first and more later.

    make    the task of an item with so many candidates
    counts  candidates by epoch, (3, 4) as published: the last holds from there on
    """

    def __init__(
        self,
        found: Sequence[Item],
        make: Callable[[Item, int, random.Random], pt.Task[Ranked]],
        counts: Sequence[int] = (3, 4),
        seed: int = 0,
    ):
        if not found:
            raise ValueError("there is nothing to train on: the list of candidates is empty")
        self.found, self.make, self.counts, self.seed, self.cursor = found, make, tuple(counts), seed, 0

    @property
    def items(self) -> list[pt.Task[Ranked]]:
        """Each item with as many candidates as it may ever show."""
        return [self.task(one, max(self.counts), 0) for one in self.found]

    def take(self, count: int) -> list[pt.Task[Ranked]]:
        out = []
        for _ in range(count):
            epoch, position = divmod(self.cursor, len(self.found))
            order = random.Random(pt.mix(self.seed, "epoch", epoch)).sample(range(len(self.found)), len(self.found))
            out.append(self.task(self.found[order[position]], self.counts[min(epoch, len(self.counts) - 1)], epoch))
            self.cursor += 1
        return out

    def task(self, one: Item, count: int, epoch: int) -> pt.Task[Ranked]:
        return self.make(one, count, random.Random(pt.mix(self.seed, one.key, epoch)))

    def state_dict(self) -> dict[str, Any]:
        return {"cursor": self.cursor}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.cursor = state["cursor"]
