"""The reward of a group of replies: form, precision and recall, and looks at what the group disagrees on.

    R = accuracy + 0.5 format + 0.5 look,  accuracy = 0.5 P + 0.5 R

An unparsable reply earns nothing, and has no voice in what its group disagrees on.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import posttrain as pt
from posttrain.systems.dip_r1.frames import Box, Truth
from posttrain.systems.dip_r1.look import Variance, look_reward, regions, uncertainty
from posttrain.systems.dip_r1.match import THRESHOLDS, counts
from posttrain.systems.dip_r1.reply import Reader, Stated, read_loosely, read_strictly


@dataclass(frozen=True)
class Weights:
    """What is paid for."""

    accuracy_weight: float = 1.0
    """Of precision and recall."""
    format_weight: float = 0.5
    """Of three blocks in order with two lists of boxes."""
    look_weight: float = 0.5
    """Of looks at what the group disagrees on; 0 pays for none, and they are measured all the same."""
    precision_weight: float = 0.5
    """Of precision in the accuracy."""
    recall_weight: float = 0.5
    """Of recall in the accuracy; in crowds 0.6, with 0.4 for precision."""
    f_beta: float | None = None
    """Pay F-beta in the place of the weighted sum: recall counts so many times as much as precision."""
    iou: float = 0.5
    """At which two boxes match."""
    mean_iou: bool = False
    """Pay the mean over matches at 0.5, 0.55, ..., 0.95 in the place of `iou`."""
    variance: Variance = "frequency"
    """What is uncertain: what some answers hold and others do not, the spread of their best IoU, or all alike."""
    truth_only: bool = False
    """Only true boxes are regions to look at; else boxes that an answer made up are too."""

    def __post_init__(self):
        weights = ("accuracy_weight", "format_weight", "look_weight", "precision_weight", "recall_weight")
        pt.at_least(0, **{name: getattr(self, name) for name in weights})
        if self.f_beta is not None and not self.f_beta > 0:
            raise ValueError(f"`f_beta={self.f_beta}`: it must be above 0")
        if not 0 < self.iou <= 1:
            raise ValueError(f"`iou={self.iou}`: it must be above 0, and at most 1")

    def accuracy(self, boxes: Sequence[Box], truth: Truth) -> float:
        """Of the boxes of one answer."""
        found = [
            counts(boxes, truth.boxes, truth.ignored, threshold)
            for threshold in (THRESHOLDS if self.mean_iou else (self.iou,))
        ]
        if self.f_beta is not None:
            return statistics.fmean(one.f(self.f_beta) for one in found)
        return statistics.fmean(
            self.precision_weight * one.precision + self.recall_weight * one.recall for one in found
        )


def reward(weights: Weights = Weights(), read: Reader = read_strictly) -> pt.Reward:
    """Parts: format, accuracy, look, precision, recall (both at `iou`), looks (how many), uncertain (of the group).

    read  what a reply states
    """

    def of_group(group: pt.Group) -> list[pt.Score]:
        truth: Truth = group[0].task.truth
        said = [read(rollout) for rollout in group]
        answers = [one.boxes for one in said if one]
        voices = () if weights.truth_only else answers
        places = regions(voices, truth.boxes, weights.iou)
        uncertain = uncertainty(answers, places, weights.variance, weights.iou)
        shared = {"uncertain": float(uncertain.sum())}

        def score(one: Stated | None) -> pt.Score:
            if one is None:
                names = ("format", "accuracy", "look", "precision", "recall", "looks")
                return pt.Score(0.0, dict.fromkeys(names, 0.0) | shared)
            at_iou = counts(one.boxes, truth.boxes, truth.ignored, weights.iou)
            paid = {
                "format": 1.0,
                "accuracy": weights.accuracy(one.boxes, truth),
                "look": look_reward(one.looks, places, uncertain, weights.iou),
            }
            value = sum(getattr(weights, f"{name}_weight") * part for name, part in paid.items())
            more = {"precision": at_iou.precision, "recall": at_iou.recall, "looks": float(len(one.looks))}
            return pt.Score(value, paid | more | shared)

        return [score(one) for one in said]

    return of_group


def evaluation(read: Reader = read_loosely, iou: float = 0.5) -> pt.Reward:
    """F1 of the answer's boxes; what cannot be read has none."""

    def f1(rollout: pt.Rollout) -> float:
        said, truth = read(rollout), rollout.task.truth
        return counts(said.boxes, truth.boxes, truth.ignored, iou).f() if said else 0.0

    return pt.each(f1)
