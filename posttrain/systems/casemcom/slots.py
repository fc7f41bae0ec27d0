"""A slot: users who share a budget of symbols, what each wants, and what every decision about it would deliver.

A decision is the index of an expert: region by region, size by size (`experts.Experts`). What each would deliver is
computed before training, for all decisions over the same fading, so that a reward is a look-up, on any machine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from posttrain.records import Place, Record, column, records, with_unique_keys
from posttrain.systems.casemcom.experts import REGIONS

PRIORITIES = ("high", "low")
LEAST_DB: Mapping[str, float] = {"object": 18.0, "whole": 21.0}  # below, a picture is sent for again; ours


@dataclass(frozen=True, slots=True)
class User:
    """The context of one user's picture.

    task        in words, which a gate reads
    region      that the task needs, object or whole: only the reward knows it, and the rule table
    least_db    PSNR of the region, as the receiver expects it, below which it asks once more
    snr_db      mean ratio of its channel
    bits        of the picture's items as they are: the object, the background
    """

    task: str
    region: str
    least_db: float
    priority: str
    latency_ms: float
    snr_db: float
    bits: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Delivery:
    """What a decision comes to: `psnr` and `ssim` are of the task's region, `symbols` and `latency_ms` of all sent."""

    psnr: float
    ssim: float
    symbols: int
    retransmitted: bool
    latency_ms: float


@dataclass(frozen=True, slots=True)
class Slot:
    """Users [U], and what every decision about each would deliver, [U][2 * sizes]."""

    key: str
    symbols: int
    sizes: tuple[int, ...]
    users: tuple[User, ...]
    outcomes: tuple[tuple[Delivery, ...], ...]

    def room(self, left: int, user: int) -> int:
        """The most symbols that a user may have of those that are left: the users after it must get the least size."""
        return left - self.sizes[0] * (len(self.users) - user - 1)

    def size(self, decision: int) -> int:
        """Symbols of a transmission."""
        return self.sizes[decision % len(self.sizes)]

    def decision(self, region: str, symbols: float) -> int:
        """The expert of the region with the largest size of at most so many symbols; the smallest if there is none."""
        fitting = [i for i, size in enumerate(self.sizes) if size <= symbols]
        return REGIONS.index(region) * len(self.sizes) + (fitting[-1] if fitting else 0)


@dataclass(frozen=True, slots=True, eq=False)
class Capture:
    """A slot before anything is sent: [U, side, side] pictures in [0, 1], and masks of their objects."""

    key: str
    symbols: int
    users: tuple[User, ...]
    pictures: Tensor
    masks: Tensor


# ---- files


def read_captures(data: str | Path, side: int, limit: int | None = None, split: str = "train") -> list[Capture]:
    """The slots of a JSONL file, each `symbols` and `users`, a list of

        {"task": "find the car", "image": "a.png", "box": [left, top, right, bottom], "region": "object",
         "priority": "high", "latency_ms": 30, "snr_db": 7.5, "least_db": 18}

    with the box in pixels of the image, a path beside the file. Without `least_db` it is 18 for an object and 21 for a
    whole picture. Pictures become grey, `side` x `side`. Raises ValueError naming file and line.
    """
    folder = Path(data).parent
    rows = records(data, limit, split)
    found = with_unique_keys((place, capture(record, place, folder, side)) for place, record in rows)
    for one in found:
        if len(one.users) != len(found[0].users):
            raise ValueError(
                f"{data}: the slot {one.key!r} has {len(one.users)} users, and the first {len(found[0].users)}"
            )
    return found


def capture(record: Record, place: Place, folder: Path, side: int) -> Capture:
    wanted = column(record, "users", place, "users")
    if not isinstance(wanted, list) or not wanted or not all(isinstance(one, Mapping) for one in wanted):
        raise ValueError(f"{place}: `users` is no list of objects")
    symbols = number(record, "symbols", place)
    if symbols != int(symbols) or symbols < 1:
        raise ValueError(f"{place}: `symbols` is {symbols}; it is a whole number, the budget of all users")
    users, pictures, masks = [], [], []
    for one in wanted:
        picture, mask, bits = scene(one, place, folder, side)
        users.append(user(one, place, bits))
        pictures.append(picture)
        masks.append(mask)
    key = str(place.line if record.get("id") is None else record["id"])
    return Capture(key, int(symbols), tuple(users), torch.stack(pictures), torch.stack(masks))


def user(record: Mapping[str, Any], place: Place, bits: tuple[int, int]) -> User:
    task = str(column(record, "task", place, "task"))
    if set(task) & set(";=\n"):
        raise ValueError(f"{place}: the task {task!r} holds a sign that divides the prompt: ; or = or a line's end")
    region, priority = (
        choice(record, name, known, place) for name, known in (("region", REGIONS), ("priority", PRIORITIES))
    )
    least_db = number(record, "least_db", place) if record.get("least_db") is not None else LEAST_DB[region]
    latency_ms, snr_db = number(record, "latency_ms", place), number(record, "snr_db", place)
    if latency_ms <= 0:
        raise ValueError(f"{place}: `latency_ms` is {latency_ms}; it is above 0")
    if abs(snr_db) > 100:
        raise ValueError(f"{place}: `snr_db` is {snr_db}; it is from -100 to 100")
    return User(task, region, least_db, priority, latency_ms, snr_db, bits)


def choice(record: Mapping[str, Any], name: str, known: Sequence[str], place: Place) -> str:
    value = column(record, name, place, name)
    if value not in known:
        raise ValueError(f"{place}: `{name}` is {value!r}, not {' or '.join(known)}")
    return value


def number(record: Mapping[str, Any], name: str, place: Place) -> float:
    value = column(record, name, place, name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{place}: `{name}` is {value!r}, and no number")
    return float(value)


def scene(record: Mapping[str, Any], place: Place, folder: Path, side: int) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """A grey picture [side, side], the mask of its box, and the bits of both of its items at 8 bits a pixel."""
    from posttrain.policy.pixels import open_picture

    path = folder / str(column(record, "image", place, "image"))
    try:
        opened = open_picture(path)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
    width, height = opened.size
    box = column(record, "box", place, "box")
    is_box = isinstance(box, list) and len(box) == 4 and all(isinstance(at, int | float) for at in box)
    if not is_box or not (0 <= box[0] < box[2] <= width and 0 <= box[1] < box[3] <= height):
        raise ValueError(f"{place}: `box` is {box!r}, not [left, top, right, bottom] within {width} x {height} pixels")
    small = opened.convert("L").resize((side, side))
    picture = torch.from_numpy(np.array(small, dtype=np.float32)) / 255
    mask = mask_of([at * side / whole for at, whole in zip(box, (width, height) * 2, strict=True)], side)
    inside = int(mask.sum())
    return picture, mask, (8 * inside, 8 * (side * side - inside))


def mask_of(box: Sequence[float], side: int) -> Tensor:
    """[side, side] one for every pixel that the box touches."""
    left, top, right, bottom = box
    mask = torch.zeros(side, side)
    mask[math.floor(top) : math.ceil(bottom), math.floor(left) : math.ceil(right)] = 1
    return mask
