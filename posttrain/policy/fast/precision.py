"""How exactly matrix products of float32 are made on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def exact_products() -> Iterator[None]:
    """Inside this block a GPU multiplies float32 without TF32, whatever was set before.

    A fast path is compared with transformers' pass to 1e-3; TF32 alone is that far off, and would switch it off.
    """
    settings = torch.backends.cuda.matmul
    before = settings.fp32_precision
    settings.fp32_precision = "ieee"
    try:
        yield
    finally:
        settings.fp32_precision = before
