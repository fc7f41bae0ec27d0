r"""Problems from files, in one of three views; columns as ViRL39K and DeepScaleR have them.

    text        {"problem": "What is 3 + 4?", "answer": "7"}
    pictures    {"question": "<image>How large is the angle?", "image": ["1.png"], "answer": "\\boxed{40}"}
    captioned   the same with a column "caption", which stage caption writes

`<image>` says where each picture stands: a row of another number of marks than pictures is refused, or left out. A
column `type` may name the type of an answer; without it the answer's form does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import posttrain as pt
from posttrain.data import MARK, with_pictures
from posttrain.records import Place, Record, column, records, with_unique_keys
from posttrain.systems.infi_mmr.answers import Answer, answer_of

View = Literal["text", "captioned", "pictures"]
QUESTIONS, PICTURES = ("problem", "question", "prompt"), ("image", "images")
ASK = "\n\nThink first, between <think> and </think>. Then put the final answer within \\boxed{}."
LEADING = re.compile(rf"(?:\s*{MARK}\s*)*")


@dataclass(frozen=True, slots=True)
class Problem:
    """A row of a file: the question with its marks, the column of the pictures if there are any, and the answer."""

    place: Place
    record: Record
    key: str
    question: str
    pictures: str | None
    answer: Answer


def problems(file: str, *, limit: int | None = None, split: str = "train", drop: bool = False) -> list[Problem]:
    """The problems of a file; with `drop`, without those whose marks are not as many as their pictures.

    Raises ValueError naming file and line.
    """
    found = [problem(place, record) for place, record in records(file, limit, split)]
    kept = [one for one in found if marks_and_pictures(one) is None]
    if len(kept) < len(found) and not drop:
        wrong = next(one for one in found if marks_and_pictures(one))
        raise ValueError(
            f"{wrong.place}: {marks_and_pictures(wrong)}; mend the line, or leave such out: `drop_mismatched=True`"
        )
    if len(kept) < len(found) and pt.ranks.is_primary():
        print(
            f"{file}: {len(found) - len(kept)} of {len(found)} lines left out, whose {MARK} do not match their pictures"
        )
    if not kept:
        raise ValueError(f"`drop_mismatched={drop}`: no line of {file} has as many {MARK} as pictures")
    return with_unique_keys((one.place, one) for one in kept)


def problem(place: Place, record: Record) -> Problem:
    names = [name for name in QUESTIONS if isinstance(record.get(name), str) and record[name].strip()]
    if not names:
        raise ValueError(f"{place}: no question: there is no text in a column {' or '.join(QUESTIONS)}")
    try:
        answer = answer_of(column(record, "answer", place, "answer"), record.get("type"))
    except ValueError as error:
        raise ValueError(str(error) if str(place) in str(error) else f"{place}: {error}") from error
    key = str(next((record[name] for name in ("id", "qid") if record.get(name) is not None), place.line))
    return Problem(
        place, record, key, record[names[0]], next((one for one in PICTURES if record.get(one)), None), answer
    )


def marks_and_pictures(one: Problem) -> str | None:
    """What is wrong with the number of marks; None if there is one for each picture."""
    marks, count = one.question.count(MARK), len(pictures_of(one))
    return None if marks == count else f"the question has {marks} {MARK}, and the line has {count} pictures"


def pictures_of(one: Problem) -> Sequence[Any]:
    value = one.record[one.pictures] if one.pictures else ()
    return value if isinstance(value, list | tuple) else (value,)


def task(one: Problem, view: View) -> pt.Task[Answer]:
    """What the policy is asked. Raises ValueError for a problem that has not what its view shows."""
    if view == "text" and one.pictures:
        raise ValueError(f"{one.place}: a problem of the phase text has pictures")
    if view != "text" and not one.pictures:
        raise ValueError(f"{one.place}: a problem of the phase {view} has no pictures")
    question = one.question
    if view == "captioned":
        caption = column(one.record, "caption", one.place, "caption")
        question = captioned_question(question, str(caption))
    messages = with_pictures((pt.user(question + ASK),), one.record, one.pictures, one.place)
    return pt.Task(one.key, messages, one.answer)


def captioned_question(question: str, caption: str) -> str:
    """The question behind a description of its pictures; marks that it begins with stay in front."""
    marks = LEADING.match(question)
    assert marks is not None
    return f"{marks[0]}Image description: {caption}\n\n{question[marks.end() :]}"
