"""Rewards that compare text."""

from __future__ import annotations

import json as standard_json
import re
import unicodedata
from typing import Any

from posttrain.core import Rollout, Task
from posttrain.reward import each

CHOICE = re.compile(
    r"\\boxed\{\\?(?:text\{)?\(?([A-Z])\)?\}?\}|\b(?i:answer|choice|option)\b\W{0,8}(?:(?i:is)\W{0,4})?\(?([A-Z])\b"
)
LONE_LETTER = re.compile(r"(?<![\w'])\(?([A-Z])\)?(?![\w'])")
FENCE = re.compile(r"```(?:json)?\s*(.*?)```", re.DOTALL)


def normal_text(text: str) -> str:
    """Text without case, outer punctuation and surplus space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).strip(" .,;:!?\"'")


def final_answer(text: str) -> str:
    """What follows the last answer mark (`####`, `Answer:`, `</think>`), or all of the text."""
    return re.split(r"####|(?i:\banswer\s*:)|</think>", text)[-1]


def truth_text(task: Task, grade: str) -> str:
    """The task's truth. Raises ValueError for one that is neither text nor a number, and which no reply would equal."""
    if isinstance(task.truth, str | int | float):
        return str(task.truth)
    raise ValueError(
        f"task {task.key!r}: `grade={grade}` compares with text or a number, not with {str(task.truth)[:80]!r}; "
        "name the column of the answers by `answer`, as outer.inner where it is inside of an object"
    )


def is_exact(rollout: Rollout) -> float:
    return float(
        normal_text(final_answer(rollout.text)) == normal_text(final_answer(truth_text(rollout.task, "exact")))
    )


def is_contained(rollout: Rollout) -> float:
    truth = re.escape(normal_text(truth_text(rollout.task, "contains")))
    return float(re.search(rf"(?<!\w){truth}(?!\w)", normal_text(rollout.text)) is not None)


def chosen_letter(text: str) -> str | None:
    """The letter a reply settles on: boxed or announced if it is, else the last letter that stands alone."""
    marked = [a or b for a, b in CHOICE.findall(text)]
    alone = marked or LONE_LETTER.findall(final_answer(text))
    return alone[-1] if alone else None


def is_choice(rollout: Rollout) -> float:
    truth = str(rollout.task.truth).strip().strip("().")
    if not re.fullmatch(r"[A-Za-z]", truth):
        raise ValueError(f"task {rollout.task.key!r}: `grade=choice` needs one letter as the answer, not {truth!r}")
    return float(chosen_letter(rollout.text) == truth.upper())


def parse_json(text: str) -> Any:
    """The JSON value in a reply: the last fenced block, or the whole text. Raises ValueError when it is none."""
    fenced = FENCE.findall(text)
    return standard_json.loads(fenced[-1] if fenced else text)


def is_json(rollout: Rollout) -> float:
    """1 when the reply is JSON equal to the truth (objects without regard to order)."""
    truth = rollout.task.truth
    if isinstance(truth, str):
        try:
            truth = standard_json.loads(truth)
        except ValueError as error:
            raise ValueError(f"task {rollout.task.key!r}: `grade=json` cannot read its answer {truth!r}") from error
    try:
        return float(parse_json(rollout.text) == truth)
    except (ValueError, RecursionError):
        return 0.0


exact = each(is_exact)
contains = each(is_contained)
choice = each(is_choice)
json = each(is_json)
