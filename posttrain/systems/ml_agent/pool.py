"""The state pool: states of an expert's episodes, from which single actions start."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import posttrain as pt
from posttrain.records import records
from posttrain.systems.ml_agent.episode import Start, task_of
from posttrain.systems.ml_agent.problem import Problem
from posttrain.systems.ml_agent.prompt import Dialect
from posttrain.systems.ml_agent.reward import Course
from posttrain.systems.ml_agent.workspace import State, restore, snapshot


class StatePool:
    """A source that draws states uniformly and independently: s ~ pool.

    Draw n is the same in any process: it depends on the seed and n alone.
    """

    def __init__(self, items: Sequence[pt.Task[Start]], seed: int = 0):
        if not items:
            raise ValueError("the pool has no states")
        self.items, self.seed, self.drawn = items, seed, 0

    def take(self, count: int) -> list[pt.Task[Start]]:
        numbers = range(self.drawn, self.drawn + count)
        self.drawn += count
        return [random.Random(pt.mix(self.seed, "state", number)).choice(self.items) for number in numbers]

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.drawn = state["drawn"]


def states_of(course: Course) -> list[State]:
    """Those in which the episode was acted: all but the last."""
    return list(course.states[:-1])


def tasks_of(states: Iterable[State], problems: Mapping[str, Problem], dialect: Dialect) -> list[pt.Task[Start]]:
    """One for each distinct state, in their order."""
    distinct = {repr(snapshot(state)): state for state in states}
    return [
        task_of(f"{state.problem}/{i}", problems[state.problem], Start(state), dialect)
        for i, state in enumerate(distinct.values())
    ]


def read_states(file: str | Path, problems: Mapping[str, Problem]) -> list[State]:
    """Of a file of snapshots. Raises ValueError naming file and line for what is none, or is of another problem."""
    found = []
    for place, line in records(file):
        try:
            state = restore(line)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
        if state.problem not in problems:
            raise ValueError(f"{place}: a state of {state.problem!r}, which is none of {sorted(problems)}")
        found.append(state)
    return found
