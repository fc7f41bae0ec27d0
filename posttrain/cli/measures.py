"""The measures of an evaluation with their intervals, and the table of them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from posttrain.core import Score
from posttrain.evaluation import Evaluation
from posttrain.grade.stated import whole_reply
from posttrain.grade.text import final_answer, normal_text
from posttrain.measure import RIGHT, coverage, interval, majority_at_k, mean_pass_at_k, potential_at_k


def evaluation_values(found: Evaluation | None, ks: Sequence[int], greedy: Evaluation | None = None) -> dict[str, Any]:
    """Measures of samples, of greedy replies, or of both, with 95 % bootstrap intervals over tasks: [mean, low, high].

    Of a single task, which has no interval: [mean]. Raises ValueError for neither.
    """
    either = found or greedy
    if either is None:
        raise ValueError("there are neither samples nor greedy replies to measure")
    out: dict[str, Any] = {"tasks": len(either.groups), "samples": len(found.groups[0]) if found else 0}
    out |= {"invalid": either.invalid, "length": either.length}
    if found:
        values = [task for task in found.values if task]
        out["reward"] = with_interval([statistics.fmean(task) for task in values])
        graded = {value for task in values for value in task}
        if not graded <= {0.0, 1.0}:
            out["right"] = RIGHT
        for k in ks:
            if each := [mean_pass_at_k([task], k) for task in values if len(task) >= k]:
                out[f"pass@{k}"] = with_interval(each)  # a task with too many ungradable samples is left out
            votes = [majority_at_k([a], [v], k) for a, v in votes_by_task(found) if len(v) >= k] if k > 1 else []
            if votes:
                out[f"majority@{k}"] = with_interval(votes)
        out["coverage"] = with_interval([float(coverage([task])) for task in values])
    if greedy:
        out["greedy"] = with_interval([task[0] for task in greedy.values if task])
    if found and greedy:
        both = [(a[0], b) for a, b in zip(greedy.values, found.values, strict=True) if a and len(b) >= max(ks)]
        out[f"potential@{max(ks)}"] = potential_at_k([a for a, _ in both], [b for _, b in both], max(ks))
    return out


def with_interval(values: Sequence[float]) -> list[float]:
    return [statistics.fmean(values), *(interval(values) if len(values) > 1 else ())]


def votes_by_task(found: Evaluation) -> list[tuple[list[str | None], list[float]]]:
    """Of every task, the settled answers of its gradable samples and their values."""
    return [
        ([settled_answer(whole_reply(rollout)) for rollout, _ in pairs], [score.value for _, score in pairs])
        for pairs in (
            [(r, s) for r, s in zip(group, marks, strict=True) if isinstance(s, Score)]
            for group, marks in zip(found.groups, found.scores, strict=True)
        )
    ]


def settled_answer(text: str) -> str | None:
    """What a reply votes for: what follows its last answer mark, without case and space."""
    return normal_text(final_answer(text)) or None


def evaluation_table(values: dict[str, Any], title: str) -> None:
    how = f"{values['samples']} samples" if values["samples"] else "one greedy reply"
    print(f"{title}: {values['tasks']} tasks x {how}, {values['length']:.1f} tokens a reply")
    for name, value in values.items():
        if isinstance(value, list):
            print(f"  {name:14} {value[0]:.3f}" + (f"   95 % [{value[1]:.3f}, {value[2]:.3f}]" if value[1:] else ""))
        elif name.startswith("potential"):
            print(f"  {name:14} {value:.3f}   of the tasks that the greedy reply fails")
    if "right" in values:
        print(f"  rewards are not only 0 and 1: from {values['right']:g} on a reply counts as right")
    if values["invalid"]:
        print(f"  {values['invalid']} samples could not be graded and are left out")
