"""Pictures as a vision-language model of Qwen's pattern sees them: read, resized, normalised, cut into patches.

A picture may be given as a path, a PIL image, a uint8 array [H, W], [H, W, 1] or [H, W, 3], the bytes of a file, or
what the `datasets` library keeps of one ({"bytes": ..., "path": ...}). Pillow is needed for all but arrays that need no
resizing: pip install 'posttrain[vision]'.
"""

from __future__ import annotations

import base64
import io
import math
import mimetypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from posttrain.policy.parts import content_name

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
PROCESSORS = ("Qwen2VL", "Qwen2_5_VL", "Qwen3VL")  # how the names of image processors with this patch layout begin
SLIMMEST = 200  # longest side over the shortest, at most (as released)


class Picture:
    """A resized picture: uint8 [H, W, 3], and the rows and columns of tokens that it becomes.

    `name` stands for each of these tokens in a prompt: a negative number, the same for the same pixels, so that prompts
    of equal tokens are prompts with equal pictures.
    """

    __slots__ = ("columns", "name", "pixels", "rows")

    def __init__(self, pixels: np.ndarray, rows: int, columns: int):
        self.pixels, self.rows, self.columns = pixels, rows, columns
        self.name = content_name(repr(pixels.shape), pixels.tobytes())

    @property
    def tokens(self) -> int:
        return self.rows * self.columns

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Picture) and self.name == other.name

    def __hash__(self) -> int:
        return self.name

    def __repr__(self) -> str:
        return f"picture of {self.pixels.shape[1]} x {self.pixels.shape[0]} pixels"


