"""Small functions to be made right, fast and light: code is four words, and is really executed.

    pairs small time : loop list open whole : failed tx mx =>
        ->   <thinking> fix </thinking> <solution> march lazy closed whole </solution>

The words are a way, a hold, an edge and a bound, of which `kata_programs` makes Python. Whether ends count (`edge`) is
not in the prompt: only the tests know, so that half of the first answers fail, and what failed tells what to try next.
Which way is fast and which is light differs from function to function, and is nowhere said. People are often slow and
sometimes wrong. The base model writes as they do; of code that it is given it keeps some words, and it does not look at
the performance.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from posttrain.data import Demonstration
from posttrain.lab.world.kata_programs import BOUNDS, EDGES, FAMILIES, HOLDS, render
from posttrain.lab.world.words import demonstration_of
from posttrain.sandbox import Calls, RaisedError, ReturnedValue
from posttrain.seeding import mix

SIZES, METRICS = ("small", "medium", "large"), ("time", "memory", "integral")
THOUGHTS = ("fix", "rewrite", "tune")
EMPTY, UNTESTED = "empty", "untested"
BUCKETS, STEP = 8, 3.0  # of measured seconds and KiB: each word stands for three times as much as the one before
FIRST_S, FIRST_KIB = 1e-5, 1.0  # below these is the first bucket
WAYS_OF_PEOPLE, FORMED = (0.5, 0.3, 0.2), 0.9  # slow to fast; in the right form
KEPT = 0.5  # the chance that a word of the code before is kept
WHOLE = (0.35, 0.6, 0.85)  # without the mistake, in a third of the functions each


@dataclass(frozen=True, slots=True)
class Kata:
    """A function to be written, for inputs of one size; `edge` is what only its tests know."""

    family: str
    size: str
    edge: str
    seed: int = 0

    @property
    def name(self) -> str:
        """What is run, besides the code: both edges run the same."""
        return f"{self.family}/{self.size}/{self.seed}"

    def calls(self, code: str) -> Calls | None:
        """The execution of four words; None for what is no code."""
        source = python(self.family, code)
        return None if source is None else Calls(source, "solve", (inputs(self.family, self.size, self.seed),))

    def compile_only(self, code: str) -> None:
        """Templates define functions: nothing is done as they are loaded."""

    def verdict(self, results: Sequence[ReturnedValue | RaisedError], execute: object = None) -> str:
        """The edge by whose tests these results are right; empty if by neither."""
        right = answers(self.family, self.size, self.seed)
        values = [one.value for one in results if isinstance(one, ReturnedValue)]
        return next((edge for edge in EDGES if values == [right[edge]] * len(results)), "")

    def accepts(self, verdict: str) -> bool:
        return verdict == self.edge


def python(family: str, code: str) -> str | None:
    """The Python of four words, a way of that family and one of each kind of choice; None for any others."""
    words = code.split()
    if len(words) != 4 or words[0] not in FAMILIES[family].ways:
        return None
    if any(word not in known for word, known in zip(words[1:], (HOLDS, EDGES, BOUNDS), strict=True)):
        return None
    return render(FAMILIES[family].ways[words[0]], *words[1:])


@functools.cache
def inputs(family: str, size: str, seed: int) -> tuple[Any, ...]:
    number = FAMILIES[family].sizes[SIZES.index(size)]
    return FAMILIES[family].inputs(random.Random(mix(seed, "inputs", family, size)), number)


@functools.cache
def answers(family: str, size: str, seed: int) -> dict[str, Any]:
    """The right value for each edge, by our own code and not in the sandbox."""
    way, found = list(FAMILIES[family].ways)[-1], {}
    for edge in EDGES:
        names: dict[str, Any] = {}
        exec(python(family, f"{way} lazy {edge} whole") or "", names)
        found[edge] = names["solve"](*inputs(family, size, seed))
    return found


def reply(code: str, thought: str = "rewrite") -> str:
    return f"<thinking> {thought} </thinking> <solution> {code} </solution>"


def performance_words(passed: bool, seconds: float, kib: float) -> str:
    """A performance in three words. Of what did not pass, nothing more is told."""
    if not passed:
        return "failed tx mx"
    return f"passed t{bucket(seconds / FIRST_S)} m{bucket(kib / FIRST_KIB)}"


def bucket(ratio: float) -> int:
    return min(1 + int(math.log(ratio, STEP)), BUCKETS - 1) if ratio >= 1 else 0


@dataclass(frozen=True)
class Katas:
    """All functions; of each, one size is held out."""

    seed: int = 0
    longest: int = 10

    @property
    def vocabulary(self) -> list[str]:
        ways = {way for family in FAMILIES.values() for way in family.ways}
        told = ["passed", "failed", "tx", "mx", *(f"{kind}{i}" for kind in "tm" for i in range(BUCKETS))]
        tags = ["<thinking>", "</thinking>", "<solution>", "</solution>", ":", "=>", EMPTY, UNTESTED]
        fills = (*HOLDS, *EDGES, *BOUNDS)
        return [*dict.fromkeys([*FAMILIES, *SIZES, *METRICS, *sorted(ways), *fills, *THOUGHTS, *told, *tags])]

    @cached_property
    def held_out_sizes(self) -> dict[str, str]:
        """The size of each family that is held out."""
        draw = random.Random(mix(self.seed, "held out"))
        return {family: draw.choice(SIZES) for family in FAMILIES}

    @cached_property
    def care(self) -> dict[str, float]:
        """The share of solutions of each family without the mistake."""
        shares = [WHOLE[i % len(WHOLE)] for i in range(len(FAMILIES))]
        random.Random(mix(self.seed, "care")).shuffle(shares)
        return dict(zip(FAMILIES, shares, strict=True))

    def katas(self, held_out: bool = False) -> list[Kata]:
        """Family by family, both edges of every size to train on, or of the one that is held out."""
        return [
            Kata(family, size, edge, self.seed)
            for family in FAMILIES
            for size in SIZES
            if (size == self.held_out_sizes[family]) == held_out
            for edge in EDGES
        ]

    def question(self, kata: Kata, metric: str, code: str | None = None, performance: str | None = None) -> str:
        return f"{kata.family} {kata.size} {metric} : {code or EMPTY} : {performance or UNTESTED} =>"

    def code(self, family: str, draw: random.Random) -> str:
        """As people write it."""
        [way] = draw.choices(list(FAMILIES[family].ways), WAYS_OF_PEOPLE)
        bound = "whole" if draw.random() < self.care[family] else "short"
        return f"{way} {draw.choice(HOLDS)} {draw.choice(EDGES)} {bound}"

    def edited_code(self, family: str, before: str | None, draw: random.Random) -> str:
        """As people write it who keep some words of the code before."""
        fresh = self.code(family, draw).split()
        given = before.split() if before else fresh
        return " ".join(old if draw.random() < KEPT else new for old, new in zip(given, fresh, strict=True))

    def people_code(self, kata: Kata, count: int) -> list[str]:
        """What so many people have written, passing or failing."""
        draw = random.Random(mix(self.seed, "people", kata.family, kata.size, kata.edge))
        return [self.code(kata.family, draw) for _ in range(count)]

    def demonstration(self, draw: random.Random) -> Demonstration:
        kata = draw.choice(self.katas())
        before = self.code(kata.family, draw) if draw.random() < 0.7 else None
        told = draw.choice(["failed tx mx", f"passed t{draw.randrange(BUCKETS)} m{draw.randrange(BUCKETS)}"])
        prompt = self.question(kata, draw.choice(METRICS), before, told if draw.random() < 0.7 else None)
        code = self.edited_code(kata.family, before, draw)
        if draw.random() < FORMED:
            return demonstration_of(prompt, reply(code, draw.choice(THOUGHTS)))
        return demonstration_of(prompt, draw.choice([code, f"<solution> {code} </solution>"]))
