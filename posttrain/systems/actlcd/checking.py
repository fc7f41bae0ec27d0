"""Questions, and how replies to them are checked: what grades, and whether the truths are such that it can."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch

import posttrain as pt
from posttrain.grade import GRADES
from posttrain.systems.actlcd import checkers


@dataclass(frozen=True)
class Checker:
    """How replies are graded: an environment, its reward, whom it asks besides the policy, and what a truth must be."""

    reward: pt.Reward
    env: pt.Env = pt.single_turn
    others: Mapping[str, pt.Sampler] = field(default_factory=dict)
    truth: Callable[[pt.Task], object] = lambda task: None  # raises ValueError, naming the task, for one it cannot use

    def check_truths(self, tasks: Iterable[pt.Task]) -> None:
        """Raises ValueError, naming the task, for the first truth that replies cannot be checked by."""
        for task in tasks:
            self.truth(task)


@dataclass(frozen=True)
class QuestionOptions:
    """Which questions, and how replies to them are graded."""

    data: str
    """JSONL, CSV or Parquet file, or a Hugging Face dataset id (id:configuration)."""
    prompt: str = "prompt"
    """Column of the prompt (text or chat messages), or a template such as "Solve: {question}"."""
    answer: str | None = "answer"
    """Column of the answer: what a gate learns from, and what replies are checked by."""
    grade: str = "math"
    """math, exact, choice, contains, json, or file.py:function for a reward of your own; number or yes-no (what follows
    "the answer is"), packages (the share that exists), or judge."""
    judge: str | None = None
    """Grade judge: address of a chat server."""
    registry: str | None = None
    """Grade packages: address of a package registry with {name}; PyPI's if not given."""
    system: str | None = None
    """A system message put before every prompt."""
    limit: int | None = None
    """Use only the first so many lines."""
    split: str = "train"
    """Split of a Hugging Face dataset."""

    def __post_init__(self):
        if ":" not in self.grade:
            pt.check_choice(self.grade, [*GRADES, *checkers.GRADES], "grade")
        if self.judge is not None and self.grade != "judge":
            raise ValueError(f"`judge={self.judge}` is an option of `grade=judge`, not of `grade={self.grade}`")
        if self.registry is not None and self.grade != "packages":
            raise ValueError(f"`registry={self.registry}` is an option of `grade=packages`, not of {self.grade}")
        if self.grade == "judge" and self.judge is None:
            raise ValueError("`grade=judge` needs `judge`, the address of a chat server (http://host:8000/v1)")

    @property
    def columns(self) -> pt.TaskOptions:
        return pt.TaskOptions(
            self.data, self.prompt, self.answer, self.grade, system=self.system, limit=self.limit, split=self.split
        )

    def checker(self) -> Checker:
        """Raises ValueError or ServerError for a registry or a judge that cannot be asked."""
        if self.grade not in checkers.GRADES:
            reward = self.columns.reward()
            return Checker(reward) if ":" in self.grade else Checker(reward, truth=partial(require_gradable, reward))
        reward = checkers.reward(self.grade)
        if self.grade == "packages":
            return Checker(reward, checkers.installation(checkers.Registry(self.registry or checkers.PYPI)))
        if self.judge is not None:
            from posttrain.sampler.server import server

            judge = server(self.judge)
            _ = judge.server.model  # raises if it cannot be reached
            return Checker(reward, checkers.judgement, {"judge": judge}, require_truth)
        return Checker(reward, truth=checkers.TRUTHS[self.grade])


def require_truth(task: pt.Task) -> None:
    """Raises ValueError for a task without a truth."""
    if task.truth is None:
        raise ValueError(f"task {task.key!r}: it has no answer to be checked by: name the column by `answer`")


def require_gradable(reward: pt.Reward, task: pt.Task) -> None:
    """Raises the grader's own ValueError for a truth that it cannot read: it is given the truth as a reply."""
    require_truth(task)
    reply = pt.Reply(str(task.truth), torch.zeros(0), None)
    reward([pt.Rollout(task, [pt.Turn(pt.Ask(task.prompt), reply)])])
