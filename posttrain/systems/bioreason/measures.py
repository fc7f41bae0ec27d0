"""Accuracy, precision, recall and F1 of labels, with what a look-up of the question would reach.

Of KEGG's diseases precision, recall and F1 are means over the labels that are wanted; of variant effects they are those
of `pathogenic`.
"""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import posttrain as pt
from posttrain.systems.bioreason.data import Variant
from posttrain.systems.bioreason.reward import answer_of

NONE = ""  # in the place of a label that is not stated
POSITIVE, EFFECTS = "pathogenic", frozenset(("pathogenic", "benign"))


def prediction(text: str, labels: Iterable[str]) -> str:
    """The only label that a reply's answer names; none where it names several, or no one.

    The released evaluation takes a label that stands anywhere in the reply, its trace too, which `named` counts. Ours:
    of labels within one another the longest is meant.
    """
    answer, found = answer_of(text).lower(), list[str]()
    for label in sorted(labels, key=len, reverse=True):
        answer, count = re.subn(rf"(?<!\w){re.escape(label)}(?!\w)", " ", answer)
        found += [label] if count else []
    return found[0] if len(found) == 1 else NONE


def named(text: str, label: str) -> bool:
    """The label stands anywhere in the reply: correct by the released evaluation."""
    return label.lower() in text.lower()


def measures(wanted: Sequence[str], given: Sequence[str]) -> dict[str, float]:
    """`NONE` among the given labels is a miss. Raises ValueError without the extra."""
    pt.measure.require_f1()
    from sklearn.metrics import precision_recall_fscore_support

    labels = [POSITIVE] if set(wanted) <= EFFECTS else sorted(set(wanted))
    options: dict[str, Any] = {"labels": labels, "average": "macro", "zero_division": 0.0}
    precision, recall, f1, _ = precision_recall_fscore_support(list(wanted), list(given), **options)
    accuracy = statistics.fmean(a == b for a, b in zip(wanted, given, strict=True))
    return {"accuracy": accuracy, "precision": float(precision), "recall": float(recall), "F1": float(f1)}


@dataclass(frozen=True, slots=True)
class Floor:
    """The commonest label of the training rows with a question, and of all of them where the question is new.

    It knows nothing of DNA: of KEGG's questions nearly all come in training too, and mostly with one label.
    """

    by_question: Mapping[str, str]
    commonest: str

    def label(self, question: str) -> str:
        return self.by_question.get(question, self.commonest)

    def measures(self, some: Sequence[Variant]) -> dict[str, float]:
        return measures([one.label for one in some], [self.label(one.question) for one in some])


def floor(training: Sequence[Variant]) -> Floor:
    """Of equally common labels the first one."""
    by_question: dict[str, list[str]] = {}
    for one in training:
        by_question.setdefault(one.question, []).append(one.label)
    commonest = {question: most_common(labels) for question, labels in by_question.items()}
    return Floor(commonest, most_common([one.label for one in training]))


def most_common(labels: Iterable[str]) -> str:
    [(label, _)] = Counter(labels).most_common(1)
    return label


def table(rows: Mapping[str, Mapping[str, float]]) -> list[str]:
    """A line for each name."""
    columns, width = list(next(iter(rows.values()))), max(map(len, rows))
    lines = ["  ".join([" " * width, *(f"{name:>9}" for name in columns)])]
    return lines + [
        "  ".join([f"{name:{width}}", *(f"{row[one]:9.3f}" for one in columns)]) for name, row in rows.items()
    ]


def print_floor(training: Sequence[Variant], tests: Mapping[str, Sequence[Variant]]) -> None:
    """What a look-up of the question reaches on each held-out set: no result means more than its distance from it."""
    if tests and pt.ranks.is_primary():
        looked_up = floor(training)
        print("\n".join(table({f"floor {name}".strip(): looked_up.measures(some) for name, some in tests.items()})))
