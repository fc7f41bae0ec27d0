"""A curriculum over two numbers, and prompts from a file.

From stage to stage (the release's word for a step of training) there are more rounds of reflection, and the step at
which the trajectories of a group part varies.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import posttrain as pt
from posttrain.policy.latents import branch_part, text_of
from posttrain.systems.srrl.reflection import rounds_part

LASTS, OF = (1, 5, 9, 13, 17), 20  # steps after the branching, of all steps of a walk


class Curriculum:
    """A source of tasks that tells each stage's tasks how many rounds they have, and over how many steps they branch.

    source   of the tasks themselves
    rounds   of reflection, by stage; the last number stays
    lasts    how many steps branches have of their own, in turn; empty: all are, and there is no branching
    Every `take` is a stage. Groups share their noise up to the branching, anew in every stage.
    """

    def __init__(self, source: pt.Source, rounds: Sequence[int], lasts: Sequence[int] = (), seed: int = 0):
        if not rounds:
            raise ValueError("Curriculum: there is no stage, the list of rounds is empty")
        self.source, self.rounds, self.lasts, self.seed, self.stage = source, rounds, lasts, seed, 0

    @property
    def items(self) -> Sequence[Any]:
        """The tasks, for a policy to check."""
        return getattr(self.source, "items", ())

    def take(self, count: int) -> list[pt.Task]:
        rounds = self.rounds[min(self.stage, len(self.rounds) - 1)]
        last = self.lasts[self.stage % len(self.lasts)] if self.lasts else None
        tasks = self.source.take(count)
        seeds = [pt.mix(self.seed, "branches", self.stage, i) for i in range(count)]
        self.stage += 1
        return [task_of_stage(task, rounds, last, seed) for task, seed in zip(tasks, seeds, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        return {"stage": self.stage, "source": self.source.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.stage = state["stage"]
        self.source.load_state_dict(state["source"])


def task_of_stage(task: pt.Task, rounds: int, last: int | None, seed: int) -> pt.Task:
    """The task with a stage's numbers in the last message of its prompt."""
    parts: list[Any] = [{"type": "text", "text": text_of(task.prompt[-1])}, rounds_part(rounds)]
    parts += [] if last is None else [branch_part(seed, last)]
    said: pt.Message = {**task.prompt[-1], "content": parts}
    return replace(task, prompt=(*task.prompt[:-1], said))


def lasts_of(denoising: int) -> list[int]:
    """The released steps after the branching, in proportion to the steps of a walk."""
    return [max(last * denoising // OF, 1) for last in LASTS]


def rounds_by_stage(stages: int, every: int) -> list[int]:
    """Rounds of each stage: one more after every so many (5 as released: 0 to 9 over 50 stages)."""
    return [stage // every for stage in range(stages)]


def read_prompts(file: str) -> list[pt.Task]:
    """Tasks from a JSON list of strings, keyed by their place in it.

    Raises ValueError naming the file, and the place of what is not text.
    """
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"`data={file}`: there is no such file")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: it is not UTF-8, {error.reason} at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}, line {error.lineno}: malformed JSON, {error.msg}") from error
    if not isinstance(found, list) or not found:
        raise ValueError(f"{file}: it holds {type(found).__name__}, not a list of prompts with one at least")
    for i, prompt in enumerate(found):
        if not isinstance(prompt, str) or not prompt.strip():
            raise ValueError(f"{file}, prompt {i}: {prompt!r} is not a text")
    return [pt.Task(str(i), (pt.user(prompt),), None) for i, prompt in enumerate(found)]
