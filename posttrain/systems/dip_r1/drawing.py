"""A picture with boxes: what is there in green, what a reply answers in red, what it looked at in yellow."""

from __future__ import annotations

import math

import numpy as np

import posttrain as pt
from posttrain.policy.pixels import open_picture
from posttrain.systems.dip_r1.reply import Reader, read_strictly

TRUE, ANSWERED, LOOKED = (0, 200, 0), (230, 0, 0), (240, 220, 0)
LEAST, MOST = 256, 1024  # pixels: of the shorter side, or else of the longer one


def draw_boxes(rollout: pt.Rollout, read: Reader = read_strictly) -> np.ndarray | None:
    """uint8 [H, W, 3] of the picture that a task shows, in a size to be looked at; None if it shows none.

    Small ones are enlarged a whole number of times. An unparsable reply has no boxes.
    """
    content = rollout.task.prompt[-1]["content"]
    shown = [part for part in content if part["type"] == "image"] if isinstance(content, list) else []
    if not shown:
        return None
    picture = open_picture(shown[0]["image"])
    from PIL import Image, ImageDraw  # it is there: it has opened the picture

    short, long = sorted(picture.size)
    times = math.ceil(LEAST / short) if short < LEAST else min(1.0, MOST / long)
    way = Image.Resampling.NEAREST if times > 1 else Image.Resampling.BICUBIC
    picture = picture.resize([max(1, round(side * times)) for side in picture.size], resample=way)
    pen, said = ImageDraw.Draw(picture), read(rollout)
    kinds = (
        (TRUE, rollout.task.truth.boxes),
        (LOOKED, said.looks if said else ()),
        (ANSWERED, said.boxes if said else ()),
    )
    for inset, (colour, boxes) in enumerate(kinds):  # each a little within the one before, so that all are seen
        for x1, y1, x2, y2 in boxes:
            left, top = x1 * times + 2 * inset, y1 * times + 2 * inset
            right, bottom = x2 * times - 1 - 2 * inset, y2 * times - 1 - 2 * inset
            if left < right and top < bottom:
                pen.rectangle((left, top, right, bottom), outline=colour, width=2)
    return np.asarray(picture)
