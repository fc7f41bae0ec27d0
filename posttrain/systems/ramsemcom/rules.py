"""Schedulers that learn nothing. Each is a sampler, and plays in the same environment as the policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

import posttrain as pt
from posttrain.core import Ask, Reply
from posttrain.policy.decision import shown_in
from posttrain.systems.ramsemcom.exchange import OPTIONS, PER_LINK

SURE = 0.8  # confidence from which one-by-one has found what it looks for


@dataclass(frozen=True, slots=True)
class LinkState:
    """What a rule knows of a link; the same numbers as the policy's."""

    confidence: float
    fetched: int  # elements, for the open question


Rule = Callable[[LinkState, int], int]  # the state of an open link, a seed -> elements that are wanted


def one_shot(count: int) -> Rule:
    return lambda link, seed: 0 if link.fetched else count


def one_by_one(link: LinkState, seed: int) -> int:
    return 0 if link.confidence >= SURE else 1


RULES: Mapping[str, Rule] = {
    "summary only": lambda link, seed: 0,
    "top 1": one_shot(1),
    "top 2": one_shot(2),
    "top 4": one_shot(4),
    "top 8": one_shot(8),
    "one by one": one_by_one,
    "random": lambda link, seed: OPTIONS[seed % len(OPTIONS)],
}


@dataclass(frozen=True, slots=True)
class Scheduler:
    """A rule over the links of an ask. What the budget does not allow is lowered to what it does."""

    rule: Rule

    def sample(self, asks: Sequence[Ask]) -> list[Reply]:
        return [Reply(self.choices(ask), torch.zeros(0), None) for ask in asks]

    def choices(self, ask: Ask) -> tuple[int, ...]:
        seen = shown_in(ask.messages)
        left, chosen = int(seen["budget"]), list[int]()
        for i, may in enumerate(seen["open"]):
            wanted = 0
            if sum(may) > 1:
                state = seen["state"][i * PER_LINK : (i + 1) * PER_LINK]
                wanted = self.rule(LinkState(state[1], round(state[5] * 8)), pt.mix(ask.seed, i))
            option = max(j for j, count in enumerate(OPTIONS) if count <= min(wanted, left))
            left -= OPTIONS[option]
            chosen.append(option)
        return tuple(chosen)
