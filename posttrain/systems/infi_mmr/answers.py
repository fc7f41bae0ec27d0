"""The answer of a problem, and whether what a reply boxes is that answer: each type is compared in its own way.

math    numbers and expressions, by math-verify
choice  one letter
text    words, whose case, spaces and outer punctuation do not count
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import posttrain as pt
from posttrain.grade.text import letter_of, normal_text
from posttrain.grade.verify import checker, gold_answer

Kind = Literal["math", "choice", "text"]
TYPES: Mapping[str, Kind] = {  # by what a column `type` may say
    "math": "math", "number": "math", "expression": "math", "choice": "choice", "text": "text", "string": "text",
}  # fmt: skip
LETTER = re.compile(r"\(?([A-Z])\)?[.:]?")
WORDS = re.compile(r"[^\W\d_]{2,}(?:[\s,'’.-]+[^\W\d_]+)*\.?")  # letters alone: no digit, no operator, no LaTeX
DRESS = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")


@dataclass(frozen=True, slots=True)
class Answer:
    """The truth of a problem."""

    kind: Kind
    text: str


def answer_of(value: Any, kind: Any = None) -> Answer:
    """The answer in a column of a file, which may be boxed; without a `kind` its form tells the type.

    Raises ValueError for an unknown type, for what is neither text nor a number, and for a choice of no single letter.
    """
    if kind is not None and not (isinstance(kind, str) and kind in TYPES):
        raise ValueError(f"the answer's type is {kind!r}, none of {', '.join(TYPES)}")
    if not isinstance(value, str | int | float) or isinstance(value, bool) or value != value:
        raise ValueError(f"the answer is {value!r}, neither text nor a number")
    text = undressed(gold_answer(str(value)))
    if not text:
        raise ValueError(f"the answer {value!r} is empty")
    found = TYPES[kind] if kind else kind_of(text)
    if found == "choice":
        letter = letter_of(text)
        if letter is None:
            raise ValueError(f"the answer {value!r} of type choice names no letter")
        text = letter
    return Answer(found, text)


def kind_of(text: str) -> Kind:
    """A capital letter alone is a choice, words are text, and all else is mathematics."""
    if LETTER.fullmatch(text):
        return "choice"
    return "text" if WORDS.fullmatch(text) else "math"


def is_right(said: str | None, answer: Answer) -> bool | pt.Invalid:
    """Whether the content of a box is the answer. No box (None) is never right, not even where the answer is "None".

    Invalid when the comparison of expressions does not finish.
    """
    if said is None:
        return False
    if answer.kind == "choice":
        return letter_of(undressed(said)) == answer.text
    if answer.kind == "text":
        return normal_text(undressed(said)) == normal_text(answer.text)
    found = checker.check(answer.text, said)
    return pt.Invalid("math-verify did not finish") if found == "timeout" else found == "right"


def undressed(text: str) -> str:
    r"""Without dollars and LaTeX's words for text: `\text{yes}` is `yes`."""
    return DRESS.sub(r"\1", text).strip(" $")
