"""Questions about trials: the published columns and a user's own, and the prompts that ask them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import posttrain as pt
from posttrain.records import Place, column, records, with_unique_keys
from posttrain.systems.numeric_evidence.record import ARMS, FIELDS, Kind, Record, is_unreadable, names, number_of
from posttrain.systems.numeric_evidence.reward import Truth

Asked = Literal["thought", "numbers", "conclusion"]  # numbers after thinking, numbers at once, the conclusion itself
KIND: Mapping[str, Kind] = {"binary": "dichotomous", "dichotomous": "dichotomous", "continuous": "continuous"}
TRUE, FALSE = ("true", "yes", "1"), ("false", "no", "0")
MEANING = {
    "events": "the number of people with the outcome",
    "group_size": "the number of people in the group",
    "mean": "the mean of the outcome",
    "standard_deviation": "its standard deviation",
}


@dataclass(frozen=True)
class Question:
    """What is asked about a trial. `record` is None where its row has none of the numbers."""

    key: str
    text: str
    outcome: str
    intervention: str
    comparator: str
    kind: Kind
    record: Record | None
    event_is_good: bool = True

    def task(self, asked: Asked = "thought") -> pt.Task[Truth]:
        prompt = (pt.user(prompt_text(self, asked)),)
        return pt.Task(self.key, prompt, Truth(self.kind, self.record, self.event_is_good))


def prompt_text(question: Question, asked: Asked) -> str:
    """The words are ours: the paper's prompts are not released."""
    about = (
        f"{question.text}\n\n"
        f"Outcome: {question.outcome}\nIntervention: {question.intervention}\nComparator: {question.comparator}\n\n"
    )
    if asked == "conclusion":
        return about + (
            "On which side is the outcome significantly higher (at the 5 % level), in the intervention group or in the "
            "comparator group? Answer with one line: `conclusion: intervention`, `conclusion: comparator` or "
            "`conclusion: inconclusive`."
            if question.event_is_good
            else "Which side does the trial favour significantly (at the 5 % level), where less of the outcome is "
            "better? Answer with one line: `conclusion: intervention`, `conclusion: comparator` or "
            "`conclusion: inconclusive`."
        )
    fields = FIELDS[question.kind]
    shape = "\n".join([f"{arm}:\n" + "\n".join(f"  {field}: ..." for field in fields) for arm in ARMS])
    meaning = "; ".join(f"{field} is {MEANING[field]}" for field in fields)
    first = "Think first, between <think> and </think>. Then write" if asked == "thought" else "Write"
    return about + (
        "Extract the numbers of this outcome in both groups from the report. "
        f"{first} a block\n```yaml\n{shape}\n```\nwhere {meaning}. A number that the report does not give is x."
    )


def questions(data: str | Path, limit: int | None = None, split: str = "train") -> list[Question]:
    """The questions of a file or Hub dataset, in the published columns.

        outcome, intervention, comparator, outcome_type (binary or continuous), text, and the numbers:
        intervention_events, intervention_group_size, comparator_events, comparator_group_size,
        intervention_mean, intervention_standard_deviation, comparator_mean, comparator_standard_deviation

    Your own rows may name a `file` of text beside the data in the place of `text`, and say `event_is_good` (false where
    the event is a death). A number that is empty, `x` or left out is unknown, never zero; a row with none of the
    columns is not labelled. Raises ValueError naming file, line and what is wrong.
    """
    return with_unique_keys((place, question(record, place)) for place, record in records(data, limit, split))


def question(record: Mapping[str, Any], place: Place) -> Question:
    given = str(column(record, "outcome_type", place, "outcome_type")).strip().lower()
    if given not in KIND:
        raise ValueError(f"{place}: the outcome_type {given!r} is none of {', '.join(KIND)}")
    kind = KIND[given]
    outcome, intervention, comparator = (
        str(column(record, name, place, name)) for name in ("outcome", "intervention", "comparator")
    )
    key = str(place.line if record.get("id") in (None, "") else record["id"])
    good = event_is_good(record, place)
    return Question(
        key, report(record, place), outcome, intervention, comparator, kind, numbers(record, kind, place), good
    )


def numbers(record: Mapping[str, Any], kind: Kind, place: Place) -> Record | None:
    if not any(name in record for name in names(kind)):
        return None
    found = {name: number_of(record.get(name), name, whole=False) for name in names(kind)}
    for name, value in found.items():
        if is_unreadable(value):
            raise ValueError(f"{place}: {name!r} is {record[name]!r}, neither its number nor unknown (empty or x)")
    return found


def report(record: Mapping[str, Any], place: Place) -> str:
    """The text of a trial, or of the file that the row names. Raises ValueError when there is neither."""
    if isinstance(text := record.get("text"), str) and text.strip():
        return text.strip()
    if not (name := record.get("file")):
        raise ValueError(f"{place}: there is no trial: give `text`, or `file`, a text file beside the data")
    path = Path(place.file).parent / Path(str(name)).expanduser()
    if not path.is_file():
        raise ValueError(f"{place}: there is no file {path}")
    try:
        text = path.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{place}: {path} is no text in UTF-8; convert it first (a PDF by pdftotext)") from error
    if not text:
        raise ValueError(f"{place}: {path} is empty")
    return text


def event_is_good(record: Mapping[str, Any], place: Place) -> bool:
    value = record.get("event_is_good")
    given = "true" if value is None else str(value).strip().lower().removesuffix(".0") or "true"
    if given not in TRUE + FALSE:
        raise ValueError(f"{place}: `event_is_good` is {record['event_is_good']!r}, neither true nor false")
    return given in TRUE
