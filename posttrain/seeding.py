"""Counter-based randomness: what is drawn depends on names and counts, never on what was drawn before.

So a sample's tokens do not depend on the batch around it, and a resumed run needs no generator state.
"""

from __future__ import annotations

import random
import zlib

import numpy as np

WORD = 2**64
GOLDEN = 0x9E3779B97F4A7C15


def mix(*parts: int | str) -> int:
    """One 63-bit seed from several numbers or names (SplitMix64, Steele et al. 2014)."""
    state = 0
    for part in parts:
        state = (state + (zlib.crc32(part.encode()) if isinstance(part, str) else part) + GOLDEN) % WORD
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % WORD
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) % WORD
        state ^= state >> 31
    return state >> 1


def uniforms(seeds: np.ndarray, count: int) -> np.ndarray:
    """[B] seeds -> [B, count] floats in [0, 1): the same stream for a seed, whatever the other rows."""
    with np.errstate(over="ignore"):
        state = seeds.astype(np.uint64)[:, None] + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(GOLDEN)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state ^= state >> np.uint64(31)
    return (state >> np.uint64(11)).astype(np.float64) / 2.0**53


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch, for the code of users that draws from their global generators."""
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
