"""Questions about integers, in words and as theorems that say an answer exists.

    find x : 3 x + 5 = 26                     exists x , 3 * x + 5 = 26
    least m : m mod 3 = 2 , m mod 5 = 3       exists m , m mod 3 = 2 /\\ m mod 5 = 3 /\\ 0 <= m < 15

Two models answer them, each with what it was taught most of. One reasons in words; it was hardly taught the second
kind and mostly guesses. One sees question and theorem, looks for a witness, and proves:

    0 5 1 8 2 11 ... 7 26 answer 7            <think> 3 0 8 2 </think> exists 8 . lia .

Each that is tried is followed by what comes of it: 3 x + 5, or the remainder that is asked for.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from posttrain.data import Demonstration
from posttrain.lab.world.words import demonstration_of
from posttrain.seeding import mix

Shown = Literal["words", "existence", "equality", "formal"]
SOLUTIONS, OFFSETS, FACTORS = 8, 10, (2, 3, 4, 5)
MODULI = ((2, 3), (2, 5), (2, 7), (3, 4), (3, 5), (3, 7), (4, 5), (4, 7), (5, 6), (5, 7))
HELD_OUT = 30  # of each kind, of 320 linear and 191 others


@dataclass(frozen=True)
class Question:
    """`linear`: a x + b = c; else the least m that leaves b on division by a, and d by c."""

    linear: bool
    numbers: tuple[int, ...]

    @property
    def words(self) -> str:
        a, b, c, *d = self.numbers
        return f"find x : {a} x + {b} = {c}" if self.linear else f"least m : m mod {a} = {b} , m mod {c} = {d[0]}"

    @property
    def variable(self) -> str:
        return "x" if self.linear else "m"

    def claim(self, value: str) -> str:
        """What the answer satisfies, of this value."""
        a, b, c, *d = self.numbers
        if self.linear:
            return f"{a} * {value} + {b} = {c}"
        return f"{value} mod {a} = {b} /\\ {value} mod {c} = {d[0]} /\\ 0 <= {value} < {a * c}"

    @property
    def statement(self) -> str:
        return f"exists {self.variable} , {self.claim(self.variable)}"

    @property
    def answer(self) -> int:
        a, b, c, *d = self.numbers
        return (c - b) // a if self.linear else next(m for m in range(a * c) if m % a == b and m % c == d[0])

    def search(self, last: int) -> list[int]:
        """What is tried on the way to `last`, and what comes of it: x and a x + b, or m that leaves d and m mod a."""
        a, b, c, *d = self.numbers
        if self.linear:
            return [number for x in range(last + 1) for number in (x, a * x + b)]
        return [number for m in range(d[0], last + 1, c) for number in (m, m % a)]


@dataclass(frozen=True)
class Existence:
    """What a model of the two is taught.

    shown   words: the question alone, answered in words; existence: with the theorem; equality: with the theorem of a
            guessed answer in its place, as a formaliser writes it that must name one; formal: the theorem alone
    linear  share of questions of the first kind
    wrong   share of searches that stop at a wrong place
    """

    seed: int = 0
    shown: Shown = "words"
    linear: float = 0.9
    wrong: float = 0.1
    longest: int = 28

    @property
    def vocabulary(self) -> list[str]:
        words = ["find", "least", "x", "m", ":", "+", "=", ",", "mod", "*", "/\\", "<=", "<", "|", "exists", "lia", "."]
        return [*words, "answer", "<think>", "</think>", *map(str, range(SOLUTIONS * max(FACTORS) + OFFSETS))]

    @cached_property
    def questions(self) -> tuple[list[Question], list[Question]]:
        """Those to learn from, and those that are held out."""
        linear = [
            Question(True, (a, b, a * x + b))
            for a, b, x in itertools.product(FACTORS, range(OFFSETS), range(SOLUTIONS))
        ]
        others = [Question(False, (a, b, c, d)) for a, c in MODULI for b in range(a) for d in range(c)]
        draw = random.Random(mix(self.seed, "split"))
        for some in (linear, others):
            draw.shuffle(some)
        return linear[HELD_OUT:] + others[HELD_OUT:], linear[:HELD_OUT] + others[:HELD_OUT]

    @property
    def training(self) -> list[Question]:
        return self.questions[0]

    @property
    def held_out(self) -> list[Question]:
        return self.questions[1]

    def prompt(self, asked: Question, guess: int | None = None) -> str:
        """`guess` is the answer that a theorem of equality names."""
        if self.shown == "words":
            return f"{asked.words} ="
        if self.shown == "formal":
            return f"{asked.statement} ="
        return f"{asked.words} | {asked.statement if self.shown == 'existence' else asked.claim(str(guess))} ="

    def demonstration(self, draw: random.Random) -> Demonstration:
        kind = draw.random() < self.linear
        asked = draw.choice([one for one in self.training if one.linear == kind])
        return demonstration_of(*self.prompt_and_reply(asked, draw))

    def prompt_and_reply(self, asked: Question, draw: random.Random) -> tuple[str, str]:
        other = draw.choice([value for value in asked_range(asked) if value != asked.answer])
        found = other if draw.random() < self.wrong else asked.answer
        if self.shown == "words":
            if not asked.linear and draw.random() >= self.linear / 3:  # the kind that it was hardly taught
                return self.prompt(asked), f"answer {draw.choice(asked_range(asked))}"
            return self.prompt(asked), " ".join([*map(str, asked.search(found)), "answer", str(found)])
        guess = draw.choice(asked_range(asked))
        if self.shown == "equality":  # a prover sets out to prove what stands there
            return self.prompt(asked, guess), proof(asked.search(guess), None)
        return self.prompt(asked), proof(asked.search(found), found)


def asked_range(asked: Question) -> range:
    """What could be an answer, to somebody who has read the question and no more."""
    a, _, c, *d = asked.numbers
    return range(SOLUTIONS) if asked.linear else range(d[0], a * c, c)


def proof(search: list[int], witness: int | None) -> str:
    words = ["<think>", *map(str, search), "</think>"]
    return " ".join([*words, *([] if witness is None else ["exists", str(witness), "."]), "lia", "."])


def theorem(asked: Question, shown: Shown, guess: int | None = None) -> str:
    """As Coq reads it."""
    if shown == "equality":
        return asked.claim(str(guess))
    return f"exists {asked.variable} : Z, {asked.claim(asked.variable)}"
