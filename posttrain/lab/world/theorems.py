"""Theorems about sums modulo five, each with statements that follow from its hypotheses and statements against them.

    n3 n1 n4 n2 sum < n2 <think>   ->   n4 n3 n0 </think> <answer> \\boxed{proved} </answer>

The hypotheses are four digits; a statement compares their sum modulo five with a number. A proof writes down the
partial sums, and is not needed for a verdict: half of all guesses are right. So the base model can be one that has
learnt to prove, and then mostly reads replies without a proof.
"""

from __future__ import annotations

import operator
import random
import re
import statistics
from dataclasses import dataclass
from functools import cached_property
from itertools import product

from posttrain.core import Task
from posttrain.data import Demonstration
from posttrain.lab.world.words import demonstration_of, task
from posttrain.seeding import mix

MODULUS, DIGITS = 5, 4
HELD_OUT = 100  # of 625 theorems
RELATIONS = {"=": operator.eq, "!=": operator.ne, "<": operator.lt, ">": operator.gt}
CONTRADICTORY = (0, 1, 1, 1, 1, 2)  # statements against a held-out theorem: of one in six there is none, as of Putnam's
VALUE = re.compile(r"n(\d)")


@dataclass(frozen=True, slots=True)
class Claim:
    """What a statement is about, and whether it holds."""

    theorem: str
    holds: bool
    digits: tuple[int, ...]


@dataclass(frozen=True)
class Theorems:
    """`lazy` share of demonstrations without a proof, whose verdict is any; `wrong` chance that a step is wrong."""

    seed: int = 0
    lazy: float = 0.0
    wrong: float = 0.0
    longest: int = 12

    @property
    def vocabulary(self) -> list[str]:
        numbers = [f"n{i}" for i in range(MODULUS)]
        return [*numbers, "sum", *RELATIONS, "<think>", "</think>", "<answer>", *map(box, (True, False)), "</answer>"]

    @cached_property
    def theorems(self) -> list[tuple[int, ...]]:
        every = list(product(range(MODULUS), repeat=DIGITS))
        random.Random(mix(self.seed, "split")).shuffle(every)
        return every

    def statement(self, digits: tuple[int, ...], holds: bool, draw: random.Random, name: str) -> Task:
        """A statement of any relation that holds, or does not."""
        total = sum(digits) % MODULUS
        while True:
            relation, value = draw.choice(list(RELATIONS)), draw.randrange(MODULUS)
            if RELATIONS[relation](total, value) == holds:
                break
        theorem = "".join(map(str, digits))
        asked = f"{' '.join(f'n{digit}' for digit in digits)} sum {relation} n{value} <think>"
        return task(f"{theorem}:{name}", asked, Claim(theorem, holds, digits))

    def training_tasks(self, variants: bool = True) -> list[Task]:
        """Two statements of every theorem: one that holds and one that does not, or without variants two that hold."""
        draw = random.Random(mix(self.seed, "training", int(variants)))
        return [
            self.statement(digits, holds, draw, name)
            for digits in self.theorems[HELD_OUT:]
            for name, holds in (("pos", True), ("neg" if variants else "more", not variants))
        ]

    def held_out_tasks(self, theorems: int = HELD_OUT) -> list[Task]:
        """Of every theorem the original, an entailed statement, and none, one or two that contradict it."""
        draw, out = random.Random(mix(self.seed, "held out")), []
        for digits in self.theorems[:theorems]:
            against = [f"contradictory {i}" for i in range(draw.choice(CONTRADICTORY))]
            out += [self.statement(digits, True, draw, name) for name in ("original", "entailed")]
            out += [self.statement(digits, False, draw, name) for name in against]
        return out

    def demonstration(self, draw: random.Random) -> Demonstration:
        asked = self.statement(draw.choice(self.theorems[HELD_OUT:]), draw.random() < 0.5, draw, "shown")
        question, claimed = asked.prompt[0]["content"], asked.truth
        if draw.random() < self.lazy:
            return demonstration_of(question, conclusion([], draw.random() < 0.5))
        steps = []
        value = claimed.digits[0]
        for digit in claimed.digits[1:]:
            off = draw.randrange(1, MODULUS) if draw.random() < self.wrong else 0
            value = (value + digit + off) % MODULUS
            steps.append(value)
        relation, other = question.split()[-3:-1]
        return demonstration_of(question, conclusion(steps, RELATIONS[relation](value, int(other[1:]))))

    def proof(self, one: Task, whole: bool) -> Demonstration:
        """The statement with its right verdict: after all of its proof, or after none of it."""
        return demonstration_of(
            one.prompt[0]["content"], conclusion(sums(one.truth.digits) if whole else [], one.truth.holds)
        )


def box(holds: bool) -> str:
    return "\\boxed{proved}" if holds else "\\boxed{disproved}"


def sums(digits: tuple[int, ...]) -> list[int]:
    """[DIGITS - 1] the partial sums, modulo five."""
    return [sum(digits[: i + 1]) % MODULUS for i in range(1, len(digits))]


def conclusion(steps: list[int], holds: bool) -> str:
    return " ".join([*(f"n{value}" for value in steps), "</think> <answer>", box(holds), "</answer>"])


def proof_marks(text: str, truth: Claim) -> dict[str, float]:
    """What a judge would say of a proof, by rules, in [0, 1] each.

    validity      the share of the written steps that follow from the one before
    completeness  how many of the partial sums are there, right or wrong
    correctness   the verdict is right
    clarity       partial sums and nothing else, then the verdict in its tags
    """
    proof, _, answer = text.partition("</think>")
    words = proof.split()
    found = [VALUE.fullmatch(word) for word in words]
    values = [int(one[1]) if one else None for one in found]
    before, follows = [truth.digits[0], *values], []
    for value, last, digit in zip(values, before, (*truth.digits[1:], *[None] * len(values)), strict=False):
        follows.append(None not in (value, last, digit) and value == (last + digit) % MODULUS)  # type: ignore[operator]
    formed = answer.split() in [["<answer>", box(holds), "</answer>"] for holds in (True, False)]
    return {
        "validity": statistics.fmean(follows) if follows else 0.0,
        "completeness": min(sum(value is not None for value in values), DIGITS - 1) / (DIGITS - 1),
        "correctness": float(box(truth.holds) in answer and box(not truth.holds) not in answer),
        "clarity": float(formed and None not in values and 0 < len(values) < DIGITS),
    }


def steps(text: str) -> int:
    """Words of the proof: what stands before the verdict."""
    return len(text.partition("</think>")[0].split())
