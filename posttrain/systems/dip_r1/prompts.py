"""What the model is asked: think, look, decide. A reconstruction: the paper's words are not public where we looked."""

from __future__ import annotations

import json
from typing import Any

from posttrain.systems.dip_r1.frames import Box, Frame, Truth
from posttrain.systems.dip_r1.match import as_array, iou

QUESTION = """Find every {category}, also the small, faint and partly hidden ones. Work in three stages.
1. Between <think> and </think>, describe the scene, and where it is hard to see.
2. Between <look> and </look>, list the regions that need a closer look, as JSON: [{{"bbox_2d": [x1, y1, x2, y2]}}].
3. Between <answer> and </answer>, list every {category}: [{{"bbox_2d": [x1, y1, x2, y2], "label": "{category}"}}].
{coordinates} An empty list is []. Write plain JSON without a code fence, and nothing outside of the three blocks."""


def question(category: str, frame: Frame) -> str:
    """The instruction, with the coordinates that the boxes are to be in."""
    coordinates = (
        "Coordinates are thousandths of the picture's width and height."
        if frame.coordinates == "thousand"
        else f"Coordinates are pixels of the picture, which is {frame.shown_width} wide and {frame.shown_height} high."
    )
    return QUESTION.format(category=category, coordinates=coordinates)


def demonstration(category: str, truth: Truth) -> str:
    """A reply in form, from the annotation: with looks at boxes that overlap others and at the smallest quarter."""
    boxes = sorted(truth.boxes, key=lambda box: (box[1], box[0], box[3], box[2]))
    hard = hard_boxes(boxes)
    thought = f"I count {len(boxes)} of {category}. {len(hard)} of them are small or partly hidden."
    looks = listed([box for i, box in enumerate(boxes) if i in hard], truth.frame)
    answer = listed(boxes, truth.frame, {"label": category})
    return f"<think>{thought}</think><look>{looks}</look><answer>{answer}</answer>"


def hard_boxes(boxes: list[Box]) -> set[int]:
    """Which of the boxes overlap another, and which are the smallest quarter, rounded down."""
    array = as_array(boxes)
    crossed = (iou(array, array) > 0).sum(1) > 1
    by_size = sorted(range(len(boxes)), key=lambda i: (boxes[i][2] - boxes[i][0]) * (boxes[i][3] - boxes[i][1]))
    return {i for i in range(len(boxes)) if crossed[i]} | set(by_size[: len(boxes) // 4])


def listed(boxes: list[Box], frame: Frame, more: dict[str, Any] | None = None) -> str:
    """A list of boxes as JSON, in whole numbers."""
    return json.dumps([{"bbox_2d": frame.whole_numbers(box), **(more or {})} for box in boxes])
