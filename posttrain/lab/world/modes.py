"""Solution modes: every question has up to three right answers, and the base model has a habit.

    a3 b5 =   ->   x1 x7 x2        mode k answers  first[a][k]  second[b][k]  third[a][k], from random tables

The base model learns modes by their prior, a token now and then corrupted. In a hard world its habit, mode 0, is wrong
for half of the values of b, which the demonstrations do not say.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property

from posttrain.core import Group, Rollout, Task
from posttrain.data import Demonstration
from posttrain.lab.world.words import demonstration_of, task
from posttrain.seeding import mix

SIZE, SYMBOLS, MODES = 8, 12, 3
HELD_OUT = 16  # of the 64 questions, never seen before evaluation


@dataclass(frozen=True)
class Modes:
    """A world of `seed`; `prior` of the modes in demonstrations, `noise` the chance that a token is corrupted."""

    seed: int = 0
    prior: tuple[float, ...] = (0.85, 0.10, 0.05)
    noise: float = 0.25
    hard: bool = True
    longest: int = 4

    @property
    def vocabulary(self) -> list[str]:
        return [f"{letter}{i}" for letter in "ab" for i in range(SIZE)] + [f"x{i}" for i in range(SYMBOLS)] + ["="]

    @cached_property
    def tables(self) -> list[list[list[int]]]:
        """[3][SIZE][MODES] the symbol of each place; the modes of a question differ in every place."""
        draw = random.Random(mix(self.seed, "tables"))
        return [[draw.sample(range(SYMBOLS), MODES) for _ in range(SIZE)] for _ in range(3)]

    @cached_property
    def barred_values(self) -> set[int]:
        """The values of b for which mode 0 is wrong."""
        return set(random.Random(mix(self.seed, "barred")).sample(range(SIZE), SIZE // 2)) if self.hard else set()

    def answer(self, a: int, b: int, mode: int) -> str:
        first, second, third = self.tables
        return f"x{first[a][mode]} x{second[b][mode]} x{third[a][mode]}"

    @cached_property
    def questions(self) -> list[tuple[int, int]]:
        pairs = [(a, b) for a in range(SIZE) for b in range(SIZE)]
        random.Random(mix(self.seed, "split")).shuffle(pairs)
        return pairs

    def task(self, a: int, b: int) -> Task:
        """Its truth: the right answers, with their modes."""
        right = {self.answer(a, b, mode): mode for mode in range(MODES) if not (mode == 0 and b in self.barred_values)}
        return task(f"{a},{b}", f"a{a} b{b} =", right)

    def training_tasks(self) -> list[Task]:
        return [self.task(a, b) for a, b in self.questions[HELD_OUT:]]

    def held_out_tasks(self) -> list[Task]:
        return [self.task(a, b) for a, b in self.questions[:HELD_OUT]]

    def all_tasks(self) -> list[Task]:
        """All 64 questions: 48 that are trained on, and the 16 held out."""
        return [self.task(a, b) for a, b in self.questions]

    def hard_tasks(self) -> list[Task]:
        """Every question for which the habit is wrong."""
        return [self.task(a, b) for a, b in self.questions if b in self.barred_values]

    def demonstration(self, draw: random.Random) -> Demonstration:
        a, b = draw.choice(self.questions[HELD_OUT:])
        mode = draw.choices(range(MODES), self.prior)[0]
        words = [
            f"x{draw.randrange(SYMBOLS)}" if draw.random() < self.noise else word
            for word in self.answer(a, b, mode).split()
        ]
        return demonstration_of(f"a{a} b{b} =", " ".join(words))


def is_right(rollout: Rollout) -> float:
    return float(rollout.text.strip() in rollout.task.truth)


def likeness(world: Modes, rollout: Rollout, mode: int = 1) -> float:
    """The share of the answer's three tokens that are those of one mode."""
    a, b = map(int, rollout.task.key.split(","))
    wanted, given = world.answer(a, b, mode).split(), rollout.text.split()
    return sum(x == y for x, y in zip(wanted, given, strict=False)) / len(wanted)


def distinct_right(group: Group) -> int:
    """Different right answers among the samples of one question."""
    return len({rollout.text.strip() for rollout in group if is_right(rollout)})
