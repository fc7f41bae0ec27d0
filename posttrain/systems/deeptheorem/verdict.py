"""The reward: is the verdict right? Five checks in this order, the first that ends it decides (DeepTheorem, released).

1. The template is parroted: "reasoning process" in a text of fewer than 90 characters.
2. It talks to itself: `User:`, `Assistant:`, or the instruction of the prompt.
3. It is crammed (spaces and newlines under 5 % of the characters) or repeats itself (more than 300 characters for each
   different one).
4. After the last `</think>`, the last `<answer>` that holds a `\\box{}` is read; without one there is no verdict.
5. Its text, without punctuation, is compared with proved or disproved.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import posttrain as pt
from posttrain.grade.verify import last_box

INSTRUCTION = 'If you prove the statement, answer with "proved"'
SHORT, LEAST_SPACE, MOST_REPEATED = 90, 0.05, 300
ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
DROPPED = str.maketrans("", "", "\n\t .,$\\!?#%^&_+-={}")
Ending = Literal["empty", "parroted", "dialogue", "crammed", "repeated", "unanswered", "judged"]
CHECKS: tuple[Ending, ...] = ("empty", "parroted", "dialogue", "crammed", "repeated", "unanswered")


class Statement(Protocol):
    """The truth of a task: which theorem the statement belongs to, and whether it holds."""

    @property
    def theorem(self) -> str: ...
    @property
    def holds(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a reply says of a statement, and which check ended the reading."""

    said: str | None  # "proved", "disproved", or what else is in the box, normalised; None: nothing counts
    ended: Ending

    def score(self, holds: bool) -> pt.Score:
        """1 for the right verdict. The parts: which check ended it, and whether it says "proved"."""
        parts = {name: float(name == self.ended) for name in CHECKS}
        return pt.Score(float(self.said == verdict_word(holds)), {**parts, "proved": float(self.said == "proved")})


def verdict_word(holds: bool) -> str:
    return "proved" if holds else "disproved"


def refusal(text: str, least: int = 1) -> Ending | None:
    """The first of the checks 1 to 3 that a text does not pass. Texts under `least` characters may be one word."""
    if not text:
        return "empty"  # the release divides by its length
    if "reasoning process" in text and len(text) < SHORT:
        return "parroted"
    if any(mark in text for mark in ("User:", "Assistant:", INSTRUCTION)):
        return "dialogue"
    if len(text) >= least and (text.count(" ") + text.count("\n")) / len(text) < LEAST_SPACE:
        return "crammed"
    return "repeated" if len(text) / len(set(text)) > MOST_REPEATED else None


def verdict(text: str) -> Verdict:
    """The verdict of a completion, whose opening `<think>` stands in the prompt."""
    ended = refusal(text)
    if ended:
        return Verdict(None, ended)
    answers = [boxed for boxed in map(last_box, ANSWER.findall(text.rpartition("</think>")[2])) if boxed is not None]
    return Verdict(normal(answers[-1]), "judged") if answers else Verdict(None, "unanswered")


def normal(text: str) -> str:
    """Without space and punctuation, without a leading `text` (of `\\text{}`), in lower case."""
    return text.translate(DROPPED).removeprefix("text").lower()


def lenient_verdict(text: str) -> str | None:
    """The verdict as the released evaluation reads it: a box anywhere in the text, and "proved" wins over both."""
    lower = text.lower()
    for word in ("proved", "disproved"):
        if f"\\boxed{{{word}}}" in lower or f"\\boxed{{\\text{{{word}}}}}" in lower:
            return word
    return None


def right(rollout: pt.Rollout) -> pt.Score:
    """The reward of a reply to a statement: the task's truth has `theorem` and `holds`."""
    return verdict(rollout.text).score(rollout.task.truth.holds)


def guard(reward: pt.Reward, least: int = 20) -> pt.Reward:
    """Another reward behind the checks 1 to 3: nothing for what they refuse. Shorter texts may be one word."""

    def wrapped(group: pt.Group) -> list[pt.Score | pt.Invalid]:
        out: list[pt.Score | pt.Invalid] = []
        for rollout, score in zip(group, pt.group_scores(reward, group), strict=True):
            if isinstance(score, pt.Score):
                bad = refusal(rollout.text, least) is not None
                score = replace(score, value=0.0 if bad else score.value, parts={**score.parts, "refused": float(bad)})
            out.append(score)
        return out

    return wrapped
