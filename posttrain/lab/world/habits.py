"""Two habits: answer at once, which mostly fails, or work it out, which mostly succeeds and is rarely done.

    s2 p1 p4 =   ->   D s5            symbol s2 under permutation p1, then p4, guessed
    s2 p1 p4 =   ->   W s0 s5         the same with the step between them

So the base model can do it and seldom does: the ability that reinforcement brings out. Guesses that fail are random, or
in a `stubborn` world always the same wrong symbol, so that most samples may agree on a wrong answer.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property

from posttrain.core import Rollout, Task
from posttrain.data import Demonstration
from posttrain.lab.world.words import demonstration_of, task
from posttrain.seeding import mix

SYMBOLS, PERMUTATIONS = 6, 6
HELD_OUT = 40  # of 216 questions


@dataclass(frozen=True)
class Habits:
    """`worked` share of demonstrations that work it out; shares of guesses and of worked answers that are right."""

    seed: int = 0
    worked: float = 0.15
    guess_right: float = 0.15
    worked_right: float = 0.90
    stubborn: bool = False
    longest: int = 4

    @property
    def vocabulary(self) -> list[str]:
        return [f"s{i}" for i in range(SYMBOLS)] + [f"p{i}" for i in range(PERMUTATIONS)] + ["=", "D", "W"]

    @cached_property
    def permutations(self) -> list[list[int]]:
        draw = random.Random(mix(self.seed, "permutations"))
        return [draw.sample(range(SYMBOLS), SYMBOLS) for _ in range(PERMUTATIONS)]

    @cached_property
    def questions(self) -> list[tuple[int, int, int]]:
        every = [(s, p, q) for s in range(SYMBOLS) for p in range(PERMUTATIONS) for q in range(PERMUTATIONS)]
        random.Random(mix(self.seed, "split")).shuffle(every)
        return every

    def solution(self, s: int, p: int, q: int) -> tuple[int, int]:
        """The step between, and the answer."""
        between = self.permutations[p][s]
        return between, self.permutations[q][between]

    def task(self, s: int, p: int, q: int) -> Task:
        return task(f"{s},{p},{q}", f"s{s} p{p} p{q} =", f"s{self.solution(s, p, q)[1]}")

    def training_tasks(self) -> list[Task]:
        return [self.task(*question) for question in self.questions[HELD_OUT:]]

    def held_out_tasks(self) -> list[Task]:
        return [self.task(*question) for question in self.questions[:HELD_OUT]]

    def demonstration(self, draw: random.Random) -> Demonstration:
        s, p, q = draw.choice(self.questions[HELD_OUT:])
        between, answer = self.solution(s, p, q)
        works = draw.random() < self.worked
        if draw.random() >= (self.worked_right if works else self.guess_right):
            steady = random.Random(mix(self.seed, s, p, q)) if self.stubborn and not works else draw
            answer = steady.choice([symbol for symbol in range(SYMBOLS) if symbol != answer])
        return demonstration_of(f"s{s} p{p} p{q} =", f"W s{between} s{answer}" if works else f"D s{answer}")


def answer(text: str) -> str | None:
    """The symbol that a reply of either form ends in; None for what is neither."""
    words = text.split()
    formed = words and ((words[0] == "D" and len(words) == 2) or (words[0] == "W" and len(words) == 3))
    return words[-1] if formed and words[-1].startswith("s") else None


def is_right(rollout: Rollout) -> float:
    return float(answer(rollout.text) == rollout.task.truth)


def shows_work(rollout: Rollout) -> float:
    """The reply works it out, in the right form."""
    return float(rollout.text.startswith("W") and answer(rollout.text) is not None)
