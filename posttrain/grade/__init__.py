"""Verdicts on text. Each is a reward: `posttrain.grpo(reward=posttrain.grade.math)`."""

from __future__ import annotations

from posttrain.grade.own import own, reward_file
from posttrain.grade.structured import json
from posttrain.grade.text import choice, contains, exact
from posttrain.grade.verify import math

GRADES = {"math": math, "exact": exact, "choice": choice, "contains": contains, "json": json}

__all__ = ["GRADES", "choice", "contains", "exact", "json", "math", "own", "reward_file"]
