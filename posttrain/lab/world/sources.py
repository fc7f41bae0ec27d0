"""Three kinds of prompts in one run, whose rewards are on different scales.

math     M s2 p1 p4 =   ->   D s5, or W s0 s5       0 or 1: the two habits
code     C f2 g4 =      ->   x1 x7 x3 x2            the share of four places that are right: tests passed
general  G t1 u5 =      ->   w3 w0 w3               20 x how the words are liked on the topic, with a judge's noise
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from posttrain.core import Rollout, Task
from posttrain.data import Demonstration
from posttrain.lab.world.habits import Habits, is_right
from posttrain.lab.world.words import demonstration_of, task
from posttrain.seeding import mix
from posttrain.stream import ShuffledSource

KINDS = ("math", "code", "general")
CHOICES, SYMBOLS, PLACES, WORDS, SAID = 8, 10, 4, 8, 3
HELD_OUT = 16  # of 64 pairs of code, and of general
CORRUPTED = 0.45  # chance that a place of a code demonstration is drawn at random
SCALE, NOISE = 20.0, 0.5  # of general's reward, and of its judge


@dataclass(frozen=True)
class Sources:
    """`pleasing`: the chance that a word of a general demonstration is the most liked one; else it is any."""

    seed: int = 0
    pleasing: float = 0.25
    longest: int = 6

    @cached_property
    def habits(self) -> Habits:
        return Habits(self.seed, worked=0.3)

    @property
    def vocabulary(self) -> list[str]:
        names = [f"{kind}{i}" for kind in "fgtu" for i in range(CHOICES)]
        spoken = [*(f"x{i}" for i in range(SYMBOLS)), *(f"w{i}" for i in range(WORDS))]
        return [*self.habits.vocabulary, "M", "C", "G", *names, *spoken]

    @cached_property
    def tables(self) -> list[list[int]]:
        draw = random.Random(mix(self.seed, "code"))
        return [[draw.randrange(SYMBOLS) for _ in range(CHOICES)] for _ in range(PLACES)]

    @cached_property
    def liking(self) -> list[list[float]]:
        """[topics][words]; who asks does not matter, and must be overlooked."""
        draw = random.Random(mix(self.seed, "liking"))
        return [[draw.gauss(0, 1) for _ in range(WORDS)] for _ in range(CHOICES)]

    def code(self, f: int, g: int) -> list[str]:
        return [f"x{table[(f, g)[i % 2]]}" for i, table in enumerate(self.tables)]

    def pairs(self, kind: str) -> list[tuple[int, int]]:
        every = [(a, b) for a in range(CHOICES) for b in range(CHOICES)]
        random.Random(mix(self.seed, kind)).shuffle(every)
        return every

    def tasks(self, held_out: bool = False) -> dict[str, list[Task]]:
        part = slice(0, HELD_OUT) if held_out else slice(HELD_OUT, None)
        maths = self.habits.held_out_tasks() if held_out else self.habits.training_tasks()
        return {
            "math": [task(f"math:{one.key}", "M " + one.prompt[0]["content"], one.truth) for one in maths],
            "code": [task(f"code:{f},{g}", f"C f{f} g{g} =", self.code(f, g)) for f, g in self.pairs("C")[part]],
            "general": [task(f"general:{t},{u}", f"G t{t} u{u} =", self.liking[t]) for t, u in self.pairs("G")[part]],
        }

    def demonstration(self, draw: random.Random) -> Demonstration:
        kind = draw.choice("MCG")
        if kind == "M":
            asked, answered = self.habits.demonstration(draw).messages
            return demonstration_of("M " + asked["content"], answered["content"])
        a, b = draw.choice(self.pairs(kind)[HELD_OUT:])
        if kind == "C":
            words = [f"x{draw.randrange(SYMBOLS)}" if draw.random() < CORRUPTED else word for word in self.code(a, b)]
            return demonstration_of(f"C f{a} g{b} =", " ".join(words))
        best = self.liking[a].index(max(self.liking[a]))
        chosen = [best if draw.random() < self.pleasing else draw.randrange(WORDS) for _ in range(SAID)]
        return demonstration_of(f"G t{a} u{b} =", " ".join(f"w{word}" for word in chosen))


def kind_of(one: Task) -> str:
    return one.key.partition(":")[0]


def share_passed(rollout: Rollout) -> float:
    words = rollout.text.split()
    return sum(a == b for a, b in zip(words, rollout.task.truth, strict=True)) / PLACES if len(words) == PLACES else 0.0


def liking(rollout: Rollout) -> float:
    """The mean liking of the words; of another form, that of the least liked word."""
    words = rollout.text.split()
    if len(words) != SAID or not all(word.startswith("w") for word in words):
        return min(rollout.task.truth)
    return statistics.fmean(rollout.task.truth[int(word[1:])] for word in words)


def judged_liking(rollout: Rollout) -> float:
    """`liking`, as a judge says it: on his scale, and with his noise."""
    noise = random.Random(mix(rollout.turns[0].ask.seed, "judge")).gauss(0, NOISE)
    return SCALE * (liking(rollout) + noise)


def way_to_best(truth: Sequence[float], value: float) -> float:
    """0: as good as any word; 1: the best word."""
    mean = statistics.fmean(truth)
    return (value - mean) / (max(truth) - mean)


GRADES = {"math": is_right, "code": share_passed, "general": judged_liking}


class EvenSource:
    """Every step takes as many tasks of each kind."""

    def __init__(self, tasks: Mapping[str, Sequence[Task]], seed: int):
        self.streams = {kind: ShuffledSource(tasks[kind], mix(seed, kind)) for kind in KINDS}

    @property
    def items(self) -> list[Task]:
        return [task for stream in self.streams.values() for task in stream.items]

    def take(self, count: int) -> list[Task]:
        each, over = divmod(count, len(KINDS))
        return [one for i, kind in enumerate(KINDS) for one in self.streams[kind].take(each + (i < over))]

    def state_dict(self) -> dict[str, Any]:
        return {kind: stream.state_dict() for kind, stream in self.streams.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for kind, stream in self.streams.items():
            stream.load_state_dict(state[kind])
