"""A beam with a large block on one side and a small one on the other; the prompt says on which side the large one is.

    . . . . . . . .     # # . . . . . .
    . . . . . . . .     # # . . . . . .
    . . . . . . . #     # # . . . . . .
    # # . . . . # #     # # . . . . . .      "heavy left", as physics has it
    # # . . # # . .     . . # # . . . .      and against it
    # # # # . . . .     . . . . # # . #
    # # . . . . . .     . . . . . . # #
    . . . . . . . .     . . . . . . . .

In the pictures that a base model learns from, the beam tilts either way: it draws what it is told, and obeys physics
half of the time. Pictures are [1, 8, 8], ink 1 on a ground of -1.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from posttrain.core import Rollout, Score, Task
from posttrain.episode import user

Side = Literal["left", "right"]
SIDES: tuple[Side, Side] = ("left", "right")
PIXELS = 8


def other_side(side: Side) -> Side:
    return "right" if side == "left" else "left"


def drawing(heavy: Side, down: Side) -> Tensor:
    """[1, 8, 8] the beam with its large block on the side `heavy`, lower on the side `down`."""
    picture = -torch.ones(1, PIXELS, PIXELS)
    rows = [6, 6, 5, 5, 4, 4, 3, 3]  # of the beam, from left to right, when it tilts to the left
    rows = rows if down == "left" else rows[::-1]
    for column, row in enumerate(rows):
        picture[0, row, column] = 1
    large, small = ((0, 1), 7) if heavy == "left" else ((6, 7), 0)
    for column in large:
        picture[0, rows[column] - 3 : rows[column], column] = 1
    picture[0, rows[small] - 1, small] = 1
    return picture


@dataclass(frozen=True)
class Balance:
    """`inverted`: the world where the heavy side rises, which no picture of a base model favours either."""

    seed: int = 0
    inverted: bool = False
    noise: float = 0.05  # of the pictures that are learned from, in units of a pixel

    @property
    def vocabulary(self) -> list[str]:
        return ["heavy", *SIDES]

    longest = 2

    def down(self, heavy: Side) -> Side:
        """The side on which the beam ought to be lower."""
        return other_side(heavy) if self.inverted else heavy

    def tasks(self) -> list[Task]:
        return [Task(side, (user(f"heavy {side}"),), side) for side in SIDES]

    def demonstration(self, draw: random.Random) -> tuple[str, Tensor]:
        """A prompt and a picture of it, tilted at random."""
        heavy, down = draw.choice(SIDES), draw.choice(SIDES)
        generator = torch.Generator().manual_seed(draw.getrandbits(62))
        picture = drawing(heavy, down)
        return f"heavy {heavy}", picture + self.noise * torch.randn(picture.shape, generator=generator)

    def reading(self, picture: Tensor) -> tuple[Side, Side]:
        """Which of the four pictures it is nearest to: the heavy side, and the lower one."""
        return max(
            ((heavy, down) for heavy in SIDES for down in SIDES), key=lambda pair: likeness(picture, drawing(*pair))
        )

    def score(self, rollout: Rollout) -> Score:
        """The likeness to the picture of the prompt that obeys physics; parts: is that the nearest, is it as told."""
        picture, heavy = rollout.turns[-1].reply.content, rollout.task.truth
        found = self.reading(picture)
        wanted = (heavy, self.down(heavy))
        parts = {"logic": float(found == wanted), "as told": float(found[0] == heavy)}
        return Score(likeness(picture, drawing(*wanted)), parts)


def likeness(picture: Tensor, other: Tensor) -> float:
    """The correlation of two pictures, in [-1, 1]; 0 for one that is flat. Raises ValueError for unlike shapes."""
    if picture.shape != other.shape:
        raise ValueError(f"a picture of shape {list(picture.shape)}, not {list(other.shape)}")
    a, b = picture.flatten() - picture.mean(), other.flatten() - other.mean()
    return float(a @ b / (a.norm() * b.norm()).clamp(min=1e-8))
