"""The rewards: 0.8 for fields that are right, 0.1 for form, 0.1 for thinking; or all fields and nothing less."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import posttrain as pt
from posttrain.chat import without_thinking
from posttrain.grade.stated import whole_reply
from posttrain.systems.numeric_evidence.effect import CONCLUSIONS, NONE, Conclusion, effect
from posttrain.systems.numeric_evidence.record import (
    Kind,
    Record,
    is_whole,
    names,
    record_of,
    same,
    text_loader,
)

Density = Literal["dense", "exact"]
WEIGHTS: Mapping[str, float] = {"fields": 0.8, "form": 0.1, "thinking": 0.1}  # CR, FR, TFR
THOUGHT = re.compile(r"\s*<think>.*?</think>", re.DOTALL)
STATED = re.compile(r"\bconclusion\b[\s*_`]*[:=][\s*_`\"']*(\w+)", re.IGNORECASE)
NAMED = re.compile(rf"\b({'|'.join(CONCLUSIONS)})\b", re.IGNORECASE)


@dataclass(frozen=True)
class Truth:
    """The numbers of a question; `record` is None where nobody has written them down."""

    kind: Kind
    record: Record | None
    event_is_good: bool = True

    @property
    def conclusion(self) -> Conclusion | None:
        """None where the numbers do not allow one."""
        found = None if self.record is None else effect(self.record, self.kind, self.event_is_good)
        return None if found is None else found.conclusion


def right_fields(record: Record, truth: Record, kind: Kind) -> int:
    """How many fields of the truth a record has right; one that it leaves out is wrong, an unknown one too."""
    return sum(name in record and same(record[name], truth[name], name) for name in names(kind))


def reward(density: Density = "dense") -> pt.Reward:
    """The published reward of tasks whose truth is a `Truth`, in [0, 1]; no learned model, for all its name.

    dense  0.8 CR + 0.1 FR + 0.1 TFR: the share of the truth's fields that are right, always of all of them; whether the
           YAML is read and has every field; whether the reply begins with thinking between its tags, once
    exact  the sparse ablation EX: 1 where all fields are right

    A reply without a record earns its thinking at most. Raises ValueError without the extra.
    """

    text_loader()  # what is missing shall be named before anything is sampled

    def grade(rollout: pt.Rollout) -> pt.Score:
        parts = score_parts(whole_reply(rollout), rollout.task.truth)
        value = sum(weight * parts[name] for name, weight in WEIGHTS.items())
        return pt.Score(parts["exact"] if density == "exact" else value, parts)

    return pt.each(grade)


def score_parts(text: str, truth: Truth) -> dict[str, float]:
    """CR, FR, TFR and EX of a reply. Raises ValueError for a question without numbers."""
    if truth.record is None:
        raise ValueError("a question without numbers cannot be graded: leave it out, or add the numbers to its row")
    thinking = float(is_thought(text))
    try:
        record = record_of(text, truth.kind)
    except ValueError:
        return {"fields": 0.0, "form": 0.0, "thinking": thinking, "exact": 0.0}
    share = right_fields(record, truth.record, truth.kind) / len(names(truth.kind))
    form = float(is_whole(record, truth.kind))
    return {"fields": share, "form": form, "thinking": thinking, "exact": float(share == 1)}


def is_thought(text: str) -> bool:
    """It begins with a block of thinking, and has no other tag of it."""
    return bool(THOUGHT.match(text)) and text.count("<think>") == text.count("</think>") == 1


def conclusion_is_right(rollout: pt.Rollout) -> float:
    """1 for the conclusion that follows from the truth: of the record's numbers, with no other credit.

    For held-out questions: the effect is computed in evaluation, and is no part of the reward.
    """
    truth = rollout.task.truth
    return float(numeric_conclusion(whole_reply(rollout), truth) == truth.conclusion)


def numeric_conclusion(text: str, truth: Truth) -> str:
    """The conclusion of the numbers that a reply extracts; "none" where they allow none."""
    try:
        found = effect(record_of(text, truth.kind), truth.kind, truth.event_is_good)
    except ValueError:
        return NONE
    return NONE if found is None else found.conclusion


def stated_conclusion(text: str) -> str:
    """The conclusion that a reply states itself: behind its last `conclusion:`, or the only one that it names."""
    said = without_thinking(text)
    stated = [word.lower() for word in STATED.findall(said)]
    if stated:
        return stated[-1] if stated[-1] in CONCLUSIONS else NONE
    named = {word.lower() for word in NAMED.findall(said)}
    return named.pop() if len(named) == 1 else NONE
