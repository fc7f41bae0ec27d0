"""Problems with an answer: MATH's and AMC's columns, miniF2F's, and a user's own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.records import Place, records, with_unique_keys

QUESTIONS = ("problem", "question", "informal_prefix")
NAMES = ("unique_id", "id", "name")
COMMENT = re.compile(r"\A\s*/--(.*?)-/\s*\Z", re.DOTALL)
MACRO = r"\\(?:textbf|text|mathrm|textrm|mathbf)"
CHOICE = re.compile(rf"{MACRO}\{{\s*\(?([A-E])\)?\s*\}}(?:\\[ ,;:!]|[\s~$])*(.*)", re.DOTALL)
CHOICE_IN_WORDS = re.compile(rf"{MACRO}\{{\s*\(([A-E])\)[\s~]*([^{{}}]+)\}}")
ASSERTED = re.compile(r"\s*Show that it is (.*?)\.?\s*\Z", re.DOTALL)


@dataclass(frozen=True)
class Problem:
    """`statement` is a formal one that the data brings, `None` where it brings none."""

    key: str
    question: str
    answer: str
    statement: str | None = None


def problems(
    data: str | Path, limit: int | None = None, split: str = "test", *, proofs: bool = False
) -> tuple[list[Problem], int]:
    """The problems of a file or Hub dataset, and how many rows were left out because they ask for no answer.

    With `proofs` a row with a formal statement needs no answer.

        MATH-500, AMC    problem, answer (unique_id)
        miniF2F          informal_prefix, in which "Show that it is ..." names the answer; name, formal_statement
        your own         question, answer (id, statement)

    Raises ValueError naming file, line and what is missing, and where no row has an answer.
    """
    rows = [(place, problem(record, place)) for place, record in records(data, limit, split)]
    found = with_unique_keys(row for row in rows if row[1].answer or (proofs and row[1].statement))
    if not found:
        raise ValueError(f"{data}: not one of its rows has an `answer`")
    return found, len(rows) - len(found)


def problem(record: Mapping[str, Any], place: Place) -> Problem:
    """Its answer is empty where the row asks for a proof alone."""
    asked = next((record[name] for name in QUESTIONS if record.get(name)), None)
    if not isinstance(asked, str) or not asked.strip():
        raise ValueError(f"{place}: there is no question: give `question` (or `problem`) and `answer`")
    key = next((str(record[name]) for name in NAMES if record.get(name) is not None), str(place.line))
    statement = record.get("statement", record.get("formal_statement"))
    if match := COMMENT.match(asked):
        asked = match[1].strip()
        asserted = ASSERTED.search(asked)
        question = asked[: asserted.start()] if asserted else asked
        return Problem(key, question.strip(), without_choice(asserted[1].strip()) if asserted else "", statement)
    answer = record.get("answer")
    if answer is not None and (not isinstance(answer, str | int | float) or isinstance(answer, bool)):
        raise ValueError(f"{place}: the answer {answer!r} is neither text nor a number")
    return Problem(key, asked.strip(), "" if answer is None else str(answer).strip(), statement)


def without_choice(answer: str) -> str:
    """`\\textbf{(C) }119` as 119; of an answer that is only a letter the letter."""
    match = CHOICE.fullmatch(answer) or CHOICE_IN_WORDS.fullmatch(answer)
    return (match[2].strip() or match[1]) if match else answer
