"""Iterative distillation: what the model half knows is taught to it by the shortest right answers, again and again.

complexity   C = 1 - (1/k) sum 1[answer i is right], over k samples of the student as it is
selection    weight exp(-(C - mu)^2 / 2 sigma^2): around medium complexity
merging      Theta_t = Theta_{t-1} + lambda mean_i(theta_i - Theta_{t-1}), over checkpoints of an iteration
(Pangu Embedded, arXiv:2505.22375, Sec. 3.2 as it was reported to us; mu, sigma, k and lambda are not public: ours.)
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from posttrain.core import Reward, Sampler, Score, Task
from posttrain.data import Demonstration
from posttrain.episode import assistant, rollout, single_turn
from posttrain.evaluation import evaluate
from posttrain.reward import graded
from posttrain.seeding import mix

Item = TypeVar("Item")
RIGHT = 0.5  # a reward from which on an answer is right


def complexity(
    policy: Sampler, tasks: Sequence[Task], reward: Reward, samples: int = 4, seed: int = 0
) -> dict[str, float]:
    """C of every task, in [0, 1], by the task's key. What cannot be graded is not right."""
    found = evaluate({"policy": policy}, tasks, reward, samples=samples, seed=seed)
    right = [sum(value >= RIGHT for value in values) for values in found.values]
    return {task.key: 1 - count / samples for task, count in zip(tasks, right, strict=True)}


def medium(c: float, mu: float = 0.5, sigma: float = 0.25) -> float:
    """The weight of a task of complexity `c`."""
    return math.exp(-((c - mu) ** 2) / (2 * sigma**2))


def selected(items: Sequence[Item], weights: Sequence[float], count: int, seed: int) -> list[Item]:
    """`count` items drawn without replacement, in the order of the draws, with chances in proportion to their weights.

    (Efraimidis and Spirakis 2006.)
    """
    draw = random.Random(seed)
    keys = [math.log(1 - draw.random()) / max(weight, 1e-12) for weight in weights]
    return [items[i] for i in sorted(range(len(items)), key=lambda i: -keys[i])[:count]]


def shortest_right(
    teacher: Sampler, tasks: Sequence[Task], verify: Reward, candidates: int = 4, seed: int = 0
) -> dict[str, Demonstration]:
    """By the task's key, the shortest of the teacher's answers that are right; a task without one is left out.

    `verify` may be several checks after another (`first(rules, model)`): rules, and a model where they cannot decide.
    """
    kept: dict[str, Demonstration] = {}
    for group in rollout(single_turn, tasks, {"policy": teacher}, candidates, seed):
        scores = graded(verify, group)
        right = [
            one
            for one, score in zip(group, scores, strict=True)
            if isinstance(score, Score) and score.value >= RIGHT and not one.truncated
        ]
        if right:
            best = min(right, key=lambda one: one.decisions or len(one.text))
            kept[best.task.key] = Demonstration((*best.task.prompt, assistant(best.text)))
    return kept


def merged(
    before: Mapping[str, Tensor], checkpoints: Sequence[Mapping[str, Tensor]], share: float
) -> dict[str, Tensor]:
    """The weights of the last iteration moved by `share` of the mean change, in float32; integer buffers of the last.

    Raises ValueError when the names or shapes differ: only one architecture can be merged.
    """
    out: dict[str, Tensor] = {}
    for name, old in before.items():
        if any(name not in one or one[name].shape != old.shape for one in checkpoints):
            raise ValueError(f"checkpoints of another architecture cannot be merged: {name} differs")
        if not old.is_floating_point():
            out[name] = checkpoints[-1][name].clone()
            continue
        change = torch.stack([one[name].to(old.device).float() - old.float() for one in checkpoints]).mean(0)
        out[name] = (old.float() + share * change).to(old.dtype)
    return out


def iterations(
    measure: Callable[[int], Mapping[str, float]],
    teach: Callable[[Sequence[str], int], None],
    keys: Sequence[str],
    *,
    count: int,
    each: int,
    weight: Callable[[float], float] = medium,
    seed: int = 0,
) -> None:
    """`count` times: measure the complexity of every task for the student as it is, select, teach the selection."""
    for number in range(count):
        found = measure(number)
        chosen = selected(keys, [weight(found[key]) for key in keys], each, mix(seed, "selection", number))
        teach(chosen, number)
