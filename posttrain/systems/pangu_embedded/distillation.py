"""Iterative distillation: the shortest right answers to what the model half knows are taught to it, again and again.

complexity   C = 1 - (1/k) sum 1[answer i is right], over k samples of the student as it is
selection    weight exp(-(C - mu)^2 / 2 sigma^2): around medium complexity
merging      Theta_t = Theta_{t-1} + lambda mean_i(theta_i - Theta_{t-1}), over checkpoints of an iteration
(Sec. 3.2 of the paper as it was reported to us. Mu, sigma, k and lambda are not public; these are ours.)
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

import posttrain as pt

Item = TypeVar("Item")
RIGHT = 0.5  # a reward from which on an answer is right


def complexity(
    policy: pt.Sampler, tasks: Sequence[pt.Task], reward: pt.Reward, samples: int = 4, seed: int = 0
) -> dict[str, float]:
    """C of every task, in [0, 1], by the task's key. What cannot be graded is not right."""
    found = pt.evaluate({"policy": policy}, tasks, reward, samples=samples, seed=seed)
    right = [sum(value >= RIGHT for value in values) for values in found.values]
    return {task.key: 1 - count / samples for task, count in zip(tasks, right, strict=True)}


def medium(c: float, mu: float = 0.5, sigma: float = 0.25) -> float:
    """The weight of a task of complexity `c`."""
    return math.exp(-((c - mu) ** 2) / (2 * sigma**2))


def weighted_sample(items: Sequence[Item], weights: Sequence[float], count: int, seed: int) -> list[Item]:
    """`count` items drawn without replacement, in the order of the draws, with chances in proportion to their weights.

    (Efraimidis and Spirakis 2006.)
    """
    draw = random.Random(seed)
    keys = [math.log(1 - draw.random()) / max(weight, 1e-12) for weight in weights]
    return [items[i] for i in sorted(range(len(items)), key=lambda i: -keys[i])[:count]]


class ByComplexity:
    """A source of tasks: epoch after epoch the `share` of them that is drawn around medium complexity."""

    def __init__(self, tasks: Sequence[pt.Task], complexities: Mapping[str, float], seed: int, share: float = 0.5):
        self.tasks, self.seed, self.cursor = list(tasks), seed, 0
        self.weights = [medium(complexities[task.key]) for task in tasks]
        self.count = max(int(share * len(self.tasks)), 1)
        self.epoch, self.order = -1, list[pt.Task]()

    @property
    def items(self) -> list[pt.Task]:
        return self.tasks

    def take(self, count: int) -> list[pt.Task]:
        return [self.next() for _ in range(count)]

    def next(self) -> pt.Task:
        epoch, place = divmod(self.cursor, self.count)
        if epoch != self.epoch:
            self.epoch = epoch
            self.order = weighted_sample(self.tasks, self.weights, self.count, pt.mix(self.seed, "epoch", epoch))
        self.cursor += 1
        return self.order[place]

    def state_dict(self) -> dict[str, Any]:
        return {"cursor": self.cursor}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.cursor = state["cursor"]


def shortest_right(
    teacher: pt.Sampler, tasks: Sequence[pt.Task], verify: pt.Reward, candidates: int = 4, seed: int = 0
) -> dict[str, str]:
    """By the task's key, the shortest of the teacher's answers that are right; a task without one is left out.

    `verify` may be several checks after another (`first(rules, model)`): rules, and a model where they cannot decide.
    """
    kept: dict[str, str] = {}
    for group in right_answers(teacher, tasks, verify, candidates, seed):
        whole = [one for one in group if not one.truncated]
        if whole:
            best = min(whole, key=lambda one: one.decisions or len(one.text))
            kept[best.task.key] = best.text
    return kept


def first_right(
    teacher: pt.Sampler, tasks: Sequence[pt.Task], verify: pt.Reward, candidates: int, seed: int
) -> dict[str, str]:
    """By the task's key, the first right answer."""
    kept: dict[str, str] = {}
    for group in right_answers(teacher, tasks, verify, candidates, seed):
        for one in group:
            kept.setdefault(one.task.key, one.text)
    return kept


def right_answers(
    teacher: pt.Sampler, tasks: Sequence[pt.Task], verify: pt.Reward, candidates: int, seed: int
) -> list[list[pt.Rollout]]:
    """[P] those of `candidates` answers to each task that are right. Of several ranks each asks for its share."""
    found, _ = pt.play_and_grade(tasks, pt.single_turn, verify, {"policy": teacher}, candidates, seed)
    return [[one for one, score in group.valid if score.value >= RIGHT] for group in found]


def weights_of(policy: pt.Policy) -> dict[str, Tensor]:
    """A copy of the parameters that are trained."""
    return {name: value.clone() for name, value in policy.state_dict().items()}


def merged_weights(
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


def iterate(
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
        chosen = weighted_sample(keys, [weight(found[key]) for key in keys], each, pt.mix(seed, "selection", number))
        teach(chosen, number)


def distil_once(
    policy: pt.TextPolicy, rows: Sequence[pt.Demonstration], run: pt.Run, number: int, merge: float, **options: Any
) -> None:
    """One iteration, with its last two checkpoints merged into what went before. `options` are those of `sft`."""
    before = weights_of(policy)
    out = Path(run.out) / f"iteration-{number + 1}"
    mine = replace(
        run,
        out=out,
        save_every=max(run.steps // 2, 1),
        keep=2,
        seed=pt.mix(run.seed, number) % 2**31,
        resume=run.resume and (out / "run.json").is_file(),
        settings={**run.settings, "iteration": number + 1},
    )
    session = pt.sft(policy, rows, mine, **options)
    if merge:
        kept: list[Mapping[str, Any]] = []
        for folder in session.checkpoints.complete():
            session.checkpoints.restore(folder, policy, session.optimizer, session.stateful_parts())
            kept.append(weights_of(policy))
        policy.load_state_dict(merged_weights(before, kept, merge))
    session.directory.export(policy)
