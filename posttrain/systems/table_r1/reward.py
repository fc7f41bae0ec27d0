"""The rewards: form and accuracy, each in [0, 1], added; and the looser scorer that evaluates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import posttrain as pt
from posttrain.grade.overlap import rouge_l, sentence_bleu
from posttrain.grade.stated import whole_reply
from posttrain.systems.table_r1.answers import (
    VERDICTS,
    Kind,
    cumulative_format,
    items_of,
    loosely_same,
    loosely_stated,
    number_or_text,
    same_items,
    stated,
    strict_format,
)

Form = Literal["strict", "cumulative"]
FORMS: dict[Form, Callable[[str, Kind], float]] = {"strict": strict_format, "cumulative": cumulative_format}


@dataclass(frozen=True)
class Truth:
    """What a reply should say: the items of a list, one of the verdicts, or sentences of which the first counts."""

    kind: Kind
    answers: tuple[str, ...]


def reward(form: Form = "strict") -> pt.Reward:
    """form + accuracy, in [0, 2], of tasks whose truth is a `Truth`; 0 in all where a short answer cannot be read.

    A sentence is scored by (BLEU / 100 + ROUGE-L) / 2, all of the reply where it has no JSON, as released.
    """

    def grade(rollout: pt.Rollout) -> pt.Score:
        text, truth = whole_reply(rollout), rollout.task.truth
        parts = accuracy(text, truth)
        if parts is None:
            return pt.Score(0.0, {"format": 0.0, "accuracy": 0.0})
        found = FORMS[form](text, truth.kind)
        return pt.Score(found + parts["accuracy"], {"format": found, **parts})

    return pt.each(grade)


def accuracy(text: str, truth: Truth) -> dict[str, float] | None:
    """A reply's accuracy, with what it is made of; None where nothing can be read, so that its form earns nothing."""
    answer = stated(text)
    if truth.kind == "FF-TQA":
        return overlap(answer if isinstance(answer, str) else text, truth.answers[0])
    if truth.kind == "TFV":
        said = None if answer is None else items_of(answer)
        return None if said is None else {"accuracy": float(answer == truth.answers[0])}
    given = None if answer is None else items_of(answer)
    return None if given is None else {"accuracy": float(same_items(given, [*map(number_or_text, truth.answers)]))}


def overlap(said: str, wanted: str) -> dict[str, float]:
    bleu, rouge = sentence_bleu(said, [wanted]), rouge_l(said, wanted)
    return {"accuracy": (bleu / 100 + rouge) / 2, "bleu": bleu, "rouge": rouge}


def evaluation() -> pt.Reward:
    """The looser scorer of the evaluation, in [0, 1]: without case, percent signs read, of a sentence's best reference.

    It is kept apart from what trains: no form is paid, and what cannot be read is wrong.
    """

    def grade(rollout: pt.Rollout) -> pt.Score:
        text, truth = whole_reply(rollout), rollout.task.truth
        answer: Any = loosely_stated(text)
        if truth.kind == "FF-TQA":
            said = answer if isinstance(answer, str) else text
            best = max((overlap(said, one) for one in truth.answers), key=lambda parts: parts["accuracy"])
            return pt.Score(best.pop("accuracy"), best)
        if truth.kind == "TFV":
            said = str(answer).strip().lower()
            return pt.Score(float(said in VERDICTS and said == truth.answers[0]))
        return pt.Score(float(answer is not None and loosely_same(answer, truth.answers)))

    return pt.each(grade)
