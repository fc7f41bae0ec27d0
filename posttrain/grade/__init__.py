"""Verdicts on text. Each is a reward: `posttrain.grpo(reward=posttrain.grade.math)`."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from posttrain.core import Ask, Reply, Rollout, Task, Turn
from posttrain.grade.own import own, reward_file
from posttrain.grade.structured import json
from posttrain.grade.text import choice, contains, exact, truth_text
from posttrain.grade.verify import math

GRADES = {"math": math, "exact": exact, "choice": choice, "contains": contains, "json": json}


def check_answers(grade: str, tasks: Sequence[Task]) -> None:
    """Raises ValueError, naming the task, for an answer that a grader cannot compare with: before anything is sampled.

    Of `math` only whether it is text or a number: reading all of them as mathematics takes too long.
    """
    for task in tasks:
        if grade == "math":
            truth_text(task, grade)
        elif grade in GRADES:
            GRADES[grade]([Rollout(task, [Turn(Ask(task.prompt), Reply("", torch.zeros(0), None))])])


__all__ = ["GRADES", "check_answers", "choice", "contains", "exact", "json", "math", "own", "reward_file"]
