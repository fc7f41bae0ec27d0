"""What the supervised model makes of each shape: by it hard examples are found, and preferences are made.

Hard examples are those on which it earns less than 7.5 on average over three samples; reinforcement is on these alone
(paper). The thresholds 1, 3, 5, 6.2 and 7.5 give an IoU on DeepCAD's pictures of 89.0, 90.4, 90.9, 91.2 and 92.2.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import posttrain as pt
from posttrain.records import column, records

THRESHOLD, SAMPLES = 7.5, 3
SAMPLED = "samples.jsonl"


def graded_samples(reward: pt.Reward) -> Callable[[pt.Group], Mapping[str, Any] | pt.Invalid]:
    """The line of a task for `posttrain.collect`: its `replies` and their `rewards`, those that could be graded."""

    def line(group: pt.Group) -> Mapping[str, Any] | pt.Invalid:
        scores = pt.group_scores(reward, group)
        graded = [(one.text, s.value) for one, s in zip(group, scores, strict=True) if isinstance(s, pt.Score)]
        if not graded:
            return next(one for one in scores if isinstance(one, pt.Invalid))
        return {"replies": [text for text, _ in graded], "rewards": [value for _, value in graded]}

    return line


def read_samples(file: str) -> list[dict[str, Any]]:
    """The lines of such a file. Raises ValueError naming the line that is none."""
    found = []
    for place, record in records(file):
        replies, rewards = (column(record, name, place, "samples") for name in ("replies", "rewards"))
        lists = isinstance(replies, list) and isinstance(rewards, list) and replies
        if not lists or len(replies) != len(rewards) or not all(isinstance(one, int | float) for one in rewards):
            raise ValueError(f"{place}: not a reward for each reply")
        found.append({"id": str(column(record, "id", place, "samples")), "replies": replies, "rewards": rewards})
    return found


def hard(lines: Iterable[Mapping[str, Any]], threshold: float = THRESHOLD, samples: int = SAMPLES) -> set[str]:
    """The ids of tasks whose first `samples` rewards have a mean below the threshold."""
    return {line["id"] for line in lines if statistics.fmean(line["rewards"][:samples]) < threshold}
