"""What a sender has seen, piece by piece, and how a receiver's question finds the pieces that it needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Element:
    """A patch of a picture, or a sentence: a part of a message that shows it."""

    key: str
    part: Mapping[str, Any]
    bits: int


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """What a receiver must answer in order to act."""

    text: str
    answer: str
    query: Tensor  # [D] of unit length, in the space of the index


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """One link's: what its sender has, and what its receiver is asked, one question after another."""

    elements: tuple[Element, ...]
    index: Tensor  # [M, D] of unit length, one for each element
    questions: tuple[Question, ...]
    decibels: float  # mean signal-to-noise ratio of the link
    summary: tuple[Mapping[str, Any], ...] = ()  # parts of a message that the receiver has from the start

    def similarities(self, query: Tensor) -> Tensor:
        """[M] cosines of the elements with a query."""
        return self.index @ query

    def nearest(self, query: Tensor, count: int, held: frozenset[str]) -> list[Element]:
        """The `count` elements that are most like the query, without those that are held already."""
        order = torch.argsort(self.similarities(query), descending=True, stable=True).tolist()
        return [self.elements[i] for i in order if self.elements[i].key not in held][:count]
