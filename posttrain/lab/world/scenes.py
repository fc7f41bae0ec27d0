"""Pictures of 16 x 16: a textured background and one of three shapes in a box of 6 x 6, and what is asked about them.

A task's name is a verb and a thing. What is found or watched may be coarse, what is measured or inspected must be fine;
a disc, a square or a cross is the shape, a road, a field or a sky is all of the picture. Some pairs of a verb and a
thing are never shown in training, though every word is.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from posttrain.seeding import mix

SIDE, BOX = 16, 6
SHAPES = ("disc", "square", "cross")
SCENERY = ("road", "field", "sky")
FINE: Mapping[str, bool] = {"find": False, "watch": False, "measure": True, "inspect": True}
PAIRS = tuple(f"{verb} {thing}" for verb in FINE for thing in (*SHAPES, *SCENERY))
UNSEEN = ("find cross", "watch disc", "measure square", "inspect disc", "find sky", "measure road")
SEEN = tuple(pair for pair in PAIRS if pair not in UNSEEN)
PRIORITIES = ("high", "low")
TOLERANCES_MS = (10, 30, 100)
SNRS_DB = (-13.0, 30.0)
BUDGETS = (48, 120, 288)  # symbols that the users of a slot share
USERS = 3


@dataclass(frozen=True, slots=True)
class Wish:
    """What a user wants of its picture, and over which channel."""

    task: str
    priority: str
    latency_ms: int
    snr_db: float

    @property
    def is_fine(self) -> bool:
        return FINE[self.task.split()[0]]

    @property
    def thing(self) -> str:
        return self.task.split()[1]


def wish(draw: random.Random, tasks: Sequence[str]) -> Wish:
    snr_db = round(draw.uniform(*SNRS_DB), 2)
    return Wish(draw.choice(tasks), draw.choice(PRIORITIES), draw.choice(TOLERANCES_MS), snr_db)


def pictures(things: Sequence[str], seed: int) -> tuple[Tensor, list[tuple[int, int, int, int]]]:
    """[B, 16, 16] in [0, 1], and the box of each one's shape: left, top, right, bottom.

    The shape is that of its thing; where the thing is scenery, any.
    """
    draw, noise = random.Random(mix(seed, "shapes")), torch.Generator().manual_seed(mix(seed, "texture"))
    coarse = torch.rand(len(things), 1, 4, 4, generator=noise)
    ground = functional.interpolate(coarse, size=(SIDE, SIDE), mode="bilinear", align_corners=False)[:, 0]
    out = 0.35 + 0.3 * ground + 0.02 * torch.randn(len(things), SIDE, SIDE, generator=noise)
    boxes = []
    for picture, thing in zip(out, things, strict=True):
        left, top = (draw.randrange(0, SIDE - BOX + 1, 2) for _ in range(2))
        shape = silhouette(thing if thing in SHAPES else draw.choice(SHAPES))
        inside = picture[top : top + BOX, left : left + BOX]
        inside[shape] = draw.choice((0.2, 0.8)) + 0.05 * draw.uniform(-1, 1)
        boxes.append((left, top, left + BOX, top + BOX))
    return out.clamp(0, 1), boxes


def silhouette(shape: str) -> Tensor:
    """[6, 6] which pixels of its box a shape covers."""
    rows, columns = torch.meshgrid(torch.arange(BOX) - 2.5, torch.arange(BOX) - 2.5, indexing="ij")
    if shape == "disc":
        return rows.square() + columns.square() < 8
    if shape == "square":
        return torch.maximum(rows.abs(), columns.abs()) < 2
    return torch.minimum(rows.abs(), columns.abs()) < 1
