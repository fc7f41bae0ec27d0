"""Variants with their questions: the published columns of BioReason's data, as tasks and as demonstrations.

wanglab/kegg                      question, answer, reasoning, reference_sequence, variant_sequence
wanglab/variant_effect_coding     question, answer, reference_sequence, variant_sequence
wanglab/variant_effect_non_snv    question, answer, reference_sequence, mutated_sequence
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import posttrain as pt
from posttrain.records import Place, Record, column, records

Shown: TypeAlias = Literal["dna", "letters", "none"]
LETTERS = frozenset("ACGTN")
CUT = 1024  # bases that are cut off each end of a long sequence, as `pt.DnaEncoder` does (released)


@dataclass(frozen=True, slots=True)
class Variant:
    """A question about a variant. Its label is in lower case; rows of variant effects have no trace, None."""

    question: str
    label: str
    trace: str | None
    reference: str
    variant: str
    place: Place

    @property
    def key(self) -> str:
        return str(self.place.line)

    def prompt(self, shown: Shown) -> tuple[pt.Message, ...]:
        """The user's message: two parts of DNA and the question, with nothing between them.

        shown  dna; or letters, the bases as text before the question (the words around them are ours); or none
        """
        if shown == "dna":
            parts = [{"type": "dna", "dna": sequence} for sequence in (self.reference, self.variant)]
            return (pt.user([*parts, {"type": "text", "text": self.question}]),)
        if shown == "none":
            return (pt.user(self.question),)
        before, after = middle(self.reference), middle(self.variant)
        return (pt.user(f"Reference sequence: {before}\nVariant sequence: {after}\n\n{self.question}"),)

    @property
    def reply(self) -> str:
        """What is learned, as released: without a trace the answer stands in its place too."""
        answer = f"Answer: {self.label}"
        return f"<think>\n{answer if self.trace is None else self.trace}\n</think>\n\n{answer}"


def middle(sequence: str) -> str:
    """A sequence as an encoder would be shown it."""
    return sequence[CUT:-CUT] if len(sequence) > 2 * CUT + 8 else sequence


@dataclass(frozen=True)
class VariantOptions:
    """Which variants, and what of them is shown."""

    data: str
    """wanglab/kegg, wanglab/variant_effect_coding, wanglab/variant_effect_non_snv, or a JSONL, CSV or Parquet file with
    their columns."""
    limit: int | None = None
    """Use only the first so many lines."""
    split: str = "train"
    """Split of a Hugging Face dataset."""

    def variants(self) -> list[Variant]:
        return read_variants(self.data, self.limit, self.split)

    def tests(self, held_out: Iterable[str]) -> dict[str, list[Variant]]:
        """Those of held-out files by name."""
        return {name: read_variants(file, split="test") for name, file in pt.named_files(held_out).items()}


def tasks_of(found: Iterable[Variant], shown: Shown) -> list[pt.Task[str]]:
    """The truth is the label."""
    return [pt.Task(one.key, one.prompt(shown), one.label) for one in found]


def fitting_tasks(found: Sequence[Variant], shown: Shown, policy: pt.TextPolicy) -> list[pt.Task[str]]:
    """Raises ValueError naming file and line of a variant that the policy cannot be shown."""
    made = tasks_of(found, shown)
    for one, task in zip(found, made, strict=True):
        try:
            policy.check([task])
        except ValueError as error:
            raise ValueError(f"{one.place}: {error}") from error
    return made


def demonstration(one: Variant, shown: Shown) -> pt.Demonstration:
    return pt.Demonstration((*one.prompt(shown), pt.assistant(one.reply)), str(one.place))


# ---- files


def read_variants(data: str, limit: int | None = None, split: str = "train") -> list[Variant]:
    """Raises ValueError naming file and line of a row that lacks a column or has other letters than bases."""
    return [variant(record, place) for place, record in records(data, limit, split)]


def variant(record: Record, place: Place) -> Variant:
    """Of a row with a column `reasoning` the answer is a label; without one it is "label;disease"."""
    after = "mutated_sequence" if "mutated_sequence" in record else "variant_sequence"
    trace = text_of(record, "reasoning", place) if "reasoning" in record else None
    answer = text_of(record, "answer", place)
    label = (answer if trace else answer.partition(";")[0]).strip().lower()
    if not label:
        raise ValueError(f"{place}: the answer {answer!r} has no label before its ';'")
    question = text_of(record, "question", place)
    return Variant(
        question, label, trace, bases(record, "reference_sequence", place), bases(record, after, place), place
    )


def text_of(record: Record, name: str, place: Place) -> str:
    value: Any = column(record, name, place, name)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{place}: the column {name!r} holds {type(value).__name__}, or nothing, in the place of text")
    return value.strip()


def bases(record: Record, name: str, place: Place) -> str:
    """One sequence in upper case; white space in it stays."""
    sequence = text_of(record, name, place).upper()
    letters = "".join(sequence.split())
    if not LETTERS.issuperset(letters):
        at = next(i for i, letter in enumerate(letters) if letter not in LETTERS)
        raise ValueError(f"{place}: {name!r} has {letters[at]!r} at base {at + 1}: it may have A, C, G, T and N")
    return sequence
