"""What a reply says: `<think>chain</think><answer>label</answer>`, and the words of reasoning in its chain."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from posttrain.chat import without_thinking
from posttrain.grade.text import pieces_between

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
ANSWER = re.compile(r"<answer>([^<]*)</answer>")
AROUND = " \t\r\n.,;:!?\"'`*_()[]"  # what may stand around a label
MARKERS: Mapping[str, re.Pattern[str]] = {
    name: re.compile(rf"(?<!\w)(?:{words})(?!\w)", re.IGNORECASE)
    for name, words in {
        "sequence": "first|then|finally",
        "contrast": "however|but|although",
        "cause": "because|therefore",
        "reflection": "wait|alternatively|on second thought",
    }.items()
}
ENOUGH = 2  # classes of markers that earn everything


@dataclass(frozen=True)
class Stated:
    """`label` is one of the task's; `chain` is the text between the tags of thinking."""

    label: str
    chain: str


def stated(text: str, labels: Sequence[str]) -> Stated | None:
    """What a whole reply states; None for one that is unparseable.

    It has each tag once, in order, with nothing outside of them: a thought that stands elsewhere would not be counted.
    The answer is one of the labels, whatever its case and the punctuation around it.
    """
    pieces = pieces_between(text, TAGS)
    if pieces is None:
        return None
    outside, chain, between, answer, rest = pieces
    label = label_of(answer, labels)
    if label is None or (outside + between + rest).strip():
        return None
    return Stated(label, chain.strip())


def label_of(said: str, labels: Sequence[str]) -> str | None:
    """The label that a text is, without regard to case and punctuation around it."""
    plain = {label.strip(AROUND).casefold(): label for label in labels}
    return plain.get(said.strip(AROUND).casefold())


def loose_label(text: str, labels: Sequence[str]) -> str | None:
    """For evaluation, of models that were not taught the form: what the last answer in tags is, wherever it stands.

    Else the only label that is named in it, or without tags behind the thinking; None where several are, or none. A
    negation is not understood.
    """
    blocks = ANSWER.findall(text)
    if blocks and (exact := label_of(blocks[-1], labels)) is not None:
        return exact
    after, named = blocks[-1] if blocks else without_thinking(text), []
    for label in sorted(labels, key=len, reverse=True):  # "very positive" is not also "positive"
        after, count = re.subn(rf"(?<!\w){re.escape(label)}(?!\w)", " ", after, flags=re.IGNORECASE)
        named += [label] if count else []
    return named[0] if len(named) == 1 else None


def structure(chain: str) -> float:
    """min(1, classes of markers that occur / 2): the count of keywords that the paper's reviewers report; ours."""
    return min(1.0, sum(pattern.search(chain) is not None for pattern in MARKERS.values()) / ENOUGH)
