"""A long answer of which every token can be right or wrong by itself.

    o2 x3 x1 x0 ... =   ->   y5 y2 y7 ...        y_t = table[o][x_t], K symbols

The base model makes a mistake at each token with a small probability, so that few whole answers are right.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from posttrain.core import Rollout, Task
from posttrain.data import Demonstration
from posttrain.lab.world.words import demonstration_of, task
from posttrain.seeding import mix

OPERATIONS, SYMBOLS = 4, 8


@dataclass(frozen=True)
class Lookup:
    """`length` tokens of an answer, `noise` the chance that a demonstration's token is another."""

    seed: int = 0
    length: int = 20
    noise: float = 0.06

    @property
    def longest(self) -> int:
        return self.length + 1

    @property
    def vocabulary(self) -> list[str]:
        words = [f"{letter}{i}" for letter in "xy" for i in range(SYMBOLS)]
        return [f"o{i}" for i in range(OPERATIONS)] + words + ["="]

    @cached_property
    def table(self) -> list[list[int]]:
        draw = random.Random(mix(self.seed, "table"))
        return [[draw.randrange(SYMBOLS) for _ in range(SYMBOLS)] for _ in range(OPERATIONS)]

    def question(self, draw: random.Random) -> tuple[int, list[int]]:
        return draw.randrange(OPERATIONS), [draw.randrange(SYMBOLS) for _ in range(self.length)]

    def task(self, key: str, operation: int, symbols: list[int]) -> Task:
        prompt = f"o{operation} {' '.join(f'x{x}' for x in symbols)} ="
        return task(key, prompt, " ".join(f"y{self.table[operation][x]}" for x in symbols))

    def problems(self, count: int, split: str) -> list[Task]:
        draw = random.Random(mix(self.seed, split))
        return [self.task(f"{split}-{i}", *self.question(draw)) for i in range(count)]

    def demonstration(self, draw: random.Random) -> Demonstration:
        one = self.task("", *self.question(draw))
        words = [f"y{draw.randrange(SYMBOLS)}" if draw.random() < self.noise else word for word in one.truth.split()]
        return demonstration_of(one.prompt[0]["content"], " ".join(words))


def is_right(rollout: Rollout) -> float:
    """Every token is right, and there are no more and no fewer."""
    return float(rollout.text.strip() == rollout.task.truth)


def token_marks(rollout: Rollout) -> Tensor:
    """[N] 1 for each sampled token that is right where it stands, the end token included."""
    wanted, given = rollout.task.truth.split(), rollout.text.split()
    marks = [float(i < len(wanted) and word == wanted[i]) for i, word in enumerate(given)]
    marks += [float(len(given) == len(wanted))] * (rollout.decisions - len(given))
    return torch.tensor(marks[: rollout.decisions])
