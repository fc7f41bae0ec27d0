"""The scheduler's network: one body for all links, each of which is decided with a view of the others."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

import posttrain as pt
from posttrain.policy.decision import Shown, rows_of_numbers


class LinkChoices(pt.Choices):
    """One choice for each link, in order, of how many elements it fetches of what the earlier ones have left.

    A link's choice is made of its own numbers, the mean of the other links', those that all share, and what is left.

    own, shared  numbers of a link, and of all; an ask shows `state` [links * own + shared], `open` and `budget`
    counts       elements of each option
    """

    def __init__(
        self, links: int, own: int, shared: int, counts: Sequence[int], hidden: Sequence[int] = (64, 64)
    ) -> None:
        super().__init__()
        self.settings = {"links": links, "own": own, "shared": shared, "counts": counts, "hidden": hidden}
        self.count, self.own, self.shared, self.width = links, own, shared, hidden[-1]
        self.counts: Tensor
        self.register_buffer("counts", torch.tensor(counts, dtype=torch.float32))
        sizes = (2 * own + shared + 1, *hidden)
        self.body = nn.Sequential(*(part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.Tanh())))
        self.head = nn.Linear(self.width, len(counts))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def read(self, shown: Sequence[Shown]) -> dict[str, Tensor]:
        device = self.head.weight.device
        seen = {name: rows_of_numbers(shown, name).to(device) for name in ("state", "open", "budget")}
        wanted = self.count * self.own + self.shared
        if seen["state"].shape[1:] != (wanted,):
            raise ValueError(f"`state` is shown as {list(seen['state'].shape[1:])}; the network reads [{wanted}]")
        links = seen["state"][:, : self.count * self.own].unflatten(1, (self.count, self.own))
        others = (links.sum(1, keepdim=True) - links) / max(self.count - 1, 1)
        return {**seen, "links": links, "others": others, "shared": seen["state"][:, self.count * self.own :]}

    def left(self, seen: dict[str, Tensor], made: Tensor) -> Tensor:
        """[B] elements that the choices made so far leave."""
        return seen["budget"] - self.counts[made].sum(1)

    def summary(self, seen: dict[str, Tensor], made: Tensor) -> Tensor:
        at = made.shape[1]
        left = self.left(seen, made)[:, None] / self.counts.max()
        return self.body(torch.cat([seen["links"][:, at], seen["others"][:, at], seen["shared"], left], 1))

    def logits(self, seen: dict[str, Tensor], made: Tensor) -> Tensor:
        too_many = self.counts[None] > self.left(seen, made)[:, None]
        closed = too_many | (seen["open"][:, made.shape[1]] == 0)
        return self.head(self.summary(seen, made)).masked_fill(closed, -torch.inf)
