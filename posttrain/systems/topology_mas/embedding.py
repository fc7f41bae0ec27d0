"""Texts to vectors: what the policy knows of agents' roles and of queries."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from posttrain.embedding import MeanOfTokens


class Embedder(Protocol):
    def embed(self, texts: Sequence[str]) -> Tensor: ...  # [B, D] float32 on the CPU, of mean square 1


class Hashed:
    """A bag of words, each put into one of `width` places."""

    def __init__(self, width: int = 512):
        self.width = width

    def embed(self, texts: Sequence[str]) -> Tensor:
        out = torch.zeros(len(texts), self.width)
        for row, text in zip(out, texts, strict=True):
            for word in text.lower().split():
                row[zlib.crc32(word.encode()) % self.width] += 1
        return unit_scale(out)


class Encoder:
    """An encoder of sentences, or any other checkpoint. Raises ValueError when it cannot be loaded."""

    def __init__(self, model: str, device: str | None = None):
        self.encoder = MeanOfTokens(model, device)

    def embed(self, texts: Sequence[str]) -> Tensor:
        return unit_scale(self.encoder.embed(texts))


def unit_scale(vectors: Tensor) -> Tensor:
    """[B, D] with a mean square of 1, as a linear layer wants its inputs."""
    return nn.functional.normalize(vectors, dim=-1) * vectors.shape[1] ** 0.5


def embedder(name: str, device: str | None = None) -> Embedder:
    """`hashed:WIDTH`, a Hub id or a folder. Raises ValueError for what is none of them."""
    if not name.startswith("hashed"):
        return Encoder(name, device)
    numbers = re.fullmatch(r"hashed:([1-9]\d*)", name)
    if numbers is None:
        raise ValueError(f"`encoder={name}`: of the form hashed:WIDTH, such as hashed:512")
    return Hashed(int(numbers[1]))
