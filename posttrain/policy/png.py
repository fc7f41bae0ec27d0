"""Pictures as PNG files, without a library."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np
from torch import Tensor


def pixels_of(picture: Tensor) -> np.ndarray:
    """uint8 [H, W, 1 or 3] of a picture [C, H, W] of values in [-1, 1]; of other than three channels the first."""
    shown = picture if picture.shape[0] == 3 else picture[:1]
    return (shown.clamp(-1, 1) * 127.5 + 127.5).round().byte().permute(1, 2, 0).cpu().numpy()


def png(pixels: np.ndarray) -> bytes:
    """uint8 [H, W, 1] or [H, W, 3] as a PNG, grey or coloured."""
    height, width, channels = pixels.shape
    raw = b"".join(b"\0" + line.tobytes() for line in pixels)  # each line unfiltered
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if channels == 3 else 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(raw)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )


def png_address(pixels: np.ndarray) -> str:
    """The same inside an address, as pages show it."""
    return f"data:image/png;base64,{base64.b64encode(png(pixels)).decode()}"
