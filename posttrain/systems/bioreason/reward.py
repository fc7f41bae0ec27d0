"""The reward: five terms, of the answer and of its form, summed (BioReason, as released with the name vllm-grpo).

    correctness    2.0     the label stands in what follows the last </think>
    concise        0.5     that text has at most ten words
    strict_format  0.5     <think>, its trace, </think> and an answer, each on lines of their own
    soft_format    0.5     <think>...</think> at the start
    xmlcount       0.25    half of it for exactly one "<think>\\n", half for exactly one "\\n</think>\\n"

The released expressions of the two formats stop at line ends, so that the text which was taught earns neither.
"""

from __future__ import annotations

import re

import posttrain as pt
from posttrain.grade.stated import whole_reply

CLOSED = "</think>"
WORDS = 10  # at most, of a concise answer
STRICT = re.compile(r"^<think>\n.*?\n</think>\n.*?\n?$", re.DOTALL)
SOFT = re.compile(r"<think>.*?</think>\s*.*?", re.DOTALL)
LEGACY_STRICT = re.compile(r"^<think>\n.*?\n</think>\n.*?\n$")
LEGACY_SOFT = re.compile(r"<think>.*?</think>\s*.*?")
ANSWER = re.compile(r"^answer\s*:\s*", re.IGNORECASE)


def answer_of(text: str) -> str:
    """What follows the last </think>; without one the whole text, as released."""
    return text.rpartition(CLOSED)[2]


def is_exact(answer: str, label: str) -> bool:
    """The answer is the label, but for case, a full stop and "Answer:"."""
    return ANSWER.sub("", answer.strip()).strip().rstrip(".").lower() == label.lower()


def terms(text: str, label: str, *, exact: bool = False, legacy: bool = False) -> dict[str, float]:
    """The five terms of a whole reply.

    exact   correct is what is nothing but the label: by the paper's rule an answer that lists all labels is correct
    legacy  the released expressions of the formats
    """
    answer = answer_of(text)
    strict, soft = (LEGACY_STRICT, LEGACY_SOFT) if legacy else (STRICT, SOFT)
    correct = is_exact(answer, label) if exact else label.lower() in answer.lower()
    marks = (text.count("<think>\n") == 1) + (text.count("\n</think>\n") == 1)
    return {
        "correctness": 2.0 * correct,
        "concise": 0.5 * (len(answer.split()) <= WORDS),
        "strict_format": 0.5 * (strict.match(text) is not None),
        "soft_format": 0.5 * (soft.match(text) is not None),
        "xmlcount": 0.125 * marks,
    }


def reward(*, exact: bool = False, legacy: bool = False) -> pt.Reward:
    """The sum of the terms, in [0, 3.75], for tasks whose truth is the label."""

    def grade(rollout: pt.Rollout) -> pt.Score:
        parts = terms(whole_reply(rollout), rollout.task.truth, exact=exact, legacy=legacy)
        return pt.Score(sum(parts.values()), parts)

    return pt.each(grade)


def evaluation() -> pt.Reward:
    """The label stands in what follows the last </think>: 0 or 1."""
    return pt.each(lambda rollout: rollout.task.truth.lower() in answer_of(whole_reply(rollout)).lower())
