"""The composite reward: accuracy, length for the task, words of reasoning, repetition.

R = a r_acc + g (l r_len + s r_str) - r r_rep,   g = r_acc, or 1 where it is not gated;   -0.5 of what is unparseable

The four terms are the paper's; their formulas and weights are not public, and these are ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import posttrain as pt
from posttrain.grade.stated import whole_reply
from posttrain.systems.emotion_o1.lengths import Bands, Tokens
from posttrain.systems.emotion_o1.reply import loose_label, stated, structure

UNPARSEABLE = -0.5
WIDTH = 4  # tokens of an n-gram
PARTS: tuple[str, ...] = ("accuracy", "length", "structure", "redundancy", "chain", "parsed")


@dataclass(frozen=True)
class Truth:
    """Of an utterance: the task, its label, and the labels of the task."""

    task: str
    label: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Weights:
    """Of the reward's terms; 0 leaves one out."""

    accuracy_weight: float = 1.0
    """Of the right label."""
    length_weight: float = 0.3
    """Of a length within the band of the task."""
    structure_weight: float = 0.1
    """Of words of reasoning, of two classes at least."""
    redundancy_weight: float = 0.1
    """Of the share of 4-grams that are repeated, which is taken off. Legitimate chains repeat too: keep it low."""
    ungated: bool = False
    """Pay length and words of reasoning for wrong labels too."""

    def __post_init__(self):
        weights = {name: value for name, value in vars(self).items() if name != "ungated"}
        pt.at_least(0, **weights)


ALL_TERMS = Weights()


def reward(bands: Bands, tokens: Tokens, weights: Weights = ALL_TERMS) -> pt.Reward:
    """The reward of tasks whose truth is a `Truth`; lengths are those of the chain alone, in `tokens`.

    Parts: accuracy, length, structure and redundancy before their weights, `chain` in tokens, `parsed`.
    Raises ValueError for a task without a band, unless the length has no weight.
    """

    def grade(rollout: pt.Rollout) -> pt.Score:
        truth = rollout.task.truth
        if truth.task not in bands and weights.length_weight:
            raise ValueError(f"the task {truth.task!r} has no band of lengths, only {', '.join(bands) or 'none'}")
        said = stated(whole_reply(rollout), truth.labels)
        if said is None:
            return pt.Score(UNPARSEABLE, dict.fromkeys(PARTS, 0.0))
        chain = tokens(said.chain)
        parts = {
            "accuracy": float(said.label == truth.label),
            "length": bands[truth.task].closeness(len(chain)) if truth.task in bands else 0.0,
            "structure": structure(said.chain),
            "redundancy": pt.measure.repetition(chain, WIDTH),
            "chain": float(len(chain)),
            "parsed": 1.0,
        }
        return pt.Score(combined(parts, weights), parts)

    return pt.each(grade)


def combined(parts: dict[str, float], weights: Weights) -> float:
    gate = 1.0 if weights.ungated else parts["accuracy"]
    shape = weights.length_weight * parts["length"] + weights.structure_weight * parts["structure"]
    return weights.accuracy_weight * parts["accuracy"] + gate * shape - weights.redundancy_weight * parts["redundancy"]


def evaluation() -> pt.Reward:
    """The right label, read loosely, in {0, 1}: form is not paid, so that an untrained model is not undersold."""
    return pt.each(
        lambda rollout: loose_label(whole_reply(rollout), rollout.task.truth.labels) == rollout.task.truth.label
    )
