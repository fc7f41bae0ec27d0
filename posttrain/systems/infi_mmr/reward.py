r"""The reward: R = w_format R_format + w_accuracy R_accuracy.

The form is `<think>...</think>` and behind it exactly one \boxed{}; the accuracy is that of the last box behind the
thinking, by the type of the answer. The sum and its terms are the paper's, the weights and the form ours.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import posttrain as pt
from posttrain.chat import without_thinking
from posttrain.grade.stated import boxes_in, whole_reply
from posttrain.grade.verify import last_box
from posttrain.systems.infi_mmr.answers import is_right

FORM = re.compile(r"\s*<think>(?:(?!</?think>).)*</think>((?:(?!</?think>).)*)", re.DOTALL)
OPEN = r"\boxed"
LONGEST = 1_000  # characters of an answer; reading a longer one as mathematics takes seconds


@dataclass(frozen=True)
class Weights:
    """Of the reward's two terms."""

    format_weight: float = 0.1
    """Of the form."""
    accuracy_weight: float = 0.9
    """Of the right answer."""

    def __post_init__(self):
        pt.at_least(0, format_weight=self.format_weight, accuracy_weight=self.accuracy_weight)


PLAIN = Weights()


def reward(weights: Weights = PLAIN) -> pt.Reward:
    """The reward of tasks whose truth is an `Answer`; parts: format and accuracy, before their weights."""

    def grade(rollout: pt.Rollout) -> pt.Score | pt.Invalid:
        right = accuracy(rollout)
        if isinstance(right, pt.Invalid):
            return right
        form = is_in_form(rollout)
        value = weights.format_weight * form + weights.accuracy_weight * right
        return pt.Score(value, {"format": float(form), "accuracy": float(right)})

    return pt.each(grade)


def evaluation() -> pt.Reward:
    """The right answer alone, in {0, 1}."""
    return pt.each(accuracy)


def is_in_form(rollout: pt.Rollout) -> bool:
    """Thinking in its tags, once, and behind it exactly one box, which is closed."""
    found = FORM.fullmatch(whole_reply(rollout))
    return found is not None and found[1].count(OPEN) == 1 and len(boxes_in(found[1])) == 1


def accuracy(rollout: pt.Rollout) -> bool | pt.Invalid:
    """Whether the last box behind the thinking holds the answer."""
    said = boxed_answer(whole_reply(rollout))
    return is_right(said, rollout.task.truth)


def boxed_answer(text: str) -> str | None:
    """The content of the last box behind the thinking; None without one."""
    found = last_box(without_thinking(text))
    return found if found is not None and len(found) <= LONGEST else None
