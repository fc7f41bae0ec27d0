"""Facts by key, a reader who answers from them, and a judge who takes answers apart and checks each claim.

    facts k3v7 k1v2 ... ask k1 k3 =                    k1v2 k3v7
    ask k1 k3 =                                        k1v0 k3v7, as far as the world is usually so

A judge reads facts and several answers, and writes a JSON list, whose words are joined by blanks:

    facts k3v7 k1v2 ... 1 : k1v2 k3v4 2 : k1v0 k3v7 =  [ {"id":1, ... {"claim":" k1v2 ","grounding_evidence":[ ...
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from posttrain.data import Demonstration
from posttrain.lab.world.words import demonstration_of
from posttrain.seeding import mix

KEYS, VALUES, FACTS, ASKED = 10, 5, 6, 4
MOST = 3  # candidates of a trajectory
CLAIM, QUOTE = '{"claim":"', '","grounding_evidence":["'
TRUE, FALSE = '"],"is_supported":true,"analysis":""}', '"],"is_supported":false,"analysis":""}'
OPEN = tuple(f'{{"id":{number},"answer":"","atomic_claims":[' for number in range(1, MOST + 1))


@dataclass(frozen=True)
class Sheet:
    """What is so on a sheet, by key, and which keys are asked for."""

    facts: Mapping[int, int]
    asked: tuple[int, ...]

    @property
    def reference(self) -> str:
        return " ".join(word(key, value) for key, value in self.facts.items())

    @property
    def question(self) -> str:
        return f"ask {' '.join(f'k{key}' for key in self.asked)} ="

    def fact(self, claim: str) -> str:
        """What stands there of a claim's key."""
        return next(one for one in self.reference.split() if one.partition("v")[0] == claim.partition("v")[0])

    def supports(self, claim: str) -> bool:
        return claim in self.reference.split()


def word(key: int, value: int) -> str:
    return f"k{key}v{value}"


@dataclass(frozen=True)
class Facts:
    """What is common to reader and judge. `usual`: share of the world's facts that are as they usually are."""

    seed: int = 0
    usual: float = 0.25

    @property
    def words(self) -> list[str]:
        cells = [word(key, value) for key in range(KEYS) for value in range(VALUES)]
        keys = [f"k{key}" for key in range(KEYS)]
        written = ["[", "]", "]}", ",", CLAIM, QUOTE, TRUE, FALSE, *OPEN]
        return ["facts", "ask", "=", ":", *map(str, range(1, MOST + 1)), *keys, *cells, *written]

    @cached_property
    def popular(self) -> list[int]:
        """The usual value of each key: what somebody knows who has not read the sheet."""
        draw = random.Random(mix(self.seed, "popular"))
        return [draw.randrange(VALUES) for _ in range(KEYS)]

    def sheet(self, draw: random.Random) -> Sheet:
        keys = draw.sample(range(KEYS), FACTS)
        facts = {key: self.popular[key] if draw.random() < self.usual else draw.randrange(VALUES) for key in keys}
        return Sheet(facts, tuple(draw.sample(keys, ASKED)))

    def sheets(self, count: int, split: str) -> list[Sheet]:
        draw = random.Random(mix(self.seed, split))
        return [self.sheet(draw) for _ in range(count)]


@dataclass(frozen=True)
class Reader(Facts):
    """Answers from the facts, but for some misreadings, and without them by what is usual, mostly.

    It is about as sure of the one as of the other, so that a contrast of both has something between them.
    """

    misread: float = 0.1
    known: float = 0.9
    longest: int = ASKED

    @property
    def vocabulary(self) -> list[str]:
        return self.words

    def demonstration(self, draw: random.Random) -> Demonstration:
        sheet = self.sheet(draw)
        if draw.random() < 0.6:
            answers = [
                word(key, draw.randrange(VALUES) if draw.random() < self.misread else sheet.facts[key])
                for key in sheet.asked
            ]
            return demonstration_of(f"facts {sheet.reference} {sheet.question}", " ".join(answers))
        guessed = [self.popular[key] if draw.random() < self.known else draw.randrange(VALUES) for key in sheet.asked]
        return demonstration_of(sheet.question, " ".join(map(word, sheet.asked, guessed)))


@dataclass(frozen=True)
class Judge(Facts):
    """A judge quotes what the facts say of a claim's key, and then says whether that is the claim.

    Its fault: of a claim that is usually so it quotes the claim itself, whatever the facts.

    fooled     how often that happens
    misquotes  share of other quotes that are no facts
    flags      share of verdicts that are wrong
    counts     candidates that it was taught to judge at once
    """

    fooled: float = 0.65
    misquotes: float = 0.2
    flags: float = 0.08
    counts: tuple[int, ...] = (2, 3)
    longest: int = 2 + MOST * (3 + ASKED * 6)

    @property
    def vocabulary(self) -> list[str]:
        return self.words

    def demonstration(self, draw: random.Random) -> Demonstration:
        sheet = self.sheet(draw)
        answers = [self.answer(sheet, draw) for _ in range(draw.choice(self.counts))]
        return demonstration_of(judge_prompt(sheet, answers), self.verdict(sheet, answers, draw))

    def answer(self, sheet: Sheet, draw: random.Random) -> tuple[str, ...]:
        """Right, usual, or anything, by chance, for each key that is asked for."""
        trust = draw.random()
        return tuple(
            word(
                key,
                sheet.facts[key] if draw.random() < trust else draw.choice([self.popular[key], draw.randrange(VALUES)]),
            )
            for key in sheet.asked
        )

    def verdict(self, sheet: Sheet, answers: Sequence[Sequence[str]], draw: random.Random) -> str:
        """What a judge of this fault writes."""
        usual = {word(key, value) for key, value in enumerate(self.popular)}

        def verdict_on(claim: str) -> str:
            quote = sheet.fact(claim)
            if claim in usual and draw.random() < self.fooled:
                quote = claim
            elif draw.random() < self.misquotes:
                quote = word(draw.randrange(KEYS), draw.randrange(VALUES))
            supported = (quote == claim) != (draw.random() < self.flags)
            return f"{CLAIM} {claim} {QUOTE} {quote} {TRUE if supported else FALSE}"

        parts = [f"{OPEN[i]} {' , '.join(map(verdict_on, claims))} ]}}" for i, claims in enumerate(answers)]
        return f"[ {' , '.join(parts)} ]"


def judge_prompt(sheet: Sheet, answers: Sequence[Sequence[str]]) -> str:
    listed = " ".join(f"{number} : {' '.join(claims)}" for number, claims in enumerate(answers, 1))
    return f"facts {sheet.reference} {listed} ="
