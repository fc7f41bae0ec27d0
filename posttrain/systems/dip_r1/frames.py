"""Boxes in the pixels of a picture, and in the coordinates in which a model writes them.

A box is (x1, y1, x2, y2), from the top left corner. A model is shown a picture resized. Qwen2.5-VL writes pixels of the
resized picture (`absolute`); Qwen2-VL and Qwen3-VL write thousandths of its width and height (`thousand`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from posttrain.policy.pixels import Preprocessing, resized_shape

Box: TypeAlias = tuple[float, float, float, float]
Coordinates = Literal["absolute", "thousand"]
FAMILIES: dict[str, Coordinates] = {  # by a checkpoint's model_type
    "qwen2_vl": "thousand",
    "qwen2_5_vl": "absolute",
    "qwen3_vl": "thousand",
    "qwen3_vl_moe": "thousand",
}


def coordinates_of(model_type: str, wanted: Coordinates | None) -> Coordinates:
    """Those that are wanted, or those of the family. Raises ValueError for a family that is not known."""
    if wanted or model_type in FAMILIES:
        return wanted or FAMILIES[model_type]
    raise ValueError(
        f"`coordinates`: say absolute or thousand, as it is not known how a {model_type} writes boxes "
        f"(known: {', '.join(FAMILIES)})"
    )


@dataclass(frozen=True, slots=True)
class Frame:
    """A picture's own size in pixels, the size at which it is shown, and the coordinates that replies are in."""

    width: int
    height: int
    shown_width: int
    shown_height: int
    coordinates: Coordinates

    @property
    def scale(self) -> tuple[float, float]:
        """Units of a reply's coordinates in a pixel of the picture, along x and y."""
        if self.coordinates == "thousand":
            return 1000 / self.width, 1000 / self.height
        return self.shown_width / self.width, self.shown_height / self.height

    def to_reply(self, box: Box) -> Box:
        """From pixels of the picture to a reply's coordinates."""
        (x, y), (x1, y1, x2, y2) = self.scale, box
        return x1 * x, y1 * y, x2 * x, y2 * y

    def to_picture(self, box: Box) -> Box:
        """From a reply's coordinates to pixels of the picture."""
        (x, y), (x1, y1, x2, y2) = self.scale, box
        return x1 / x, y1 / y, x2 / x, y2 / y

    def whole_numbers(self, box: Box) -> list[int]:
        """A box inside the picture as a reply states it: whole numbers, at least one apart, inside the frame."""
        x1, y1, x2, y2 = self.to_reply(box)
        wide, high = (round(whole * unit) for whole, unit in zip((self.width, self.height), self.scale, strict=True))
        left, top = min(round(x1), wide - 1), min(round(y1), high - 1)
        return [left, top, max(round(x2), left + 1), max(round(y2), top + 1)]

    def clip(self, box: Box) -> Box:
        """A box in pixels of the picture, cut at its edges; one that lies outside keeps no area."""
        x1, y1, x2, y2 = box
        return (
            min(max(x1, 0.0), self.width),
            min(max(y1, 0.0), self.height),
            min(max(x2, 0.0), self.width),
            min(max(y2, 0.0), self.height),
        )


def frame_of(width: int, height: int, preprocessing: Preprocessing, coordinates: Coordinates) -> Frame:
    """The frame of a picture of this size. Raises ValueError for one that is too slim to be shown."""
    side = preprocessing.patch * preprocessing.merge
    tall, wide = resized_shape(height, width, side, preprocessing.least, preprocessing.most)
    return Frame(width, height, wide, tall, coordinates)


@dataclass(frozen=True, slots=True)
class Truth:
    """What is in a picture, in its pixels: boxes to be found, and regions where a box is neither right nor wrong."""

    boxes: tuple[Box, ...]
    ignored: tuple[Box, ...]
    frame: Frame