@dataclass(frozen=True)
class Preprocessing:
    """What a checkpoint's preprocessor_config.json says.

    patch, merge  pixels of a patch's side, and patches of a token's side
    frames        copies of a still picture along time
    least, most   pixels of a resized picture
    """

    patch: int = 14
    merge: int = 2
    frames: int = 2
    least: int = 56 * 56
    most: int = 28 * 28 * 1280
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    scale: float = 1 / 255
    kind: str = "Qwen2VLImageProcessor"

    @staticmethod
    def of(settings: Mapping[str, Any]) -> Preprocessing:
        """From the file's contents. Raises ValueError for an image processor of another pattern."""
        kind = str(settings.get("image_processor_type", ""))
        if not kind.startswith(PROCESSORS):
            raise ValueError(
                f"its pictures are prepared by {kind or 'an unnamed processor'}, and posttrain knows those of "
                f"Qwen's vision-language models ({', '.join(PROCESSORS)})"
            )
        unusual = {"do_resize": True, "do_rescale": True, "do_normalize": True, "resample": 3}
        for name, usual in unusual.items():
            if settings.get(name, usual) != usual:
                raise ValueError(
                    f"its preprocessor_config.json has {name}={settings[name]!r}, which is not implemented"
                )
        plain = Preprocessing()
        size = settings.get("size") or {}
        return Preprocessing(
            settings.get("patch_size", plain.patch),
            settings.get("merge_size", plain.merge),
            settings.get("temporal_patch_size", plain.frames),
            settings.get("min_pixels") or size.get("shortest_edge", plain.least),
            settings.get("max_pixels") or size.get("longest_edge", plain.most),
            tuple(settings.get("image_mean") or plain.mean),
            tuple(settings.get("image_std") or plain.std),
            settings.get("rescale_factor", plain.scale),
            kind,
        )

    def settings(self) -> dict[str, Any]:
        """The contents of a preprocessor_config.json, for transformers and vLLM too."""
        return {
            "image_processor_type": self.kind,
            "patch_size": self.patch,
            "merge_size": self.merge,
            "temporal_patch_size": self.frames,
            "min_pixels": self.least,
            "max_pixels": self.most,
            "size": {"shortest_edge": self.least, "longest_edge": self.most},
            "image_mean": list(self.mean),
            "image_std": list(self.std),
            "rescale_factor": self.scale,
            "resample": 3,
            "do_resize": True,
            "do_rescale": True,
            "do_normalize": True,
            "do_convert_rgb": True,
        }

    def picture(self, image: Any) -> Picture:
        """Any form of a picture, resized. Raises ValueError for one that cannot be read."""
        if isinstance(image, Picture):
            return image
        side = self.patch * self.merge
        array = rgb_array(image) if isinstance(image, np.ndarray) else None
        if array is None or array.shape[:2] != resized_shape(
            array.shape[0], array.shape[1], side, self.least, self.most
        ):
            array = rgb_array(
                resized_pixels(open_picture(image if array is None else array), side, self.least, self.most)
            )
        return Picture(array, array.shape[0] // side, array.shape[1] // side)

    def patches(self, pictures: Sequence[Picture]) -> tuple[Tensor, Tensor]:
        """[patches of all pictures, C * frames * patch^2] float32, and their grids [pictures, 3] (1, rows, columns)."""
        rows, grids = [], []
        mean, std = torch.tensor(self.mean)[:, None, None], torch.tensor(self.std)[:, None, None]
        for one in pictures:
            image = torch.tensor(one.pixels).permute(2, 0, 1).float()
            rows.append(patchify((image * self.scale - mean) / std, self.patch, self.merge, self.frames))
            grids.append([1, one.rows * self.merge, one.columns * self.merge])
        return torch.cat(rows), torch.tensor(grids)


def patchify(image: Tensor, patch: int, merge: int, frames: int) -> Tensor:
    """[C, H, W] -> [patches, C * frames * patch^2], the patches that merge into one token next to one another."""
    channels, height, width = image.shape
    shape = (channels, height // patch // merge, merge, patch, width // patch // merge, merge, patch)
    cut = image.reshape(shape).permute(1, 4, 2, 5, 0, 3, 6)  # rows, columns, rows in, columns in, C, p, p
    return cut[..., None, :, :].expand(*cut.shape[:5], frames, patch, patch).reshape(-1, channels * frames * patch**2)


def resized_shape(height: int, width: int, side: int, least: int, most: int) -> tuple[int, int]:
    """Multiples of `side` near the picture's own shape, of `least` to `most` pixels together (Qwen2-VL, as released).

    Raises ValueError for an empty picture, and for one more than 200 times as long as wide.
    """
    if not min(height, width) or max(height, width) > SLIMMEST * min(height, width):
        raise ValueError(f"a picture of {width} x {height} pixels: one side must be at most {SLIMMEST} times the other")
    tall, wide = round(height / side) * side, round(width / side) * side
    if tall * wide > most:
        shrink = math.sqrt(height * width / most)
        tall, wide = (max(side, math.floor(length / shrink / side) * side) for length in (height, width))
    elif tall * wide < least:
        grow = math.sqrt(least / (height * width))
        tall, wide = (math.ceil(length * grow / side) * side for length in (height, width))
    return tall, wide


def rgb_array(array: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3]. Raises ValueError for another type or shape."""
    grey = array[..., None] if array.ndim == 2 else array
    if array.dtype != np.uint8 or grey.ndim != 3 or grey.shape[2] not in (1, 3):
        raise ValueError(
            f"a picture given as an array is uint8 [H, W], [H, W, 1] or [H, W, 3], not {array.dtype} {array.shape}"
        )
    return np.ascontiguousarray(np.broadcast_to(grey, (*grey.shape[:2], 3)))


def pillow() -> Any:
    try:
        import PIL.Image
        import PIL.ImageOps
    except ImportError as error:
        raise ValueError("pictures need the extra: pip install 'posttrain[vision]'") from error
    return PIL


def open_picture(image: Any) -> Any:
    """A PIL image in RGB, turned as its EXIF data say."""
    library = pillow()
    if isinstance(image, np.ndarray):
        return library.Image.fromarray(rgb_array(image))
    source, shown = file_of(image)
    try:
        found = library.Image.open(source) if source is not None else image
        return library.ImageOps.exif_transpose(found).convert("RGB")
    except FileNotFoundError as error:
        raise ValueError(f"there is no picture {shown}") from error
    except (OSError, ValueError, SyntaxError, AttributeError, library.Image.DecompressionBombError) as error:
        raise ValueError(f"the picture {shown} cannot be read: {error}") from error


def file_of(image: Any) -> tuple[Any, str]:
    """What to open, and what to call it; None for what is open already."""
    if isinstance(image, Mapping):
        given = image.get("bytes")
        return file_of(given if given is not None else image.get("path"))
    if isinstance(image, bytes):
        return io.BytesIO(image), f"of {len(image)} bytes"
    if isinstance(image, str | Path):
        return Path(image), str(image)
    return None, f"given as {type(image).__name__}"


def resized_pixels(image: Any, side: int, least: int, most: int) -> np.ndarray:
    """uint8 [H, W, 3] of a PIL image at its resized shape."""
    height, width = resized_shape(image.height, image.width, side, least, most)
    if (image.height, image.width) != (height, width):
        image = image.resize((width, height), resample=pillow().Image.Resampling.BICUBIC)
    return np.asarray(image)


def data_url(image: Any) -> str:
    """A picture inside an address, as chat servers take it: a file as it is, anything else as PNG."""
    if isinstance(image, Picture):
        image = image.pixels
    source, _ = file_of(image)
    if isinstance(source, Path) and source.is_file() and (kind := mimetypes.guess_type(source)[0]):
        return f"data:{kind};base64,{base64.b64encode(source.read_bytes()).decode()}"
    file = io.BytesIO()
    open_picture(image).save(file, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
