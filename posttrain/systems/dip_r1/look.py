"""The variance-guided reward for looking: regions on which a group's answers disagree are those to be looked at.

For a region c, with f the share of the group's answers that hold a box matching c, and o the best IoU of each answer
with c, the uncertainty is

    frequency   u(c) = 4 f (1 - f)
    iou         u(c) = 4 Var(o)
    uniform     u(c) = 1: every region is worth a look, a control

For the looks L of a reply a is the mean of what they uncover and b the share of all uncertainty that they uncover,
a = sum u(covered) / |L|, b = sum u(covered) / sum u, and the reward is 2 a b / (a + b).
The paper's formulas are not public where we looked; all of this is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from posttrain.systems.dip_r1.frames import Box
from posttrain.systems.dip_r1.match import as_array, iou, matching

Variance = Literal["frequency", "iou", "uniform"]
CERTAIN = 1e-9  # uncertainty of a whole group at most; 0 but for rounding


def regions(answers: Sequence[Sequence[Box]], wanted: Sequence[Box], threshold: float) -> np.ndarray:
    """[C, 4] what a group's answers and the truth speak of: every true box, then boxes that match none of these.

    A box stands for those that it matches; the next one is the box that matches most of what is left, of several the
    first by its coordinates. The order of the answers does not count.
    """
    found = as_array(sorted(set(wanted)))
    left = as_array(sorted(box for boxes in answers for box in boxes))
    left = left[(left[:, 2:] > left[:, :2]).all(1)]  # one that lay outside of the picture is no region
    left = left[~(iou(left, found) >= threshold).any(1)]
    match = iou(left, left) >= threshold  # [N, N]
    free, support = np.ones(len(left), bool), match.sum(1)
    chosen = []
    while free.any():
        chosen.append(int(np.where(free, support, -1).argmax()))
        gone = match[chosen[-1]] & free
        free, support = free & ~gone, support - match[:, gone].sum(1)
    return np.concatenate([found, left[chosen]])


def uncertainty(
    answers: Sequence[Sequence[Box]], places: np.ndarray, variance: Variance, threshold: float
) -> np.ndarray:
    """[C] in [0, 1], of the regions [C, 4]; nothing is uncertain to fewer than two answers, unless it is `uniform`."""
    if variance == "uniform":
        return np.ones(len(places))
    if len(answers) < 2:
        return np.zeros(len(places))
    best = np.stack([iou(as_array(boxes), places).max(0, initial=0.0) for boxes in answers])  # [answers, C]
    if variance == "iou":
        return 4 * best.var(0)
    share = (best >= threshold).mean(0)
    return 4 * share * (1 - share)


def look_reward(looks: Sequence[Box], places: np.ndarray, uncertain: np.ndarray, threshold: float) -> float:
    """Of one reply, from the regions [C, 4] and their uncertainties [C].

    A region is covered by one look: a second one at it uncovers nothing and counts in |L|, as else a list could be
    lengthened by repeating its best look. Where nothing is uncertain, 1 for no look and 0 for any.
    """
    whole = float(uncertain.sum())
    if whole <= CERTAIN:
        return float(not looks)
    if not looks:
        return 0.0
    covered = sum(float(uncertain[c]) for _, c in matching(iou(as_array(looks), places), threshold))
    a, b = covered / len(looks), covered / whole
    return 2 * a * b / (a + b) if covered else 0.0
