"""Pictures as PNG files, without a library."""

from __future__ import annotations

import struct
import zlib

from torch import Tensor


def png(picture: Tensor) -> bytes:
    """A picture [C, H, W] of values in [-1, 1] as a PNG: grey for one channel, coloured for three."""
    channels, height, width = picture.shape
    grey = channels != 3
    values = ((picture[:1] if grey else picture).clamp(-1, 1) * 127.5 + 127.5).round().byte()
    lines = values.permute(1, 2, 0).reshape(height, -1).cpu().numpy()
    raw = b"".join(b"\0" + line.tobytes() for line in lines)  # each line unfiltered
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if grey else 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(raw)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
