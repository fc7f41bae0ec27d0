"""How good and how long: accuracy, weighted F1, length of chains, redundancy, share unparseable, task by task."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

import posttrain as pt
from posttrain.measure import weighted_f1
from posttrain.systems.emotion_o1.lengths import Tokens
from posttrain.systems.emotion_o1.reply import loose_label, stated, structure
from posttrain.systems.emotion_o1.reward import WIDTH, Truth

NONE = ""  # in the place of a label that is not stated
COLUMNS = ("replies", "accuracy", "weighted F1", "length", "structure", "redundancy", "unparseable")


def prediction(text: str, key: str, truth: Truth, tokens: Tokens) -> dict[str, Any]:
    """What one reply says. The label is read loosely; chain, structure and redundancy are those of replies in form."""
    said = stated(text, truth.labels)
    chain = tokens(said.chain) if said else None
    return {
        "id": key,
        "task": truth.task,
        "label": truth.label,
        "predicted": loose_label(text, truth.labels) or NONE,
        "length": None if chain is None else len(chain),
        "structure": None if said is None else structure(said.chain),
        "redundancy": None if chain is None else pt.measure.repetition(chain, WIDTH),
        "reply": text,
    }


def measures_of(predictions: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    """By task. Lengths in tokens and the other means are over replies that are in form; None where none is.

    Raises ValueError without the extra that weighted F1 needs.
    """
    by_task: dict[str, list[Mapping[str, Any]]] = {}
    for one in predictions:
        by_task.setdefault(one["task"], []).append(one)
    return {task: measures_of_task(some) for task, some in by_task.items()}


def measures_of_task(some: list[Mapping[str, Any]]) -> dict[str, float | None]:
    wanted, given = [one["label"] for one in some], [one["predicted"] for one in some]
    formed = [one for one in some if one["length"] is not None]
    means = {
        name: statistics.fmean(one[name] for one in formed) if formed else None
        for name in ("length", "structure", "redundancy")
    }
    return {
        "replies": float(len(some)),
        "accuracy": statistics.fmean(a == b for a, b in zip(wanted, given, strict=True)),
        "weighted F1": weighted_f1(wanted, given),
        **means,
        "unparseable": 1 - len(formed) / len(some),
    }


def as_table(measures: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    """A line for each task."""
    width = max(map(len, ["task", *measures]))
    lines = [f"{'task':{width}}  {'  '.join(f'{name:>11}' for name in COLUMNS)}"]
    for task, row in measures.items():
        lines.append(f"{task:{width}}  {'  '.join(f'{cell(name, row[name]):>11}' for name in COLUMNS)}")
    return lines


def cell(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if name == "replies" else f"{value:.3f}"
