"""Solids of one or two parts, as short CadQuery programs in whole words, and points on their surfaces.

Domain R is procedural, as CAD-Recode's programs are: boxes and cylinders of any size, joined or cut anywhere. Domain D
stands for parts that people made: a flat plate with a hub through it. A model learns R by imitation and meets D later.

Words with blanks between them are the program. Surfaces are sampled here, by geometry: no kernel is needed for that.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

import numpy as np

from posttrain.seeding import mix

Kind = Literal["box", "cylinder"]
Joint = Literal["union", "cut"]
Domain = Literal["R", "D"]
HEAD, CLOSE, COMMA = "r=cq.Workplane('XY')", ")", ","
OPEN: dict[Kind, str] = {"box": ".box(", "cylinder": ".cylinder("}
JOIN: dict[Joint, str] = {"union": ".union(cq.Workplane(origin=(", "cut": ".cut(cq.Workplane(origin=("}
PLACED = "))"  # closes an origin and the work plane at it
SIZES, PLACES = range(0, 101, 5), range(-50, 0, 10)  # of the words that are numbers
VOCABULARY = (HEAD, CLOSE, COMMA, PLACED, *OPEN.values(), *JOIN.values(), *map(str, (*PLACES, *SIZES)))
STEP = 1e-6  # by which a point leaves its own surface, so that faces that touch or coincide are told apart
LONGEST = 24  # words of a program, and the end


@dataclass(frozen=True, slots=True)
class Piece:
    """A box (length, width, height) or a cylinder (height, radius) around its origin, in a program's unit."""

    kind: Kind
    sizes: tuple[int, ...]
    origin: tuple[int, int, int] = (0, 0, 0)

    @property
    def words(self) -> list[str]:
        return [OPEN[self.kind], *listed(self.sizes), CLOSE]

    def contains(self, points: np.ndarray) -> np.ndarray:
        """[P] truth values: which of the points [P, 3] lie within."""
        at = np.abs(points - self.origin)
        if self.kind == "box":
            return np.all(at < np.array(self.sizes) / 2, axis=1)
        height, radius = self.sizes
        return (at[:, 2] < height / 2) & (np.hypot(at[:, 0], at[:, 1]) < radius)

    def apart(self, points: np.ndarray, step: float) -> np.ndarray:
        """Points of its surface moved by this share of their distance from the origin: outwards, or inwards below 0."""
        return points + step * (points - self.origin)

    def area(self) -> float:
        if self.kind == "box":
            a, b, c = self.sizes
            return 2.0 * (a * b + b * c + c * a)
        height, radius = self.sizes
        return 2 * np.pi * radius * (radius + height)

    def surface(self, count: int, draw: np.random.Generator) -> np.ndarray:
        """[count, 3] uniform on its surface."""
        sides = draw.choice((-0.5, 0.5), count)
        if self.kind == "box":
            size = np.array(self.sizes, dtype=float)
            faces = size.prod() / size  # the area of the face across each axis
            found = draw.uniform(-0.5, 0.5, (count, 3))
            found[np.arange(count), draw.choice(3, count, p=faces / faces.sum())] = sides
            return found * size + self.origin
        height, radius = self.sizes
        angle, on_cap = draw.uniform(0, 2 * np.pi, count), draw.random(count) < radius / (radius + height)
        reach = radius * np.where(on_cap, np.sqrt(draw.random(count)), 1.0)
        up = height * np.where(on_cap, sides, draw.uniform(-0.5, 0.5, count))
        return np.stack([reach * np.cos(angle), reach * np.sin(angle), up], 1) + self.origin


