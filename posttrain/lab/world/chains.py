"""A start and up to six operations: what they come to may be worked out step by step, or said at once by who knows it.

    fast d3 a c r b N N =   ->   <think> </think> d7
    slow d3 a c r b N N =   ->   <think> d5 d1 d0 d7 </think> d7

Four operations are permutations of ten states, r resets to one state: of a long problem that ends soon after a reset
little has to be composed. A `WeakStudent` has only seen problems of one and two operations, its teacher re-checks
steps (`v` and the state again) and is sometimes wrong.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

from posttrain.core import Rollout, Task
from posttrain.data import Demonstration
from posttrain.lab.world.words import demonstration_of, task
from posttrain.seeding import mix

STATES, MOST, RESET = 10, 6, 0.25
LENGTHS = (1, 2, 3, 4, 6)
HELD_OUT = 51  # of 256, of the problems of three operations and more; of shorter ones there are too few
RECHECKED, WRONG = 0.3, 0.1  # chances that the teacher re-checks a step once more, and that it ends wrong

Mode: TypeAlias = Literal["fast", "slow", "auto"]
Problem: TypeAlias = tuple[int, str]  # the start, and the operations


@dataclass(frozen=True)
class Chains:
    """Its demonstrations are of both manual modes, half and half."""

    seed: int = 0
    longest: int = 11

    @property
    def vocabulary(self) -> list[str]:
        return ["fast", "slow", "auto", *(f"d{i}" for i in range(STATES)), *"abcdrNv", "=", "<think>", "</think>"]

    @cached_property
    def tables(self) -> dict[str, list[int]]:
        draw = random.Random(mix(self.seed, "tables"))
        permutations = {name: draw.sample(range(STATES), STATES) for name in "abcd"}
        return permutations | {"r": [draw.randrange(STATES)] * STATES}

    def draw_problem(self, draw: random.Random, held_out: bool = False, lengths: Sequence[int] = LENGTHS) -> Problem:
        """A problem to train on, or one that is never trained on (of one and two operations: any)."""
        length = draw.choice(lengths)
        while True:
            operations = "".join("r" if draw.random() < RESET else draw.choice("abcd") for _ in range(length))
            problem = draw.randrange(STATES), operations
            kept = length > 2 and hashlib.sha256(repr(problem).encode()).digest()[0] < HELD_OUT
            if kept == held_out or (held_out and length < 3):
                return problem

    def states(self, problem: Problem) -> list[int]:
        """[n] after each operation."""
        state, found = problem[0], []
        for operation in problem[1]:
            state = self.tables[operation][state]
            found.append(state)
        return found

    def task(self, problem: Problem, mode: Mode) -> Task:
        start, operations = problem
        padded = " ".join(operations + "N" * (MOST - len(operations)))
        return task(f"{start}{operations}", f"{mode} d{start} {padded} =", f"d{self.states(problem)[-1]}")

    def reply(self, problem: Problem, slow: bool) -> str:
        states = [f"d{state}" for state in self.states(problem)]
        return " ".join(["<think>", *(states if slow else ()), "</think>", states[-1]])

    def demonstration_of(self, problem: Problem, mode: Mode, reply: str) -> Demonstration:
        return demonstration_of(self.task(problem, mode).prompt[0]["content"], reply)

    def demonstration(self, draw: random.Random) -> Demonstration:
        slow = draw.random() < 0.5
        problem = self.draw_problem(draw)
        return self.demonstration_of(problem, "slow" if slow else "fast", self.reply(problem, slow))

    def teacher_chain(self, problem: Problem, draw: random.Random) -> str:
        """A chain of the teacher's."""
        states = self.states(problem)
        if draw.random() < WRONG:
            states[-1] = (states[-1] + 1 + draw.randrange(STATES - 1)) % STATES
        words: list[str] = []
        for state in states:
            words.append(f"d{state}")
            while draw.random() < RECHECKED and len(words) < 20:
                words += ["v", f"d{state}"]
        return " ".join(["<think>", *words, "</think>", f"d{states[-1]}"])


@dataclass(frozen=True)
class WeakStudent(Chains):
    """A student that the teacher has shown only short problems, and only slow."""

    longest: int = 26

    def demonstration(self, draw: random.Random) -> Demonstration:
        while True:
            problem = self.draw_problem(draw, lengths=(1, 2))
            chain = self.teacher_chain(problem, draw)
            if answer(chain) == f"d{self.states(problem)[-1]}":
                return self.demonstration_of(problem, "slow", chain)


def answer(text: str) -> str | None:
    """What a reply of the right form ends in."""
    words = text.split()
    return words[-1] if len(words) >= 3 and words[0] == "<think>" and words[-2] == "</think>" else None


def is_right(rollout: Rollout) -> float:
    return float(answer(rollout.text) == rollout.task.truth)


def answers_at_once(rollout: Rollout) -> bool:
    """The reply has no thought in it."""
    return rollout.text.startswith("<think> </think>")
