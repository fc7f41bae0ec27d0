"""Boxes against boxes: IoU, the matching of an answer with the truth, precision, recall and F-beta."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from posttrain.systems.dip_r1.frames import Box

THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())  # of IoU, as COCO averages over


def as_array(boxes: Sequence[Box]) -> np.ndarray:
    """[P, 4] float64, also of no boxes."""
    return np.asarray(boxes, dtype=np.float64).reshape(-1, 4)


def areas(boxes: np.ndarray) -> np.ndarray:
    """[P]."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[P, 4], [G, 4] -> [P, G] areas of the intersections."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    return np.clip(high - low, 0, None).prod(-1)


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[P, 4], [G, 4] -> [P, G] intersection over union; 0 for a box without area."""
    shared = overlaps(a, b)
    union = areas(a)[:, None] + areas(b)[None, :] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def share_inside(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[P, 4], [R, 4] -> [P, R] the share of each box's own area that lies in each region."""
    shared, own = overlaps(a, b), areas(a)[:, None]
    return np.divide(shared, own, out=np.zeros_like(shared), where=own > 0)


def matching(found: np.ndarray, threshold: float) -> list[tuple[int, int]]:
    """The pairs of a matching [P, G] of IoUs: as many as can be at this IoU or more, then those of the largest IoU.

    The Hungarian method (scipy). Maximising the IoU alone may give up a pair that counts for one that does not.
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise ValueError("matching boxes needs the extra: pip install 'posttrain[detection]'") from error
    gain = np.where(found >= threshold, 1 + found / (min(found.shape, default=0) + 1), 0.0)
    rows, columns = linear_sum_assignment(gain, maximize=True)
    return [(int(p), int(g)) for p, g in zip(rows, columns, strict=True) if found[p, g] >= threshold]


@dataclass(frozen=True, slots=True)
class Counts:
    """Boxes of answers that are right, those that were given, and those that were wanted."""

    right: int
    given: int
    wanted: int

    @property
    def precision(self) -> float:
        """Of no given boxes 0, or 1 where none was wanted either."""
        return self.right / self.given if self.given else float(not self.wanted)

    @property
    def recall(self) -> float:
        """Of no wanted boxes 0, or 1 where none was given either."""
        return self.right / self.wanted if self.wanted else float(not self.given)

    def f(self, beta: float = 1.0) -> float:
        """F-beta = (1 + beta^2) P R / (beta^2 P + R): recall counts beta times as much as precision."""
        below = beta**2 * self.precision + self.recall
        return (1 + beta**2) * self.precision * self.recall / below if below else 0.0


def counts(boxes: Sequence[Box], wanted: Sequence[Box], ignored: Sequence[Box], threshold: float) -> Counts:
    """Of one picture. A box without a match that lies in an ignored region by at least `threshold` does not count."""
    given = as_array(boxes)
    pairs = matching(iou(given, as_array(wanted)), threshold)
    inside = np.any(share_inside(given, as_array(ignored)) >= threshold, axis=1)
    matched = {p for p, _ in pairs}
    left_out = sum(p not in matched for p in np.flatnonzero(inside).tolist())
    return Counts(len(pairs), len(given) - left_out, len(wanted))


def pooled(found: Iterable[Counts]) -> Counts:
    """Of several pictures together."""
    rows = list(found)
    return Counts(sum(one.right for one in rows), sum(one.given for one in rows), sum(one.wanted for one in rows))
