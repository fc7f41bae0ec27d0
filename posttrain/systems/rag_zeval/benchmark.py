"""How well an evaluator agrees with people: two answers, and which of them is better.

RAGChecker's records have a human label from -2 (the first is better) to 2 (the second is): correlations between the
label and the difference of the scores. WikiEval's have a good and a poor answer: how often the good one is ahead.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.measure import correlations
from posttrain.records import Place, records
from posttrain.systems.rag_zeval.candidates import text_of

LABELS = ("correctness_label", "completeness_label", "overall_label", "human")


@dataclass(frozen=True)
class Pairing:
    """Two answers against a reference. `labels`: people's, by name; of WikiEval's the first answer is the good one."""

    key: str
    question: str
    reference: str
    answers: tuple[str, str]
    labels: Mapping[str, float]


def pairings(data: str | Path, limit: int | None = None, split: str = "train") -> list[Pairing]:
    """The records of a file or Hub dataset.

        RAGChecker  query, gt_answer, model1 and model2 (each with a `response`), correctness_label and others
        WikiEval    question, context_v1, answer, ungrounded_answer
        your own    question, reference, answers (two), human (above 0: the second is better; none: the first is good)

    Raises ValueError naming file, line and what is missing.
    """
    return [pairing(record, place) for place, record in records(data, limit, split)]


def pairing(record: Mapping[str, Any], place: Place) -> Pairing:
    question = text_of(record, place, "question", "query")
    if "ungrounded_answer" in record:
        answers = (text_of(record, place, "answer"), text_of(record, place, "ungrounded_answer"))
        return Pairing(str(place.line), question, text_of(record, place, "context_v1"), answers, {})
    if isinstance(record.get("model1"), Mapping) and isinstance(record.get("model2"), Mapping):
        answers = (response(record["model1"], place), response(record["model2"], place))
        key = str(record.get("instance_id", place.line))
        if not any(record.get(name) is not None for name in LABELS):
            raise ValueError(f"{place}: the record has none of the labels {', '.join(LABELS)}")
    else:
        given = record.get("answers")
        if not isinstance(given, list) or len(given) != 2 or not all(isinstance(one, str) for one in given):
            raise ValueError(f"{place}: give `answers`, a list of two texts (or model1 and model2 as RAGChecker has)")
        answers, key = (given[0], given[1]), str(record.get("id", place.line))
    labels = {name: number_of(record[name], name, place) for name in LABELS if record.get(name) is not None}
    return Pairing(key, question, text_of(record, place, "gt_answer", "reference"), answers, labels)


def response(record: Mapping[str, Any], place: Place) -> str:
    """Of a published model, which may have said nothing."""
    return text_of(record, place, "response", empty=True)


def number_of(value: Any, name: str, place: Place) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{place}: `{name}` is {value!r}, not a number")
    return float(value)


def ahead(good: Sequence[float], poor: Sequence[float]) -> dict[str, float]:
    """Best, middle and worst case: ties count for the good answer, half, or not at all."""
    pairs = list(zip(good, poor, strict=True))
    best = statistics.fmean(a >= b for a, b in pairs)
    worst = statistics.fmean(a > b for a, b in pairs)
    return {"best": best, "middle": (best + worst) / 2, "worst": worst}


def agreement(found: Sequence[Pairing], scores: Sequence[tuple[float, float]]) -> dict[str, dict[str, float]]:
    """By label the correlations of people with the difference of the scores; without labels `ahead`."""
    out: dict[str, dict[str, float]] = {}
    for name in LABELS:
        known = [
            (one.labels[name], second - first)
            for one, (first, second) in zip(found, scores, strict=True)
            if name in one.labels
        ]
        if len(known) > 1:
            out[name.removesuffix("_label")] = correlations([h for h, _ in known], [d for _, d in known])
    plain = [pair for one, pair in zip(found, scores, strict=True) if not one.labels]
    if plain:
        out["good answers"] = ahead([good for good, _ in plain], [poor for _, poor in plain])
    return out
