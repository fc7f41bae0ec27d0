"""How good a detector is: AP and AR as COCO has them, MR^-2 as pedestrian detection has it, precision, recall and F1.

Replies have no confidence. With one reply to a picture every box has the same, so that AP depends on the order of the
pictures and MR^-2 knows a single threshold. With several, a box is a region that some of them hold, and its confidence
is the share that do.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from posttrain.systems.dip_r1.frames import Truth
from posttrain.systems.dip_r1.look import regions
from posttrain.systems.dip_r1.match import THRESHOLDS, as_array, counts, iou, pooled, share_inside
from posttrain.systems.dip_r1.reply import Stated

MOST = 100  # boxes of a picture that AP and AR look at, those of the highest confidence (COCO's)
RECALLS = np.linspace(0, 1, 101)
FPPI = np.logspace(-2, 0, 9)  # false positives per picture, at which the miss rate is averaged
COLUMNS = ("pictures", "precision", "recall", "F1", "AP50", "AP", "AR", "MR-2", "unparsable")


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """Of one picture: boxes [P, 4] with their confidence [P], true boxes [G, 4] and ignored regions [R, 4]."""

    boxes: np.ndarray
    confidence: np.ndarray
    wanted: np.ndarray
    ignored: np.ndarray


def detections(said: Sequence[Stated | None], truth: Truth, threshold: float = 0.5) -> Detections:
    """Of the replies to one picture: a single one's boxes, of confidence 1, or what several hold, with their share."""
    answers = [one.boxes if one else () for one in said]
    if len(answers) == 1:
        boxes = as_array(answers[0])
        confidence = np.ones(len(boxes))
    else:
        boxes = regions(answers, (), threshold)
        held = [(iou(as_array(one), boxes) >= threshold).any(0) for one in answers]
        confidence = np.mean(held, 0)
    return Detections(boxes, confidence, as_array(truth.boxes), as_array(truth.ignored))