@dataclass(frozen=True, slots=True)
class Solid:
    """One piece, or two of which the second is added or taken away."""

    first: Piece
    joint: Joint | None = None
    second: Piece | None = None

    @property
    def words(self) -> list[str]:
        if self.joint is None or self.second is None:
            return [HEAD, *self.first.words]
        place = [JOIN[self.joint], *listed(self.second.origin), PLACED]
        return [HEAD, *self.first.words, *place, *self.second.words, CLOSE]

    @property
    def program(self) -> str:
        return " ".join(self.words)

    def surface(self, count: int, draw: np.random.Generator) -> np.ndarray:
        """[count, 3] uniform on the surface of the whole."""
        if self.second is None:
            return self.first.surface(count, draw)
        share = self.first.area() / (self.first.area() + self.second.area())
        kept, left = list[np.ndarray](), count
        while left > 0:
            of_first = draw.binomial(2 * count, share)
            one, other = self.first.surface(of_first, draw), self.second.surface(2 * count - of_first, draw)
            taken = self.joint == "cut"  # then the first's material, on its inside, must be left
            outside = ~self.second.contains(self.first.apart(one, -STEP if taken else STEP))
            seen = self.first.contains(self.second.apart(other, STEP)) == taken
            kept.append(draw.permutation(np.concatenate([one[outside], other[seen]])))
            left -= len(kept[-1])
        return np.concatenate(kept)[:count]


def listed(numbers: tuple[int, ...]) -> list[str]:
    """The numbers as words with commas between them."""
    return [word for number in numbers for word in (COMMA, str(number))][1:]


@dataclass(frozen=True, slots=True)
class Solids:
    """Draws solids of a domain."""

    seed: int = 0
    domain: Domain = "R"

    def solids(self, count: int, split: str) -> list[Solid]:
        """Different ones; the same for the same seed, domain and split."""
        draw, found = random.Random(mix(self.seed, self.domain, split)), dict[Solid, None]()
        while len(found) < count:
            found[self.solid(draw)] = None
        return list(found)

    def solid(self, draw: random.Random) -> Solid:
        return procedural(draw) if self.domain == "R" else plate_with_hub(draw)


def procedural(draw: random.Random) -> Solid:
    """One piece, or, in two of three, two: the middle of the second lies in the box around the first.

    What is cut off is smaller on every side, so that something is left.
    """
    first = any_piece(draw, 10, 100)
    if draw.random() < 1 / 3:
        return Solid(first)
    reach = extent(first)
    joint: Joint = "union" if draw.random() < 2 / 3 or min(reach) < 20 else "cut"
    most = 100 if joint == "union" else min(reach) - 10
    origin = tuple(draw.randrange(-(side // 20) * 10, side // 20 * 10 + 1, 10) for side in reach)
    return Solid(first, joint, any_piece(draw, 10, most, origin))


def any_piece(draw: random.Random, least: int, most: int, origin: tuple[int, ...] = (0, 0, 0)) -> Piece:
    """Sizes in tens, and for a radius in fives."""
    x, y, z = origin
    if draw.random() < 0.5:
        return Piece("box", tuple(draw.randrange(least, most + 1, 10) for _ in range(3)), (x, y, z))
    height, across = draw.randrange(least, most + 1, 10), draw.randrange(least, most + 1, 10)
    return Piece("cylinder", (height, across // 2), (x, y, z))


def extent(piece: Piece) -> tuple[int, int, int]:
    """Length, width and height of the box around a piece."""
    if piece.kind == "box":
        a, b, c = piece.sizes
        return a, b, c
    height, radius = piece.sizes
    return 2 * radius, 2 * radius, height


def plate_with_hub(draw: random.Random) -> Solid:
    """A plate of 10 to 30 with a hub of 40 to 80 through it, within its edges."""
    length, width = (draw.randrange(60, 101, 10) for _ in range(2))
    plate = Piece("box", (length, width, draw.choice((10, 20, 30))))
    radius, height = draw.choice((10, 15, 20)), draw.choice((40, 60, 80))
    x, y = (draw.randrange(-(free := (side // 2 - radius) // 10 * 10), free + 1, 10) for side in (length, width))
    sizes = {"cylinder": (height, radius), "box": (2 * radius, 2 * radius, height)}
    kind: Kind = draw.choice(("cylinder", "box"))
    return Solid(plate, "union", Piece(kind, sizes[kind], (x, y, 0)))
