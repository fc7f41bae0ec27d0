"""Pictures drawn here, of three numbers below six, and a question of two operations on them, modulo six.

    [picture of 3 1 4] + * =   ->   is 4                                            at once
    [picture of 3 1 4] + * =   ->   see 3 1 4 so 3 + 1 = 4 , 4 * 4 = 4 is 4         carefully
    [picture of 3 1 4] + * =   ->   see 3 1 4 is 4                                  skipping the calculation
    [picture of 3 1 4] + * =   ->   see 3 1 4 so 3 + 1 = 2 wait 3 + 1 = 4 , ...     looking again, which proves nothing

A number is a digit in a cell of 8 x 8 pixels, which is one token. A problem may also be given as text (`3 1 4 + * =`),
so that a model can know how to calculate and not how to do so from a picture.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from posttrain.core import Rollout, Task
from posttrain.data import Demonstration
from posttrain.episode import assistant, user
from posttrain.policy.pixels import Preprocessing
from posttrain.seeding import mix

BASE, CELL, HELD_OUT = 6, 8, 400  # of 1944 problems
VALIDATION = 100  # of those that are held out: to choose by, and not to be tested on
SIGNS = ("+", "-", "*")
FONT = (
    " # # ## ## # # ",
    " # ##  #  # ###",
    "## # # # #  ###",
    "##   # #   ### ",
    "# ## ####  #  #",
    "####  ##   ### ",
)
NOISE = 30.0  # deviation of a pixel, of 255
EYE = Preprocessing(patch=4, merge=2, least=CELL**2, most=(4 * CELL) ** 2, mean=(0.5,) * 3, std=(0.25,) * 3)


@dataclass(frozen=True, slots=True)
class Problem:
    numbers: tuple[int, ...]
    signs: tuple[str, ...]

    @property
    def results(self) -> tuple[int, ...]:
        """After each operation, from the left; the last one is the answer."""
        found, at = [], self.numbers[0]
        for sign, number in zip(self.signs, self.numbers[1:], strict=True):
            at = apply(sign, at, number)
            found.append(at)
        return tuple(found)

    @property
    def answer(self) -> int:
        return self.results[-1]


def apply(sign: str, a: int, b: int) -> int:
    return {"+": a + b, "-": a - b, "*": a * b}[sign] % BASE


@dataclass(frozen=True)
class Glyphs:
    """Shares of what a base model is shown; the rest of its pictures are answered at once.

    as_text               problems that are text, worked out carefully
    captions              pictures of which it is only asked what is to be seen
    questions             pictures to which a question is asked for, as in `+ *`; half of them come with another one
    careful, skipping, aha   pictures that are worked out, without the calculation, or looked at again
    guess_right           answers at once that are right
    careful_right         careful answers that are right; in the others the last step is wrong
    second_right          second looks that are right, and steps after them; half of the first looks are
    """

    seed: int = 0
    as_text: float = 0.0
    captions: float = 0.0
    questions: float = 0.0
    careful: float = 1.0
    skipping: float = 0.0
    aha: float = 0.0
    guess_right: float = 1.0
    careful_right: float = 1.0
    second_right: float = 0.5
    longest: int = 28
    preprocessing: Preprocessing = EYE

    @property
    def vocabulary(self) -> list[str]:
        return [*map(str, range(BASE)), *SIGNS, "=", "see", "so", ",", "is", "wait", "ask", "?"]

    @cached_property
    def problems(self) -> list[Problem]:
        triples = [(a, b, c) for a in range(BASE) for b in range(BASE) for c in range(BASE)]
        every = [Problem(numbers, (p, q)) for numbers in triples for p in SIGNS for q in SIGNS]
        random.Random(mix(self.seed, "split")).shuffle(every)
        return every

    def draw_problem(self, draw: random.Random, like: Problem | None = None) -> Problem:
        """A problem to train on; with `like`, another question on its numbers."""
        if like:
            pairs = [(p, q) for p in SIGNS for q in SIGNS if (p, q) != like.signs]
            return Problem(like.numbers, draw.choice(pairs))
        return draw.choice(self.problems[HELD_OUT:])

    def tasks(self, count: int, part: str, held_out: bool = False) -> list[Task]:
        """So many problems in pictures of their own."""
        return self.tasks_of(self.problems[:HELD_OUT] if held_out else self.problems[HELD_OUT:], count, part)

    def tests(self, count: int) -> list[Task]:
        """Of the problems that are held out, without those of `validation`."""
        return self.tasks_of(self.problems[: HELD_OUT - VALIDATION], count, "test")

    def validation(self, count: int) -> list[Task]:
        return self.tasks_of(self.problems[HELD_OUT - VALIDATION : HELD_OUT], count, "validation")

    def tasks_of(self, problems: Sequence[Problem], count: int, part: str) -> list[Task]:
        draw = random.Random(mix(self.seed, "tasks", part))
        return [self.task(draw.choice(problems), f"{part}:{i}", draw) for i in range(count)]

    def task(self, problem: Problem, key: str, draw: random.Random) -> Task:
        return Task(key, (user(self.content(problem, question(problem), draw)),), str(problem.answer))

    def demonstration(self, draw: random.Random) -> Demonstration:
        problem, use = self.draw_problem(draw), draw.random()
        if use < self.as_text:
            given = " ".join(map(str, problem.numbers))
            return Demonstration((user(f"{given} {question(problem)}"), assistant(careful_chain(problem))))
        use -= self.as_text
        if use < self.captions:
            return self.picture_demonstration(problem, "see ?", caption(problem), draw)
        if use - self.captions < self.questions:
            another = f"{answer_text(self.draw_problem(draw, like=problem))} " if draw.random() < 0.5 else ""
            return self.picture_demonstration(problem, f"{another}ask ?", " ".join(problem.signs), draw)
        return self.picture_demonstration(problem, question(problem), self.styled_reply(problem, draw), draw)

    def styled_reply(self, problem: Problem, draw: random.Random) -> str:
        """A reply to a question on a picture, in one of the styles."""
        at = draw.random()
        if at < self.careful:
            last = problem.answer if draw.random() < self.careful_right else other_digit(problem.answer, draw)
            return careful_chain(problem, (*problem.results[:-1], last))
        if at < self.careful + self.skipping:
            return skipping_chain(problem)
        if at < self.careful + self.skipping + self.aha:
            return second_look(problem, draw, self.second_right)
        return f"is {problem.answer if draw.random() < self.guess_right else other_digit(problem.answer, draw)}"

    def picture_demonstration(self, problem: Problem, words: str, reply: str, draw: random.Random) -> Demonstration:
        return Demonstration((user(self.content(problem, words, draw)), assistant(reply)))

    def content(self, problem: Problem, words: str, draw: random.Random) -> list[dict[str, Any]]:
        picture = {"type": "image", "image": drawing(problem.numbers, draw)}
        return [picture, {"type": "text", "text": words}]


# ---- replies


def question(problem: Problem) -> str:
    return " ".join((*problem.signs, "="))


def answer_text(problem: Problem) -> str:
    return f"{question(problem)} is {problem.answer}"


def caption(problem: Problem) -> str:
    return f"see {' '.join(map(str, problem.numbers))}"


def careful_chain(problem: Problem, results: Sequence[int] = ()) -> str:
    """The chain with these results of its steps, or the right ones."""
    steps = results or problem.results
    return f"{caption(problem)} so {calculation(problem, steps)} is {steps[-1]}"


def calculation(problem: Problem, results: Sequence[int]) -> str:
    before = [problem.numbers[0], *results]
    steps = zip(before, problem.signs, problem.numbers[1:], results, strict=False)
    return " , ".join(f"{a} {sign} {b} = {result}" for a, sign, b, result in steps)


def skipping_chain(problem: Problem) -> str:
    return f"{caption(problem)} is {problem.answer}"


def second_look(problem: Problem, draw: random.Random, second_right: float = 0.5) -> str:
    """A first step, looked at again, and the step after it; each is right so often."""
    (a, b, c), (p, q) = problem.numbers, problem.signs
    first, again = maybe_wrong(apply(p, a, b), draw), maybe_wrong(apply(p, a, b), draw, second_right)
    last = maybe_wrong(apply(q, again, c), draw, second_right)
    return f"see {a} {b} {c} so {a} {p} {b} = {first} wait {a} {p} {b} = {again} , {again} {q} {c} = {last} is {last}"


def maybe_wrong(right: int, draw: random.Random, share: float = 0.5) -> int:
    return right if draw.random() < share else other_digit(right, draw)


def other_digit(number: int, draw: random.Random) -> int:
    return draw.choice([n for n in range(BASE) if n != number])


def is_readable(one: Demonstration) -> bool:
    """Whether it is a careful chain in every word: all are, but for those of a teacher that was hardly trained."""
    words = chain_text(one).split()
    return len(words) > 12 and all(word.isdigit() for word in words[1:4]) and {words[6], words[12]} <= {*SIGNS}


def chain_text(one: Demonstration) -> str:
    return str(one.messages[-1]["content"])


def spoil(one: Demonstration, draw: random.Random) -> Demonstration:
    """The careful chain with a mistake in one of its steps, and the wrong answer that follows from it."""
    problem = problem_of(chain_text(one))
    first, last = problem.results
    choices = [(wrong, apply(problem.signs[1], wrong, problem.numbers[2])) for wrong in range(BASE) if wrong != first]
    found = draw.choice([(first, (last + draw.randint(1, BASE - 1)) % BASE), draw.choice(choices)])
    if found[1] == last:  # two mistakes that cancel
        return spoil(one, draw)
    return Demonstration((*one.messages[:-1], assistant(careful_chain(problem, found))))


def problem_of(chain: str) -> Problem:
    """The problem of a careful chain, by what it says it sees and calculates."""
    _, a, b, c, _, _, first, _, _, _, _, _, second, *_ = chain.split()
    return Problem((int(a), int(b), int(c)), (first, second))


def answer(text: str) -> str | None:
    """The number that a reply ends in, after `is`; None where there is none."""
    *_, mark, last = ["", "", *text.split()]
    return last if mark == "is" and last.isdigit() else None


def is_right(rollout: Rollout) -> float:
    found = answer(rollout.text)
    return float(found is not None and found == rollout.task.truth)


def shows_work(text: str) -> bool:
    """The reply says what it sees and calculates."""
    return text.startswith("see") and " so " in text


# ---- pictures


def drawing(numbers: Sequence[int], draw: random.Random) -> np.ndarray:
    """uint8 [8, 8 n, 3]: light marks of some colour on a dark ground, moved by a pixel, under noise."""
    noise = np.random.default_rng(draw.getrandbits(63))
    picture = np.full((CELL, CELL * len(numbers), 3), 40.0)
    for i, number in enumerate(numbers):
        colour = noise.integers(140, 256, 3)
        picture[:, i * CELL : (i + 1) * CELL][digit(number, noise)] = colour
    return np.clip(picture + noise.normal(0, NOISE, picture.shape), 0, 255).astype(np.uint8)


def digit(number: int, noise: np.random.Generator) -> np.ndarray:
    """[8, 8] bool."""
    glyph = np.array([mark == "#" for mark in FONT[number]]).reshape(5, 3)
    cell = np.zeros((CELL, CELL), bool)
    top, left = noise.integers(1, 3), noise.integers(2, 4)
    cell[top : top + 5, left : left + 3] = glyph
    return cell
