r"""One problem in three views: as text, as a picture with its description, and as a picture alone.

    3 1 4 + * =                                                     text
    [picture of 3 1 4] Image description: 3 1 4 + * =               captioned
    [picture of 3 1 4] + * =                                        pictures

    <think> </think> \boxed{4}                                      answered at once
    <think> 3 1 4 so 3 + 1 = 4 , 4 * 4 = 4 </think> \boxed{4}       answered by a chain

Problems and pictures are those of `glyphs`: three numbers and two operations modulo six, on which guesses at once often
fail. What the views differ in is the habit: how often a model thinks before it answers.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from posttrain.core import Task
from posttrain.data import Demonstration
from posttrain.episode import assistant, user
from posttrain.lab.world.glyphs import BASE, EYE, HELD_OUT, SIGNS, Glyphs, Problem, calculation, drawing, question
from posttrain.policy.pixels import Preprocessing
from posttrain.seeding import mix

View = Literal["text", "captioned", "pictures"]
SHARES: Mapping[View, float] = {"text": 0.25, "captioned": 0.25, "pictures": 0.5}  # of demonstrations


@dataclass(frozen=True)
class Views:
    """Shares of what is answered by a chain, in each view."""

    seed: int
    text: float = 0.5
    captioned: float = 0.5
    pictures: float = 0.5
    longest: int = 20
    preprocessing: Preprocessing = EYE

    @property
    def vocabulary(self) -> list[str]:
        boxes = [boxed(number) for number in range(BASE)]
        return [*map(str, range(BASE)), *SIGNS, "=", "so", ",", "Image", "description:", "<think>", "</think>", *boxes]

    @cached_property
    def glyphs(self) -> Glyphs:
        return Glyphs(self.seed)

    def demonstration(self, draw: random.Random) -> Demonstration:
        [view] = draw.choices(list(SHARES), list(SHARES.values()))
        problem = self.glyphs.draw_problem(draw)
        reply = chain(problem) if draw.random() < getattr(self, view) else at_once(problem)
        return Demonstration((user(content(problem, view, draw)), assistant(reply)))

    def tasks(self, view: View, count: int, part: str, held_out: bool = False) -> list[Task]:
        """So many problems in a view, each with its answer as text."""
        problems, draw = self.glyphs.problems, random.Random(mix(self.seed, "views", part))
        some = problems[:HELD_OUT] if held_out else problems[HELD_OUT:]
        chosen = [draw.choice(some) for _ in range(count)]
        return [
            Task(f"{view}:{part}:{i}", (user(content(one, view, draw)),), str(one.answer))
            for i, one in enumerate(chosen)
        ]


def content(problem: Problem, view: View, draw: random.Random) -> Any:
    """What is asked: text, or parts with a picture drawn anew."""
    numbers = " ".join(map(str, problem.numbers))
    if view == "text":
        return f"{numbers} {question(problem)}"
    words = f"Image description: {numbers}\n\n{question(problem)}" if view == "captioned" else question(problem)
    return [{"type": "image", "image": drawing(problem.numbers, draw)}, {"type": "text", "text": words}]


def chain(problem: Problem) -> str:
    numbers = " ".join(map(str, problem.numbers))
    steps = calculation(problem, problem.results)
    return f"<think> {numbers} so {steps} </think> {boxed(problem.answer)}"


def at_once(problem: Problem) -> str:
    return f"<think> </think> {boxed(problem.answer)}"


def boxed(number: int) -> str:
    return f"\\boxed{{{number}}}"


def thinks(text: str) -> bool:
    """The reply calculates before it answers."""
    return " so " in text
