"""Where tasks come from, step after step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from posttrain.seeding import mix


class Source(Protocol):
    """Hands out tasks (or rows, or pairs) and remembers how far it got. A curriculum is a Source that chooses."""

    @property
    def items(self) -> Sequence[Any]: ...  # all that it may hand out, for the policy to check; empty if not known
    def take(self, count: int) -> list[Any]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class ShuffledSource:
    """Epoch after epoch over the items, in an order that depends only on the seed and the epoch."""

    def __init__(self, items: Sequence[Any], seed: int = 0):
        if not items:
            raise ValueError("there is nothing to train on: the list of tasks is empty")
        self.items, self.seed, self.cursor = items, seed, 0
        self.epoch, self.order = -1, np.arange(0)

    def take(self, count: int) -> list[Any]:
        return [self.next() for _ in range(count)]

    def next(self) -> Any:
        epoch, position = divmod(self.cursor, len(self.items))
        if epoch != self.epoch:
            self.epoch = epoch
            self.order = np.random.default_rng(mix(self.seed, "epoch", epoch)).permutation(len(self.items))
        self.cursor += 1
        return self.items[self.order[position]]

    def state_dict(self) -> dict[str, Any]:
        return {"cursor": self.cursor}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.cursor = state["cursor"]