def verdicts(one: Detections, threshold: float, most: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Confidence and verdict (1 right, 0 wrong) of every box that counts, the highest confidence first.

    Each box takes the free true box of the largest IoU, of equals the last, as pycocotools does. One without any that
    lies in an ignored region by `threshold` of its area does not count.
    """
    order = np.argsort(-one.confidence, kind="stable")[:most]
    boxes, confidence = one.boxes[order], one.confidence[order]
    found = iou(boxes, one.wanted)
    ignored = (share_inside(boxes, one.ignored) >= threshold).any(1)
    free, right = np.ones(len(one.wanted), bool), np.zeros(len(boxes), bool)
    for p in range(len(boxes)):
        open_ = np.where(free, found[p], -1.0)
        if len(open_) and open_.max() >= threshold:
            g = len(open_) - 1 - int(open_[::-1].argmax())
            free[g], right[p] = False, True
    counted = right | ~ignored
    return confidence[counted], right[counted]


def precision_and_recall(found: Sequence[Detections], threshold: float) -> tuple[float, float]:
    """AP and AR at one IoU: the mean of the interpolated precision at 101 recalls, and the recall of all boxes."""
    some = [verdicts(one, threshold, MOST) for one in found]
    confidence = np.concatenate([np.zeros(0), *(c for c, _ in some)])
    right = np.concatenate([np.zeros(0, bool), *(r for _, r in some)])
    right = right[np.argsort(-confidence, kind="stable")]
    if not len(right):
        return 0.0, 0.0
    hits = right.cumsum()
    recall = hits / sum(len(one.wanted) for one in found)
    precision = np.maximum.accumulate((hits / np.arange(1, len(right) + 1))[::-1])[::-1]
    at = np.searchsorted(recall, RECALLS, side="left")
    return float(np.append(precision, 0.0)[at].mean()), float(recall[-1])


def own_average_precision(found: Sequence[Detections]) -> dict[str, float]:
    """AP50, AP and AR, as pycocotools has them."""
    pairs = [precision_and_recall(found, threshold) for threshold in THRESHOLDS]
    ap, ar = zip(*pairs, strict=True)
    return {"AP50": ap[0], "AP": float(np.mean(ap)), "AR": float(np.mean(ar))}


def coco_average_precision(found: Sequence[Detections]) -> dict[str, float]:
    """The same by pycocotools."""
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        judge = COCOeval(coco_set(found, True), coco_set(found, False), "bbox")
        judge.params.areaRng, judge.params.areaRngLbl, judge.params.maxDets = [[0, math.inf]], ["all"], [MOST]
        judge.evaluate()
        judge.accumulate()
    precision, recall = judge.eval["precision"], judge.eval["recall"]
    return {"AP50": float(precision[0].mean()), "AP": float(precision.mean()), "AR": float(recall.mean())}


def coco_set(found: Sequence[Detections], wanted: bool) -> Any:
    """A COCO object of what is wanted, or of what was found."""
    from pycocotools.coco import COCO

    rows: list[dict[str, Any]] = []
    for number, one in enumerate(found, 1):
        kinds = [(one.wanted, 0), (one.ignored, 1)] if wanted else [(one.boxes, 0)]
        for boxes, crowd in kinds:
            for k, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
                row = {"image_id": number, "category_id": 1, "iscrowd": crowd, "id": len(rows) + 1}
                row |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
                rows.append(row if wanted else row | {"score": float(one.confidence[k])})
    out: Any = COCO()
    images = [{"id": number} for number in range(1, len(found) + 1)]
    out.dataset = {"images": images, "categories": [{"id": 1}], "annotations": rows}
    out.createIndex()
    return out


def average_precision(found: Sequence[Detections]) -> dict[str, float]:
    """AP50, AP (mean over IoU 0.5 to 0.95) and AR, of at most 100 boxes a picture; by pycocotools if it is there."""
    try:
        import pycocotools  # noqa: F401
    except ImportError:
        return own_average_precision(found)
    return coco_average_precision(found)


def log_average_miss_rate(found: Sequence[Detections], threshold: float = 0.5) -> float:
    """MR^-2: the geometric mean of the miss rate at 9 rates of false positives per picture, 0.01 to 1 (Dollar et al.
    2012, "Pedestrian Detection: An Evaluation of the State of the Art").

    At each the miss rate is that of the lowest threshold of confidence with no more false positives, or 1 if there is
    none. Boxes of equal confidence are above a threshold together.
    """
    some = [verdicts(one, threshold) for one in found]
    confidence = np.concatenate([np.zeros(0), *(c for c, _ in some)])
    right = np.concatenate([np.zeros(0, bool), *(r for _, r in some)])
    wanted, least = sum(len(one.wanted) for one in found), 1e-10  # of a miss rate whose logarithm is taken
    rates = []
    for most in FPPI:
        missed = 1.0
        for at in np.unique(confidence):
            above = confidence >= at
            if (above & ~right).sum() / len(found) <= most:
                missed = 1 - (above & right).sum() / wanted
                break  # the lowest that will do finds the most
        rates.append(max(float(missed), least))
    return math.exp(float(np.mean(np.log(rates))))


def measures_of(said: Sequence[Sequence[Stated | None]], truths: Sequence[Truth]) -> dict[str, float]:
    """Of the replies [P][G] to pictures: precision, recall and F1 at IoU 0.5 of all boxes of all replies together.

    Raises ValueError when there is nothing to be found in all of the pictures.
    """
    if not any(truth.boxes for truth in truths):
        raise ValueError("there is nothing to be found in these pictures, so that AP and recall mean nothing")
    pairs = [(one, truth) for replies, truth in zip(said, truths, strict=True) for one in replies]
    total = pooled(counts(one.boxes if one else (), truth.boxes, truth.ignored, 0.5) for one, truth in pairs)
    found = [detections(replies, truth) for replies, truth in zip(said, truths, strict=True)]
    return {
        "pictures": float(len(truths)),
        "precision": total.precision,
        "recall": total.recall,
        "F1": total.f(),
        **average_precision(found),
        "MR-2": log_average_miss_rate(found),
        "unparsable": sum(one is None for one, _ in pairs) / len(pairs),
    }


def as_table(measures: Mapping[str, Mapping[str, float]]) -> list[str]:
    """A line for each file."""
    width = max(map(len, ["file", *measures]))
    lines = [f"{'file':{width}}  {'  '.join(f'{name:>10}' for name in COLUMNS)}"]
    for name, row in measures.items():
        cells = (f"{row[column]:.0f}" if column == "pictures" else f"{row[column]:.3f}" for column in COLUMNS)
        lines.append(f"{name:{width}}  {'  '.join(f'{cell:>10}' for cell in cells)}")
    return lines
