"""Words that carry a sign, and two tasks: one needs a single look-up, the other all of them.

    basic    | w3 w1 w5 w2 w0 w7 =      the sign of the first word
    advanced | w3 w1 w5 w2 w0 w7 =      the product of all six, as every cue of sarcasm turns the sense around

A chain is short, one step, or long, all running products; a step is a word and the product so far:

    <think> w3 - </think> <answer> neg </answer>
    <think> w3 - w1 - w5 + w2 + w0 - w7 + </think> <answer> pos </answer>

The teacher puts a word of reasoning ("but") before a step now and then, which says nothing, and goes over some chains
twice. Only its chains with the right label are shown: a short one of an advanced question has guessed it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Literal

from posttrain.data import Demonstration
from posttrain.lab.world.words import demonstration_of
from posttrain.seeding import mix

Kind = Literal["basic", "advanced"]
KINDS: tuple[Kind, ...] = ("basic", "advanced")
WORDS, SHOWN = 10, 6  # words of the language, and of a question
LABELS = ("neg", "pos")
MARKERS = ("first", "but", "because", "wait")
TAGS = ("<think>", "</think>", "<answer>", "</answer>")


@dataclass(frozen=True)
class SignQuestion:
    kind: Kind
    words: tuple[int, ...]
    signs: tuple[int, ...]  # of these words, +1 or -1

    @property
    def prompt(self) -> str:
        return f"{self.kind} | {' '.join(f'w{word}' for word in self.words)} ="

    @property
    def label(self) -> str:
        return LABELS[(self.signs[0] if self.kind == "basic" else prod(self.signs)) > 0]

    def steps(self, long: bool) -> list[str]:
        """The running products, or the first of them."""
        count = len(self.words) if long else 1
        return [f"w{self.words[i]} {'+' if prod(self.signs[: i + 1]) > 0 else '-'}" for i in range(count)]


@dataclass(frozen=True)
class Signs:
    """`long_basic`, `long_advanced`: share of the teacher's chains of that kind that are long.

    marked   chance that a word of reasoning stands before a step
    again    share of chains that are gone over twice
    """

    seed: int = 0
    long_basic: float = 0.2
    long_advanced: float = 0.8
    marked: float = 0.1
    again: float = 0.1
    longest: int = 36

    @property
    def vocabulary(self) -> list[str]:
        return [*KINDS, "|", "=", *(f"w{i}" for i in range(WORDS)), "+", "-", *LABELS, *MARKERS, *TAGS]

    @cached_property
    def signs(self) -> list[int]:
        """[WORDS] as many of either sign."""
        return random.Random(mix(self.seed, "signs")).sample([1, -1] * (WORDS // 2), WORDS)

    def question(
        self, draw: random.Random, kind: Kind | None = None, shown: int = SHOWN, repeated: bool = False
    ) -> SignQuestion:
        """Of words that differ; `repeated`: of words of which some are the same."""
        while True:
            words = tuple(draw.choices(range(WORDS), k=shown) if repeated else draw.sample(range(WORDS), shown))
            if not repeated or len(set(words)) < shown:
                return SignQuestion(kind or draw.choice(KINDS), words, tuple(self.signs[word] for word in words))

    def questions(
        self, count: int, split: str, kind: Kind | None = None, shown: int = SHOWN, repeated: bool = False
    ) -> list[SignQuestion]:
        """In training six words that differ; other lengths and repeated words are out of domain."""
        draw = random.Random(mix(self.seed, split))
        return [self.question(draw, kind, shown, repeated) for _ in range(count)]

    def chain(self, asked: SignQuestion, draw: random.Random) -> str:
        """What the teacher thinks."""
        long = draw.random() < (self.long_basic if asked.kind == "basic" else self.long_advanced)
        steps = asked.steps(long) * (2 if draw.random() < self.again else 1)
        marked = [f"{draw.choice(MARKERS)} {step}" if draw.random() < self.marked else step for step in steps]
        return " ".join(marked)

    def demonstration(self, draw: random.Random) -> Demonstration:
        asked = self.question(draw)
        return demonstration_of(asked.prompt, reply(self.chain(asked, draw), asked.label))


def reply(chain: str, label: str) -> str:
    return f"<think> {chain} </think> <answer> {label} </answer>"
