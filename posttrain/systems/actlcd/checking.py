"""How replies are checked: options, what grades, and whether the truths are such that it can."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch

from posttrain.cli.options import TaskOptions
from posttrain.core import Ask, Env, Reply, Reward, Rollout, Sampler, Task, Turn
from posttrain.episode import single_turn
from posttrain.systems.actlcd import checkers


@dataclass(frozen=True)
class Checked:
    """How replies are graded: an environment, its reward, whom it asks besides the policy, and what a truth must be."""

    reward: Reward
    env: Env = single_turn
    others: Mapping[str, Sampler] = field(default_factory=dict)
    truth: Callable[[Task], object] = lambda task: None  # raises ValueError, naming the task, for one it cannot use


@dataclass(frozen=True)
class CheckOptions:
    """How the replies of --held-out, of --reward grader and of --stage decode are graded."""

    check: Literal["grade", "number", "yes-no", "packages", "judge"] = "grade"
    """grade (by --grade), number or yes-no (after "the answer is"), packages that exist, or judge."""
    judge: str | None = None
    """check judge: address of a chat server."""
    registry: str = checkers.PYPI
    """check packages: address with {name}, of PyPI if not given."""

    def checked(self, task: TaskOptions) -> Checked:
        """Raises ValueError for a judge that was not named, and for options of another check."""
        if self.judge and self.check != "judge":
            raise ValueError(f"--judge {self.judge} is an option of --check judge, not of --check {self.check}")
        if self.registry != checkers.PYPI and self.check != "packages":
            raise ValueError(f"--registry {self.registry} is an option of --check packages, not of {self.check}")
        if self.check == "grade":
            reward = task.reward()
            own = ":" in task.grade
            return Checked(reward) if own else Checked(reward, truth=partial(gradable, reward))
        if self.check == "packages":
            return Checked(checkers.reward(self.check), checkers.installing(checkers.Registry(self.registry)))
        if self.check == "judge":
            if self.judge is None:
                raise ValueError("--check judge needs --judge, the address of a chat server (http://host:8000/v1)")
            from posttrain.sampler.server import server

            others = {"judge": server(self.judge)}
            return Checked(checkers.reward(self.check), checkers.judged, others, there)
        return Checked(checkers.reward(self.check), truth=checkers.TRUTHS[self.check])


def there(task: Task) -> None:
    """Raises ValueError for a task without a truth."""
    if task.truth is None:
        raise ValueError(f"task {task.key!r}: it has no answer to be checked by: name the column by --answer")


def gradable(reward: Reward, task: Task) -> None:
    """Raises the grader's own ValueError for a truth that it cannot read: it is given the truth as a reply."""
    there(task)
    reply = Reply(str(task.truth), torch.zeros(0), None)
    reward([Rollout(task, [Turn(Ask(task.prompt), reply)])])


def check_truths(checked: Checked, tasks: Sequence[Task]) -> None:
    """Raises ValueError, naming the task, for the first truth that replies cannot be checked by."""
    for task in tasks:
        checked.truth(task)
