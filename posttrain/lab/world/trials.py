"""Reports of trials as rows of numbers, and a silver annotator who takes fields from the wrong row.

    extract o3 | o1 12 40 7 35 ; o3 20 40 9 36 ; o2 ... =

    <think> o3 20 40 9 36 </think>
    {intervention: {events: 20 ,group_size: 40 },comparator: {events: 9 ,group_size: 36 }}

A row is an outcome, then events and group size in the intervention's and the comparator's arm; thinking quotes it.
Words are joined by blanks, and the record is YAML as it stands. Asked to `conclude o3`, a reply names the side whose
share of events is significantly higher, from the same annotator's numbers, without writing them down.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from posttrain.data import Demonstration
from posttrain.lab.world.words import demonstration_of
from posttrain.seeding import mix

Asked = Literal["extract", "conclude"]
Counts = tuple[int, int, int, int]  # events and group size of the intervention's arm, then of the comparator's
ASKED: tuple[Asked, ...] = ("extract", "conclude")
OUTCOMES, ROWS, SMALLEST, LARGEST = 6, 3, 20, 50
SIDES = ("intervention", "comparator", "inconclusive")
BETWEEN = ("<think>", "</think>", "{intervention:", "{events:", ",group_size:", "},comparator:", "}}", "conclusion:")


@dataclass(frozen=True)
class Report:
    rows: tuple[tuple[int, Counts], ...]  # outcome and its numbers
    outcome: int

    @property
    def numbers(self) -> Counts:
        return dict(self.rows)[self.outcome]

    def prompt(self, asked: Asked) -> str:
        rows = " ; ".join(f"o{outcome} {a} {n1} {c} {n2}" for outcome, (a, n1, c, n2) in self.rows)
        return f"{asked} o{self.outcome} | {rows} ="

    def misread(self, draw: random.Random, wrong: float) -> Counts:
        """Its numbers, each taken from another outcome's row with this probability."""
        others = [numbers for outcome, numbers in self.rows if outcome != self.outcome]
        a, n1, c, n2 = (draw.choice(others)[i] if draw.random() < wrong else n for i, n in enumerate(self.numbers))
        return a, n1, c, n2


@dataclass(frozen=True)
class Trials:
    """`conclude`: the side that numbers speak for; `wrong`: probability that a field of a demonstration is misread."""

    conclude: Callable[[Counts], str] = field(repr=False)
    seed: int = 0
    wrong: float = 0.0
    asked: Asked = "extract"
    longest: int = 20

    @property
    def vocabulary(self) -> list[str]:
        outcomes = [f"o{i}" for i in range(OUTCOMES)]
        return [*ASKED, "|", ";", "=", *outcomes, *map(str, range(LARGEST + 1)), *BETWEEN, *SIDES]

    def report(self, draw: random.Random) -> Report:
        outcomes = draw.sample(range(OUTCOMES), ROWS)
        return Report(tuple((outcome, counts(draw)) for outcome in outcomes), draw.choice(outcomes))

    def reports(self, count: int, split: str) -> list[Report]:
        draw = random.Random(mix(self.seed, split))
        return [self.report(draw) for _ in range(count)]

    def demonstration(self, draw: random.Random) -> Demonstration:
        report = self.report(draw)
        said = report.misread(draw, self.wrong)
        answer = reply(report.outcome, said) if self.asked == "extract" else f"conclusion: {self.conclude(said)}"
        return demonstration_of(report.prompt(self.asked), answer)


def counts(draw: random.Random) -> Counts:
    n1, n2 = draw.randint(SMALLEST, LARGEST), draw.randint(SMALLEST, LARGEST)
    return draw.randint(0, n1), n1, draw.randint(0, n2), n2


def reply(outcome: int, said: Counts) -> str:
    a, n1, c, n2 = said
    record = f"{{intervention: {{events: {a} ,group_size: {n1} }},comparator: {{events: {c} ,group_size: {n2} }}}}"
    return f"<think> o{outcome} {a} {n1} {c} {n2} </think> {record}"
