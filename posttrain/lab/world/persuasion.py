"""A persuadee with hidden beliefs, and a persuader of few words who does not see them.

    x3 y7 A hi B hi A no c2 r1 B e5 e9 e5 m1 | c5+ c2- |
        ->   <thought> + c5 </thought> <argument> no c5 r0 </argument>

A topic (x3 y7) has six of sixteen counterclaims. Bob believes in each at a level of 0 to 4, with a weight: his stance
is S = 1 - sum of w b / 4. Refuting one that he holds lowers its level by 3, once more by 1; one that he does not hold
is wasted, and one that is none of the topic's backfires. His words (e5) are what is on his mind, by w b, and half of
them are noise. So what he believes can be inferred and is nowhere to be seen.

Alice argues against something that is listed, against what Bob's words stand for, or against a listed claim with which
he agrees to a degree (+, ?, -) that she names first, each at random: which of these habits pays is what reinforcement
can teach.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch

from posttrain.core import Ask, Message, Reply
from posttrain.data import Demonstration
from posttrain.episode import user
from posttrain.lab.world.words import demonstration_of
from posttrain.seeding import mix

NAMES, COUNTERCLAIMS, EACH, RHETORIC = 20, 16, 6, 4
HELD_OUT = 80  # of the 400 topics
LEVELS, OFTEN = range(5), (0.4, 0.1, 0.1, 0.15, 0.25)  # of belief, and how common each is
HINTS, HINT_NOISE, ATTITUDE_NOISE = 3, 0.5, 0.35
STRONGEST = 3  # of the listed counterclaims, from which Alice takes one when nothing else guides her
FIRST_BLOW, NEXT_BLOW = 3, 1  # levels that a refutation takes from a belief
DEGREES = ("-", "?", "+")  # 0 to 2 eighths of agreement, 3 to 5 or not known, 6 to 8
ATTITUDES = ("Disagree", "Partly Disagree", "Neutral", "Partly Agree", "Agree")
TURNS, TURN_SHARES = range(6), (4, 4, 4, 1, 1, 1)  # rounds before the one that a demonstration shows
STRUCTURE = {"A", "B", "|"}  # an argument that has them is not understood: it would be read as more than one
TAGS = ("<thought>", "</thought>", "<argument>", "</argument>")


@dataclass(frozen=True, slots=True)
class Mind:
    """What Bob thinks of a topic: its counterclaims, how much each weighs, how much he believes in each (0 to 4)."""

    claims: tuple[int, ...]  # [K]
    weights: tuple[float, ...]  # [K]
    levels: tuple[int, ...]  # [K]

    def levels_after(self, arguments: Sequence[str]) -> tuple[int, ...]:
        """[K] his levels when he has heard these arguments, in order; the first refutation of each counts."""
        levels, refuted = list(self.levels), set[int]()
        for target in filter(lambda found: found is not None, map(refuted_counterclaim, arguments)):
            if target in self.claims:
                k = self.claims.index(target)
                levels[k] = max(levels[k] - (NEXT_BLOW if k in refuted else FIRST_BLOW), 0)
                refuted.add(k)
            else:
                k = max(range(len(levels)), key=lambda k: (levels[k] < LEVELS[-1], self.weights[k]))
                levels[k] = min(levels[k] + 1, LEVELS[-1])
        return tuple(levels)

    def stance(self, levels: Sequence[int]) -> float:
        """S in [0, 1]: 1 when nothing speaks against the claim any more."""
        return min(max(1 - sum(w * b for w, b in zip(self.weights, levels, strict=True)) / LEVELS[-1], 0.0), 1.0)


def refuted_counterclaim(argument: str) -> int | None:
    """The counterclaim that an argument is against: of several, the first."""
    words = argument.split()
    found = [b for a, b in pairwise(words) if a == "no" and b[0] == "c" and b[1:].isdigit()]
    return int(found[0][1:]) if found else None


def counterclaim_of(word: str) -> int | None:
    """The counterclaim that a word of Bob's stands for."""
    return int(word[1:]) if word[0] == "e" and word[1:].isdigit() else None


