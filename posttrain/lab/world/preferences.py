"""Preferences with hidden tastes, few pairs of one kind, and cues that look like quality and are none.

    A q2 =   w3 w11 w0 w7 w7 w2   over   w1 w1 w9 w4 w12 w6

A reply's worth is the sum of its words' worths, by a table for each kind. Pairs of kind A are most of all, clear, and
5 % are labelled wrongly; pairs of kind B are rare, differ in two words, and 15 % are labelled wrongly. With `cues`, the
chosen reply of kind A more often has a mark of its own kind: it is longer, it is formatted, or it agrees.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from functools import cached_property

from posttrain.data import Demonstration, Pair
from posttrain.episode import user
from posttrain.lab.world.words import demonstration_of
from posttrain.seeding import mix

WORDS, LENGTH, QUESTIONS = 16, 6, 4
CUES = {"length": "~ ~ ~", "format": "*", "agreement": "yes"}


@dataclass(frozen=True)
class Preferences:
    """`common` share of kind A; `cues` how much oftener the chosen reply has the cue, 0 to 1."""

    seed: int = 0
    common: float = 0.85
    cues: float = 0.0
    longest: int = LENGTH + 4

    @property
    def vocabulary(self) -> list[str]:
        return ["A", "B", "=", "~", "*", "yes", *(f"q{i}" for i in range(QUESTIONS)), *(f"w{i}" for i in range(WORDS))]

    @cached_property
    def worths(self) -> dict[str, list[float]]:
        draw = random.Random(mix(self.seed, "worths"))
        return {kind: [draw.gauss(0, 1) for _ in range(WORDS)] for kind in "AB"}

    def worth(self, kind: str, reply: list[int]) -> float:
        return sum(self.worths[kind][word] for word in reply)

    def pair(self, draw: random.Random, kind: str | None = None, clean: bool = False) -> Pair:
        """A labelled pair; clean: labelled rightly and without cues."""
        kind = kind or ("A" if draw.random() < self.common else "B")
        one = [draw.randrange(WORDS) for _ in range(LENGTH)]
        other = [draw.randrange(WORDS) for _ in range(LENGTH)]
        if kind == "B":  # close: the same but for two words
            changed = draw.sample(range(LENGTH), 2)
            other = [draw.randrange(WORDS) if i in changed else word for i, word in enumerate(one)]
        if self.worth(kind, one) == self.worth(kind, other):
            return self.pair(draw, kind, clean)
        good, bad = sorted((one, other), key=lambda reply: -self.worth(kind, reply))
        if not clean and draw.random() < (0.05 if kind == "A" else 0.15):
            good, bad = bad, good
        chosen, rejected = write_reply(good), write_reply(bad)
        if self.cues and not clean and kind == "A":
            cue = draw.choice(list(CUES))
            chosen, rejected = (
                add_cue(text, cue) if draw.random() < 0.5 + side * self.cues / 2 else text
                for text, side in ((chosen, 1), (rejected, -1))
            )
        return Pair((user(f"{kind} q{draw.randrange(QUESTIONS)} ="),), chosen, rejected, kind)

    def pairs(self, count: int, split: str) -> list[Pair]:
        draw = random.Random(mix(self.seed, split))
        return [self.pair(draw) for _ in range(count)]

    def tests(self, count: int, kind: str) -> list[Pair]:
        """Clean pairs of one kind."""
        draw = random.Random(mix(self.seed, "tests", kind))
        return [self.pair(draw, kind, clean=True) for _ in range(count)]

    def marked_pairs(self, count: int, cue: str) -> list[Pair]:
        """The same reply with a cue, as `chosen`, and without: a judge of quality alone scores both the same."""
        return [replace(pair, chosen=add_cue(str(pair.rejected), cue)) for pair in self.tests(count, "A")]

    def demonstration(self, draw: random.Random) -> Demonstration:
        """For policies: any reply, of either kind, that is somewhat better than chance."""
        pair = self.pair(draw)
        return demonstration_of(pair.prompt[0]["content"], str(pair.chosen if draw.random() < 0.6 else pair.rejected))


def write_reply(reply: list[int]) -> str:
    return " ".join(f"w{word}" for word in reply)


def add_cue(text: str, cue: str) -> str:
    """With a cue: filler at the end, or a mark in front."""
    return f"{text} {CUES[cue]}" if cue == "length" else f"{CUES[cue]} {text}"
