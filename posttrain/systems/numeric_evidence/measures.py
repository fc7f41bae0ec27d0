"""Measures of predictions: conclusions, fields, and which errors of extraction change what one concludes."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.measure import macro_f1
from posttrain.systems.numeric_evidence.effect import NONE, Effect, effect
from posttrain.systems.numeric_evidence.record import Kind, Record, is_unreadable, names, record_of, same
from posttrain.systems.numeric_evidence.reward import Truth, right_fields, stated_conclusion


@dataclass(frozen=True)
class Prediction:
    """What a reply says. `record` is None where it extracts none: it was asked for the conclusion, or has no YAML."""

    key: str
    reply: str
    truth: Truth
    record: Record | None
    effect: Effect | None
    conclusion: str  # "none" where there is none

    @property
    def wrong(self) -> int:
        """Fields that are wrong, of a question with numbers; all of them where nothing was extracted."""
        assert self.truth.record is not None
        right = 0 if self.record is None else right_fields(self.record, self.truth.record, self.truth.kind)
        return len(names(self.truth.kind)) - right

    def line(self) -> dict[str, Any]:
        """For a file; what is unreadable is written as null, beside its name."""
        record = None if self.record is None else readable(self.record)
        unreadable = [name for name, value in (self.record or {}).items() if is_unreadable(value)]
        found = {name: getattr(self.effect, name, None) for name in ("point", "low", "high")}
        made = {"id": self.key, "numbers": record, "unreadable": unreadable, **found, "conclusion": self.conclusion}
        truth = {"wanted": self.truth.record, "wanted_conclusion": self.truth.conclusion}
        return {**made, **truth, "reply": self.reply}


def readable(record: Record) -> dict[str, float | None]:
    return {name: None if is_unreadable(value) else value for name, value in record.items()}


def prediction(key: str, reply: str, truth: Truth, textual: bool = False) -> Prediction:
    """Of a reply; `textual`: it was asked for the conclusion itself."""
    if textual:
        return Prediction(key, reply, truth, None, None, stated_conclusion(reply))
    try:
        record = record_of(reply, truth.kind)
    except ValueError:
        return Prediction(key, reply, truth, None, None, NONE)
    found = effect(record, truth.kind, truth.event_is_good)
    return Prediction(key, reply, truth, record, found, NONE if found is None else found.conclusion)


def measures(found: Sequence[Prediction], textual: bool = False) -> dict[str, float]:
    """Of all predictions whose questions have numbers; what has nothing to be measured on is left out.

    predictions        how many
    concluded          how many of them have a conclusion by their own numbers: accuracy and F1 are of these
    accuracy           of the conclusion
    F1                 macro, over the conclusions that are wanted; none is wrong
    no conclusion      share where the reply gives none
    exact              all fields right
    exact but one      at most one field wrong
    fields             share of the fields that are right
    known              the same, of the numbers that are known: `x` throughout has none of them
    invented           share of the unknown fields for which a number is given
    squared error      mean, of log risk ratios, and in `squared error, means` of mean differences in their own units,
                       where both have an estimate
    error impact       share of the wrong extractions whose conclusion is another one
    Of textual predictions only those of conclusions.
    """
    labelled = [one for one in found if one.truth.record is not None]
    decided = [one for one in labelled if one.truth.conclusion is not None]
    out = {"predictions": float(len(labelled)), "concluded": float(len(decided))}
    if decided:
        wanted, given = [str(one.truth.conclusion) for one in decided], [one.conclusion for one in decided]
        out["accuracy"] = statistics.fmean(a == b for a, b in zip(wanted, given, strict=True))
        out["F1"] = macro_f1(wanted, given)
        out["no conclusion"] = statistics.fmean(one == NONE for one in given)
    return out if textual or not labelled else out | extraction(labelled, decided)


def extraction(labelled: Sequence[Prediction], decided: Sequence[Prediction]) -> dict[str, float]:
    fields = [1 - one.wrong / len(names(one.truth.kind)) for one in labelled]
    out = {
        "exact": statistics.fmean(one.wrong == 0 for one in labelled),
        "exact but one": statistics.fmean(one.wrong <= 1 for one in labelled),
        "fields": statistics.fmean(fields),
    }
    marks = [mark for one in labelled for mark in field_marks(one)]
    if known := [right for is_known, right, _ in marks if is_known]:
        out["known"] = statistics.fmean(known)
    if unknown := [given for is_known, _, given in marks if not is_known]:
        out["invented"] = statistics.fmean(unknown)
    kinds: Mapping[Kind, str] = {"dichotomous": "squared error", "continuous": "squared error, means"}
    for kind, name in kinds.items():
        errors = [error for one in decided if one.truth.kind == kind and (error := squared_error(one)) is not None]
        out |= {name: statistics.fmean(errors)} if errors else {}
    wrong = [one for one in decided if one.wrong]
    if wrong:
        out["error impact"] = statistics.fmean(one.conclusion != one.truth.conclusion for one in wrong)
    return out


def field_marks(one: Prediction) -> Iterator[tuple[bool, bool, bool]]:
    """Of every field of a question: whether its number is known, whether it is right, whether a number is given."""
    wanted, given = one.truth.record or {}, one.record or {}
    for name in names(one.truth.kind):
        said = given.get(name)
        yield (
            wanted[name] is not None,
            name in given and same(said, wanted[name], name),
            said is not None and not is_unreadable(said),
        )


def squared_error(one: Prediction) -> float | None:
    """Of the point estimate; None where either has none."""
    truth = one.truth
    wanted = None if truth.record is None else effect(truth.record, truth.kind, truth.event_is_good)
    if wanted is None or one.effect is None:
        return None
    a, b = wanted.comparable, one.effect.comparable
    return None if a is None or b is None else (a - b) ** 2


def as_text(values: Mapping[str, float]) -> str:
    """A line each, counts without decimals."""
    counts = ("predictions", "concluded")
    return "\n".join(
        f"{name:22} {value:.0f}" if name in counts else f"{name:22} {value:.3f}" for name, value in values.items()
    )
