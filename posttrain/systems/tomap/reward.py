"""What a turn of Alice's earns: the change of Bob's mind, and 0.1 times how she put it.

total = persuasion + 0.1 (tag + format + repetition + overlength), paid at the turn's last token
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import posttrain as pt
from posttrain.systems.tomap.dialogue import TAGS, Dialogue, argument, well_formed

TOP, BOTTOM = 0.999, 0.001  # beyond which there is nothing to be gained, or lost
ALLOWED = 0.1  # share of n-grams that may be repeated


@dataclass(frozen=True, slots=True)
class Weights:
    """The switches of the reward, as published.

    style          of tag, format, repetition and overlength
    final          share of persuasion that is the whole dialogue's, for every turn (`global_factor`)
    power          of the change, whose sign is kept (`curve_exp`; as released, a loss to a power is not a real number)
    keep_negative  losses count
    width          words of an n-gram
    most           tokens of an argument that cost nothing
    """

    style: float = 0.1
    final: float = 0.0
    power: float = 1.0
    keep_negative: bool = True
    width: int = 8
    most: int = 200


PUBLISHED = Weights()


def change(old: float, new: float, power: float = 1.0) -> float:
    """How much of what was left of Bob's disagreement is gone, or how much of his agreement: in [-1, 1]."""
    if new > old:
        return 1.0 if old > TOP else ((new - old) / (1 - old)) ** power
    return 0.0 if old < BOTTOM or new == old else -(((old - new) / old) ** power)


def persuasion(stances: Sequence[float], weights: Weights = PUBLISHED) -> list[float]:
    """[T] of the stances before the first turn and after every round, [T + 1]."""
    whole = change(stances[0], stances[-1], weights.power)
    found = [
        (1 - weights.final) * change(old, new, weights.power) + weights.final * whole for old, new in pairwise(stances)
    ]
    return found if weights.keep_negative else [max(x, 0.0) for x in found]


def tagged(text: str) -> float:
    """A quarter for each of the four tags that occurs exactly once."""
    return sum(text.count(tag) == 1 for tag in TAGS) / len(TAGS)


def repeated(text: str, earlier: Sequence[str], width: int = 8) -> float:
    """tau: the share of n-grams that earlier arguments have, or that the argument itself has had; the larger one."""
    own = grams(text, width)
    if not own:
        return 0.0
    before = {gram for one in earlier for gram in grams(one, width)}
    return max(sum(gram in before for gram in own) / len(own), 1 - len(set(own)) / len(own))


def grams(text: str, width: int) -> list[tuple[str, ...]]:
    words = text.lower().split()
    return [tuple(words[i : i + width]) for i in range(len(words) - width + 1)]


def overlong(length: int, most: int = 200) -> float:
    """0 to -1: the paper's description has -0.5 at most, the release -1."""
    return -min(1.0, 2 * max(length - most, 0) / most)


def style(text: str, earlier: Sequence[str], length: int, weights: Weights = PUBLISHED) -> dict[str, float]:
    """The parts of a turn that have nothing to do with Bob."""
    return {
        "tag": tagged(text),
        "format": float(well_formed(text)),
        "repetition": min(0.0, ALLOWED - repeated(argument(text), earlier, weights.width)),
        "overlength": overlong(length, weights.most),
    }


def reward(weights: Weights = PUBLISHED) -> pt.Reward:
    """A score of every turn. Parts are means over turns, and the `shift` of the dialogue in hundredths."""

    def grade(rollout: pt.Rollout) -> pt.Score:
        found: Dialogue = rollout.facts
        texts = [str(turn.reply.content) for turn in rollout.turns]
        said = [argument(text) for text in texts]
        turns = [
            {"persuasion": gained} | style(text, said[:t], length, weights)
            for t, (text, length, gained) in enumerate(
                zip(texts, found.lengths, persuasion(found.stances, weights), strict=True)
            )
        ]
        earned = tuple(
            one["persuasion"] + weights.style * sum(one[name] for name in one if name != "persuasion") for one in turns
        )
        parts = {name: statistics.fmean(one[name] for one in turns) for name in turns[0]}
        return pt.Score(statistics.fmean(earned), parts | {"shift": 100 * found.shift}, turns=earned)

    return pt.each(grade)


def validation(weights: Weights = PUBLISHED) -> pt.Reward:
    """The agreement shift in hundredths, S at the end less S at the beginning: what is reported.

    Parts are those of `reward`, which is what training sees, as `relative`.
    """
    training = reward(weights)

    def graded(group: pt.Group) -> list[pt.Score]:
        marks = [score for score in training(group) if isinstance(score, pt.Score)]
        return [pt.Score(score.parts["shift"], {**score.parts, "relative": score.value}) for score in marks]

    return graded