@dataclass(frozen=True)
class Persuasion:
    """The world of a seed, and the words in which its dialogues are held; `sloppy` replies leave a tag out."""

    seed: int = 0
    sloppy: float = 0.15
    longest: int = 13
    greetings: tuple[str, str] = ("hi", "hi")
    silence: str = "nothing"

    @property
    def vocabulary(self) -> list[str]:
        numbered = {"x": NAMES, "y": NAMES, "r": RHETORIC, "m": 5, "c": COUNTERCLAIMS, "e": COUNTERCLAIMS}
        plain = ["|", "A", "B", "hi", "nothing", "no", "listed", "heard", *DEGREES]
        listed = [f"c{c}{sign}" for c in range(COUNTERCLAIMS) for sign in DEGREES]
        return [f"{letter}{i}" for letter, count in numbered.items() for i in range(count)] + plain + listed + [*TAGS]

    # ---- topics

    @cached_property
    def minds(self) -> list[Mind]:
        """[400] of every topic, by its number."""
        return [self.mind(random.Random(mix(self.seed, "topic", i))) for i in range(NAMES * NAMES)]

    def mind(self, draw: random.Random) -> Mind:
        claims = draw.sample(range(COUNTERCLAIMS), EACH)
        while True:
            levels = draw.choices(LEVELS, OFTEN, k=EACH)
            if sum(level >= 3 for level in levels) >= 2:
                break
        raw = [draw.uniform(0.3, 1.0) for _ in range(EACH)]
        against = 1 - draw.uniform(0.15, 0.35)
        scale = against * LEVELS[-1] / sum(u * b for u, b in zip(raw, levels, strict=True))
        return Mind(tuple(claims), tuple(u * scale for u in raw), tuple(levels))

    @cached_property
    def order(self) -> list[int]:
        return random.Random(mix(self.seed, "split")).sample(range(NAMES * NAMES), NAMES * NAMES)

    def numbers(self, held_out: bool) -> list[int]:
        return self.order[:HELD_OUT] if held_out else self.order[HELD_OUT:]

    def claim(self, number: int) -> str:
        return f"x{number // NAMES} y{number % NAMES}"

    def counterclaims(self, number: int) -> list[str]:
        return [f"c{c}" for c in self.minds[number].claims]

    # ---- what is said to whom

    def transcript(self, lines: Sequence[str]) -> str:
        heard = (self.silence if STRUCTURE & set(line.split()) else line for line in lines)
        return " ".join(f"{'AB'[i % 2]} {line}" for i, line in enumerate(heard))

    def persuader(
        self,
        claim: str,
        denial: str,
        lines: Sequence[str],
        counterclaims: Sequence[str] = (),
        agreement: Sequence[int] = (),
    ) -> tuple[Message, ...]:
        degrees = [degree(k) for k in agreement] or ["?"] * len(counterclaims)
        listed = [f"{c}{sign}" for c, sign in zip(counterclaims, degrees, strict=True)]
        return (user(" ".join([claim, self.transcript(lines), "|", *listed, "|"])),)

    def persuadee(self, claim: str, denial: str, lines: Sequence[str]) -> tuple[Message, ...]:
        return (user(f"{claim} | {self.transcript(lines)}"),)

    def attitude(self, claim: str, denial: str, lines: Sequence[str], statement: str) -> tuple[Message, ...]:
        return (user(f"{claim} | {self.transcript(lines)} | {statement}"),)

    # ---- Alice, before she has learnt anything

    def demonstration(self, draw: random.Random) -> Demonstration:
        number = draw.choice(self.numbers(held_out=False))
        mind, claim = self.minds[number], self.claim(number)
        lines = [*self.greetings]
        for _ in range(draw.choices(TURNS, TURN_SHARES)[0]):
            lines.append(refutation(draw.choice(mind.claims) if draw.random() < 0.6 else any_claim(draw), draw))
            lines.append(bob_words(mind, lines[2::2], draw))
        shows = draw.choice(("nothing", "claims", "levels"))
        listed = self.counterclaims(number) if shows != "nothing" else []
        levels = mind.levels_after(lines[2::2]) if shows == "levels" else ()
        agreement = [min(max(2 * level + draw.choice((-1, 0, 0, 1)), 0), 8) for level in levels]
        thought, target = habit(mind.claims if listed else (), agreement, lines[-1], draw)
        reply = f"<thought> {thought} c{target} </thought> <argument> {refutation(target, draw)} </argument>"
        if draw.random() < self.sloppy:
            reply = reply.replace(f"{draw.choice(TAGS)} ", "", 1)
        return demonstration_of(self.persuader(claim, f"no {claim}", lines, listed, agreement)[0]["content"], reply)


