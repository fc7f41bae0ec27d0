"""What a reply states: `<think>...</think><look>[...]</look><answer>[...]</answer>`, and the boxes in its lists.

<look>[{"bbox_2d": [10, 20, 30, 60]}]</look><answer>[{"bbox_2d": [10, 20, 30, 60], "label": "person"}]</answer>
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import posttrain as pt
from posttrain.grade.stated import whole_reply
from posttrain.grade.structured import parse_json
from posttrain.grade.text import pieces_between
from posttrain.systems.dip_r1.frames import Box, Frame

TAGS = ("<think>", "</think>", "<look>", "</look>", "<answer>", "</answer>")


@dataclass(frozen=True, slots=True)
class Stated:
    """The boxes to be looked at, and those of the answer."""

    looks: tuple[Box, ...]
    boxes: tuple[Box, ...]

    def in_picture(self, frame: Frame) -> Stated:
        """From a reply's coordinates to pixels, cut at the picture's edges: what lies outside keeps no area."""
        looks, boxes = (tuple(frame.clip(frame.to_picture(box)) for box in some) for some in (self.looks, self.boxes))
        return Stated(looks, boxes)


Reader: TypeAlias = Callable[[pt.Rollout], Stated | None]  # boxes in pixels of the picture; None: unparsable


def read_strictly(rollout: pt.Rollout) -> Stated | None:
    """What the reward reads, of a task whose truth is a `Truth`."""
    found = stated(whole_reply(rollout))
    return found and found.in_picture(rollout.task.truth.frame)


def read_loosely(rollout: pt.Rollout) -> Stated | None:
    """For evaluation, of models that were not taught the form: the last answer block, or the last list, is enough."""
    text = whole_reply(rollout)
    found = stated(text)
    if found is None:
        answer = text.rpartition("<answer>")[2].partition("</answer>")[0]
        try:
            boxes = boxes_in(parse_json(answer))
        except (ValueError, RecursionError, OverflowError):
            boxes = None
        found = None if boxes is None else Stated((), boxes)
    return found and found.in_picture(rollout.task.truth.frame)


def stated(text: str) -> Stated | None:
    """What a whole reply states, in its own coordinates; None for one that is unparsable.

    It has each block once, in order, with nothing but blanks outside of them, and both lists are JSON. A list that was
    cut off is none.
    """
    pieces = pieces_between(text, TAGS)
    if pieces is None:
        return None
    before, _, between, look, after, answer, rest = pieces
    if (before + between + after + rest).strip():
        return None
    looks, boxes = boxes_of(look), boxes_of(answer)
    return None if looks is None or boxes is None else Stated(looks, boxes)


def boxes_of(text: str) -> tuple[Box, ...] | None:
    """The boxes of a JSON list; None for anything else."""
    try:
        return boxes_in(json.loads(text))
    except (ValueError, RecursionError, OverflowError):
        return None


def boxes_in(found: Any) -> tuple[Box, ...]:
    """The boxes of a list of objects with a `bbox_2d`; labels are not looked at.

    Raises ValueError for a list with anything else in it, and for a box that is not four finite numbers with x1 < x2
    and y1 < y2, OverflowError for a whole number beyond all floats.
    """
    if not isinstance(found, list):
        raise ValueError("not a list")
    return tuple(box_in(one) for one in found)


def box_in(found: Any) -> Box:
    numbers = found.get("bbox_2d") if isinstance(found, dict) else None
    if not isinstance(numbers, list) or len(numbers) != 4 or not all(type(n) in (int, float) for n in numbers):
        raise ValueError("not an object with a `bbox_2d` of four numbers")
    x1, y1, x2, y2 = map(float, numbers)
    if not (all(map(math.isfinite, (x1, y1, x2, y2))) and x1 < x2 and y1 < y2):
        raise ValueError(f"not a box: {numbers}")
    return x1, y1, x2, y2
