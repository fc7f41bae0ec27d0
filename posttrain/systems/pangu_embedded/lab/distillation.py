"""Distillation in iterations, selection and merging, beside one training run on everything."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

import posttrain as pt
from posttrain.lab.world.chains import Problem, WeakStudent, is_right
from posttrain.lab.world.words import Size, base
from posttrain.systems.pangu_embedded.distillation import (
    complexity,
    first_right,
    iterate,
    medium,
    merged_weights,
    shortest_right,
    weights_of,
)
from posttrain.systems.pangu_embedded.lab.thinking import evaluation_in

SHORT = Size(hidden=48, layers=2, steps=100, rows=64, rate=2e-3)  # the student before: short problems only
POOL, EACH, STEPS, COUNT, TESTED = 4500, 1500, 120, 3, 300
Weight = Callable[[float], float]


def even(c: float) -> float:
    return 1.0


def hard(c: float) -> float:
    return 1000.0**c


class Oracle:
    """A teacher that knows the answers, and is often long and sometimes wrong about it."""

    def __init__(self, world: WeakStudent, problems: Mapping[str, Problem], seed: int):
        self.world, self.seed = world, seed
        self.by_prompt = {world.task(one, "slow").prompt[0]["content"]: one for one in problems.values()}

    def sample(self, asks: Sequence[pt.Ask]) -> list[pt.Reply]:
        draws = [random.Random(pt.mix(self.seed, ask.seed)) for ask in asks]
        said = [
            self.world.teacher_chain(self.by_prompt[ask.messages[0]["content"]], draw)
            for ask, draw in zip(asks, draws, strict=True)
        ]
        return [pt.Reply(text, torch.zeros(0), None) for text in said]


def teacher_pool(world: WeakStudent, seed: int, size: int, shortest: bool) -> dict[str, pt.Demonstration]:
    """The teacher's answers to a pool of problems, by task: the shortest right one of four, or the first right one."""
    draw = random.Random(pt.mix(seed, "pool"))
    problems = {world.task(one, "slow").key: one for one in (world.draw_problem(draw) for _ in range(size))}
    tasks = [world.task(problem, "slow") for problem in problems.values()]
    answers = shortest_right if shortest else first_right
    found = answers(Oracle(world, problems, seed), tasks, pt.each(is_right), 4, pt.mix(seed, "teacher"))
    return {key: world.demonstration_of(problems[key], "slow", text) for key, text in found.items()}


def arm(weight: Weight | None, merge: float = 0.0, shortest: bool = True) -> pt.Arm:
    """`weight` None: one training on the whole pool, of as many steps as the iterations have together."""

    def run(seed: int, budget: pt.Budget) -> pt.Measures:
        world = WeakStudent(seed)
        policy = base(world, seed, budget.size(SHORT))
        pool, steps = teacher_pool(world, seed, budget.items(POOL), shortest), budget.steps(STEPS)
        if weight is None:
            pt.tiny.warm_start(policy, shuffled(list(pool.values()), seed), steps * COUNT, SHORT.rows, SHORT.rate)
        else:
            distil(policy, pool, seed, budget, weight, merge)
        return measures(policy, world, seed, budget.items(TESTED))

    return run


def distil(
    policy: pt.TextPolicy,
    pool: Mapping[str, pt.Demonstration],
    seed: int,
    budget: pt.Budget,
    weight: Weight,
    merge: float,
) -> None:
    tasks = [pt.Task(key, one.messages[:1], one.messages[-1]["content"].split()[-1]) for key, one in pool.items()]
    steps = budget.steps(STEPS)

    def measure(number: int) -> dict[str, float]:
        if weight is even:
            return dict.fromkeys(pool, 0.0)
        return complexity(policy, tasks, pt.each(is_right), seed=pt.mix(seed, "complexity", number))

    def teach(keys: Sequence[str], number: int) -> None:
        before, kept = weights_of(policy), list[dict[str, Any]]()

        def watch(step: int, loss: float) -> None:
            if merge and step == steps // 2:
                kept.append(weights_of(policy))

        rows = shuffled([pool[key] for key in keys], pt.mix(seed, number))
        pt.tiny.warm_start(policy, rows, steps, SHORT.rows, SHORT.rate, watch)
        if merge:
            policy.load_state_dict(merged_weights(before, [*kept, weights_of(policy)], merge))

    iterate(measure, teach, list(pool), count=COUNT, each=budget.items(EACH), weight=weight, seed=seed)


def shuffled(rows: Sequence[pt.Demonstration], seed: int) -> Iterator[pt.Demonstration]:
    draw = random.Random(pt.mix(seed, "order"))
    while True:
        yield draw.choice(rows)


def measures(policy: pt.TextPolicy, world: WeakStudent, seed: int, count: int) -> dict[str, float]:
    """Accuracy on short problems (old) and on those of four and six operations (new), and how many tokens too many."""
    out = {}
    for name, lengths in (("old", (1, 2)), ("new", (4, 6))):
        draws = [random.Random(pt.mix(seed, "test", name, i)) for i in range(count)]
        problems = [world.draw_problem(draw, held_out=True, lengths=lengths) for draw in draws]
        found = evaluation_in("slow", policy, world, problems, seed)
        longer = [group[0].decisions - len(one[1]) - 4 for group, one in zip(found.groups, problems, strict=True)]
        out |= {name: found.reward, f"{name}, extra tokens": statistics.fmean(longer)}
    return out


ARMS = {
    "one-shot": arm(None),
    "medium": arm(medium),
    "medium, merged": arm(medium, merge=0.7),
    "random": arm(even),
    "all-hard": arm(hard),
    "any right chain": arm(None, shortest=False),
}
CLAIMS = pt.claims("""
    iterations around medium complexity beat one training run on everything
        paper: iterative distillation, at equal steps
        new: medium > one-shot
    a balanced mix beats hard problems alone
        paper: a balanced mix beats all-easy and all-hard
        new: medium > all-hard
    problems of medium complexity beat random ones
        ours: as many problems, chosen at random
        new: medium > random
    merging iterations helps on new problems
        paper: inter-iteration merging
        new: medium, merged > medium
    merging iterations helps on old problems
        paper: inter-iteration merging
        old in [0, 1]: medium, merged > medium
    the shortest right chain teaches better than any right chain
        paper: rejection sampling keeps the shortest right path
        new: one-shot > any right chain
    the shortest right chain teaches shorter answers than any right chain
        paper: rejection sampling keeps the shortest right path
        new, extra tokens: one-shot < any right chain
""")