def degree(eighths: int) -> str:
    return DEGREES[eighths // 3]


def any_claim(draw: random.Random) -> int:
    return draw.randrange(COUNTERCLAIMS)


def refutation(target: int, draw: random.Random) -> str:
    return f"no c{target} r{draw.randrange(RHETORIC)}"


def habit(listed: Sequence[int], agreement: Sequence[int], last: str, draw: random.Random) -> tuple[str, int]:
    """What Alice thinks first, and the counterclaim that she takes on."""
    heard = [claim for claim in map(counterclaim_of, last.split()) if claim is not None]
    kinds = ["listed", *(["heard"] if heard else []), *(["level"] if agreement else [])]
    kind = draw.choice(kinds)
    if kind == "heard":
        return kind, draw.choice(heard)
    if kind == "level":
        sign = degree(draw.choice(agreement))
        return sign, next(claim for claim, k in zip(listed, agreement, strict=True) if degree(k) == sign)
    return kind, draw.choice(listed[:STRONGEST]) if listed else any_claim(draw)


# ---- Bob


def bob_words(mind: Mind, arguments: Sequence[str], draw: random.Random) -> str:
    """What Bob says next: three words for what is on his mind, and a fourth for his mood."""
    levels = mind.levels_after(arguments)
    heavy = [w * b + 1e-9 for w, b in zip(mind.weights, levels, strict=True)]
    claims = [
        any_claim(draw) if draw.random() < HINT_NOISE else draw.choices(mind.claims, heavy)[0] for _ in range(HINTS)
    ]
    mood = min(max(round(4 * mind.stance(levels) + draw.gauss(0, 1)), 0), 4)
    return " ".join([*(f"e{claim}" for claim in claims), f"m{mood}"])


@dataclass(frozen=True)
class Bob:
    """Answers as Bob: a function of what he is told and asked, and of the ask's seed where the temperature is not 0."""

    world: Persuasion

    def sample(self, asks: Sequence[Ask]) -> list[Reply]:
        return [Reply(self.answer(ask), torch.zeros(0), None) for ask in asks]

    def answer(self, ask: Ask) -> str:
        text = str(ask.messages[-1]["content"])
        claim, history, *asked = text.split(" | ")
        x, y = (int(name[1:]) for name in claim.split())
        mind = self.world.minds[x * NAMES + y]
        arguments = [part.partition(" B ")[0] for part in f" {history}".split(" A ")[2:]]
        draw = random.Random(mix(self.world.seed, text, 0 if ask.temperature == 0 else ask.seed))
        if not asked:
            words = bob_words(mind, arguments, draw)
            return f"<thought> {mind.levels_after(arguments)} </thought> <argument> {words} </argument>"
        level = self.attitude(mind, arguments, asked[0]) + draw.gauss(0, ATTITUDE_NOISE)
        return f"<attitude>{ATTITUDES[min(max(round(level), 0), 4)]}</attitude>"

    def attitude(self, mind: Mind, arguments: Sequence[str], statement: str) -> float:
        """In [0, 4], to the claim, to a counterclaim, or to what denies one of them."""
        levels, thing = mind.levels_after(arguments), statement.removeprefix("no ")
        if thing.startswith("c"):
            claim = int(thing[1:])
            level = float(levels[mind.claims.index(claim)]) if claim in mind.claims else 2.0
        else:
            level = 4 * mind.stance(levels)
        return 4 - level if statement.startswith("no ") else level
