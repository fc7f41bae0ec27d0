"""DPO on the supervised model's samples, the paper's offline rival: twice, from a reference that is refreshed between.

Each task has K = 5 samples of the supervised model. The paper draws two of them at each step, and the larger reward
wins; here every pair of different rewards comes once an epoch, so that an epoch is up to ten of the paper's.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import posttrain as pt

SAMPLES, BETA, ROUNDS = 5, 0.3, 2


def pairs(tasks: Sequence[pt.Task], lines: Iterable[Mapping[str, Any]]) -> list[pt.Pair]:
    """Every two samples of a task that earn different rewards, the better one chosen.

    lines  of `mining.graded_samples`; those of other tasks are left out
    Raises ValueError where there is no pair.
    """
    prompts = {task.key: task.prompt for task in tasks}
    found = [
        pt.Pair(prompts[line["id"]], better, worse)
        for line in lines
        if line["id"] in prompts
        for one, other in itertools.combinations(zip(line["rewards"], line["replies"], strict=True), 2)
        if one[0] != other[0]
        for (_, worse), (_, better) in [sorted((one, other))]
    ]
    if not found:
        raise ValueError("the samples of each task all earn the same: there is nothing to prefer")
    return found


def prefer_in_rounds(
    policy: pt.TextPolicy, preferred: Sequence[pt.Pair], run: pt.Run, *, beta: float = BETA, rounds: int = ROUNDS
) -> pt.Session:
    """DPO `rounds` times, from the policy that the last one left; the last in OUT, the first before it in OUT-round-1.

    The reference of a round is the policy as it begins. A resumed run passes through the rounds that are over.
    """
    pt.at_least(1, rounds=rounds)

    def prefer(number: int) -> pt.Session:
        at = replace(run, out=f"{run.out}-round-{number}") if number < rounds else run
        return pt.prefer(policy, preferred, pt.dpo(beta), at, reference=policy.frozen_copy())

    return [prefer(number) for number in range(1, rounds + 1)][-1]
