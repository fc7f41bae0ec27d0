"""Squares on a grid, clear and faint ones, and an annotator who leaves out half of the faint ones.

    [picture] find   ->   look answer b3 b17          without a look
    [picture] find   ->   look b8 answer b3 b8 b17    with a look at b8, a faint square, which it then rarely leaves out

A cell of 4 x 4 pixels is one token of the picture, and one word of a reply: `b8` is the fourth cell of the second row.
Red tells a cell's column and green its row, as a tiny model has no sense of place; blue is the square's.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from posttrain.data import Demonstration
from posttrain.episode import assistant, user
from posttrain.policy.pixels import Preprocessing
from posttrain.seeding import mix

GRID, CELL = 5, 4  # cells in a row, pixels of a cell's side
CELLS = GRID**2
DARK, STEP = 30, 45  # of red and green: in the first column or row, and from one to the next
GROUND, CLEAR, FAINT = 40, 210, 110  # of blue
NOISE = 8.0  # deviation of a pixel, of 255
SIDE = GRID * CELL
EYE = Preprocessing(patch=2, merge=2, least=SIDE**2, most=SIDE**2, mean=(0.5,) * 3, std=(0.25,) * 3)


@dataclass(frozen=True, slots=True)
class Squares:
    """Cells with a square, in order."""

    clear: tuple[int, ...]
    faint: tuple[int, ...]

    @property
    def cells(self) -> tuple[int, ...]:
        return tuple(sorted(self.clear + self.faint))


@dataclass(frozen=True)
class Crowd:
    """How often the annotator does what.

    faint                    share of squares that are faint
    looks                    annotations with a look at anything
    looks_faint, looks_clear  in these, the share of faint and of clear squares that are looked at
    reports_seen, reports_unseen  faint squares that are reported, of those that were looked at and of the others
    invents                  annotations with a box on an empty cell
    """

    seed: int = 0
    faint: float = 0.3
    looks: float = 0.5
    looks_faint: float = 0.6
    looks_clear: float = 0.2
    reports_seen: float = 0.9
    reports_unseen: float = 0.33
    invents: float = 0.1
    longest: int = 24
    preprocessing: Preprocessing = EYE

    @property
    def vocabulary(self) -> list[str]:
        return ["find", "look", "answer", *(f"b{cell}" for cell in range(CELLS))]

    def squares(self, draw: random.Random, least: int = 2, most: int = 5, faint: float | None = None) -> Squares:
        """From `least` to `most` squares, of which a share is faint: the world's own if not given."""
        cells, share = draw.sample(range(CELLS), draw.randint(least, most)), self.faint if faint is None else faint
        dim = {cell for cell in cells if draw.random() < share}
        return Squares(tuple(sorted(set(cells) - dim)), tuple(sorted(dim)))

    def pictures(self, count: int, split: str, **more: float) -> list[tuple[Squares, np.ndarray]]:
        """So many of a split, each a drawing of its own; `more` as of `squares`."""
        draw = random.Random(mix(self.seed, "pictures", split))
        found = []
        for _ in range(count):
            squares = self.squares(draw, **more)  # type: ignore[arg-type]
            found.append((squares, drawing(squares, draw)))
        return found

    def demonstration(self, draw: random.Random) -> Demonstration:
        squares = self.squares(draw)
        picture = {"type": "image", "image": drawing(squares, draw)}
        asked = user([picture, {"type": "text", "text": "find"}])
        return Demonstration((asked, assistant(self.annotation(squares, draw))))

    def annotation(self, squares: Squares, draw: random.Random) -> str:
        """What the annotator writes."""
        shares = dict.fromkeys(squares.clear, self.looks_clear) | dict.fromkeys(squares.faint, self.looks_faint)
        looking = draw.random() < self.looks
        looks = [cell for cell in squares.cells if looking and draw.random() < shares[cell]]
        found = [
            cell
            for cell in squares.cells
            if cell in squares.clear or draw.random() < (self.reports_seen if cell in looks else self.reports_unseen)
        ]
        if draw.random() < self.invents:
            found.append(draw.choice([cell for cell in range(CELLS) if cell not in squares.cells]))
        return reply(looks, sorted(found))


def reply(looks: list[int], found: list[int]) -> str:
    return " ".join(["look", *(f"b{cell}" for cell in looks), "answer", *(f"b{cell}" for cell in found)])


def cells_of(text: str) -> tuple[list[int], list[int]] | None:
    """The cells that a reply looks at, and those that it answers; None for one that is not in form."""
    words = text.split()
    if words[:1] != ["look"] or words.count("answer") != 1:
        return None
    at = words.index("answer")
    cells = {f"b{cell}": cell for cell in range(CELLS)}
    looks, found = words[1:at], words[at + 1 :]
    if not set(looks + found) <= set(cells):
        return None
    return [cells[word] for word in looks], [cells[word] for word in found]


def box_of(cell: int) -> tuple[float, float, float, float]:
    """In pixels of the picture."""
    x, y = float(cell % GRID * CELL), float(cell // GRID * CELL)
    return x, y, x + CELL, y + CELL


def drawing(squares: Squares, draw: random.Random) -> np.ndarray:
    """uint8 [20, 20, 3]."""
    blue = np.full(CELLS, float(GROUND))
    blue[list(squares.clear)] = CLEAR
    blue[list(squares.faint)] = FAINT
    at = np.arange(CELLS)
    cells = np.stack([DARK + STEP * (at % GRID), DARK + STEP * (at // GRID), blue], -1).reshape(GRID, GRID, 3)
    picture = cells.repeat(CELL, 0).repeat(CELL, 1)
    noise = np.random.default_rng(draw.getrandbits(63)).normal(0, NOISE, picture.shape)
    return np.clip(picture + noise, 0, 255).astype(np.uint8)
