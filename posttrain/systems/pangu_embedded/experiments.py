"""The arms of the claims: fast, slow and automatic thinking; distillation and merging; the scheduler; the router."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from posttrain import tiny
from posttrain.advantage import centred, normalised
from posttrain.core import Advantage, Task
from posttrain.data import Demonstration
from posttrain.evaluation import Evaluation, evaluate
from posttrain.kl import k3, kl_to_reference
from posttrain.lab.world.chains import Chains, Mode, Problem, Weak, at_once, right
from posttrain.lab.world.sources import GRADES, KINDS, Sources, Thirds, kind_of, liked, way_to_best
from posttrain.lab.world.words import Size, base
from posttrain.loss import clipped, token_mean, total
from posttrain.policy.text import TextPolicy
from posttrain.recipe import Recipe, always, credited
from posttrain.reward import each
from posttrain.seeding import mix
from posttrain.step import train_in_memory
from posttrain.systems.pangu_embedded.distillation import (
    complexity,
    iterations,
    merged,
    shortest_right,
)
from posttrain.systems.pangu_embedded.dual import fast_enough
from posttrain.systems.pangu_embedded.mars import Router, Scaling
from posttrain.systems.pangu_embedded.stages import any_right

# ---- A: fast, slow, automatic

BOTH = Size(hidden=48, layers=2, steps=300, rows=96, rate=3e-3)  # supervised on both manual modes
LABELLED, FUSED, RATE = 4000, 300, 2e-3
Label = Callable[[TextPolicy, Chains, Sequence[Problem], int], list[bool]]


def by_fast_answers(samples: int, least: int) -> Label:
    """A problem is easy where the model's own fast answers are right so often."""

    def label(policy: TextPolicy, world: Chains, problems: Sequence[Problem], seed: int) -> list[bool]:
        fast = [world.task(problem, "fast") for problem in problems]
        return fast_enough(policy, fast, each(right), samples, least, mix(seed, "labels"))

    return label


def at_random(policy: TextPolicy, world: Chains, problems: Sequence[Problem], seed: int) -> list[bool]:
    """As many easy ones as by four fast answers, anywhere: what the labels know, and not their share."""
    easy = by_fast_answers(4, 3)(policy, world, problems, seed)
    random.Random(mix(seed, "shuffled")).shuffle(easy)
    return easy


def thinking(label: Label) -> Callable[[int, bool], dict[str, float]]:
    def arm(seed: int, quick: bool) -> dict[str, float]:
        world = Chains(seed)
        policy = base(world, seed, replace(BOTH, steps=40) if quick else BOTH)
        draw = random.Random(mix(seed, "labelled"))
        problems = [world.drawn(draw) for _ in range(100 if quick else LABELLED)]
        easy = label(policy, world, problems, seed)
        fusion = fusion_set(world, list(zip(problems, easy, strict=True)), seed)
        tiny.warm_start(policy, fusion, 20 if quick else FUSED, BOTH.rows, RATE)
        return thought(policy, world, seed, 50 if quick else 1000) | {"labelled fast": statistics.fmean(easy)}

    return arm


def fusion_set(world: Chains, labelled: Sequence[tuple[Problem, bool]], seed: int) -> Any:
    """Half automatic prompts, answered as their labels say, and half manual ones, so that these stay as they are."""
    draw = random.Random(mix(seed, "fusion"))
    while True:
        if draw.random() < 0.5:
            problem, easy = draw.choice(labelled)
            yield world.demonstrated(problem, "auto", world.reply(problem, slow=not easy))
        else:
            yield world.demonstration(draw)


def thought(policy: TextPolicy, world: Chains, seed: int, problems: int) -> dict[str, float]:
    drawn = [world.drawn(random.Random(mix(seed, "test", i)), held_out=True) for i in range(problems)]
    out: dict[str, float] = {}
    for mode in ("fast", "slow", "auto"):
        found = answered(policy, world, drawn, mode, seed)
        out |= {mode: found.reward, f"{mode} tokens": found.length}
        if mode == "auto":
            out["chosen fast"] = statistics.fmean(at_once(group[0]) for group in found.groups)
    out["auto over fast"] = out["auto"] - out["fast"]
    return out


def answered(policy: TextPolicy, world: Chains, problems: Sequence[Problem], mode: Mode, seed: int) -> Evaluation:
    tasks = [world.task(problem, mode) for problem in problems]
    return evaluate({"policy": policy}, tasks, each(right), seed=mix(seed, "answers"))


# ---- B: iterative distillation, and merging

SHORT = Size(hidden=48, layers=2, steps=100, rows=64, rate=2e-3)  # the student before: short problems only
POOL, EACH, STEPS, COUNT, MERGED = 4500, 1500, 120, 3, 0.7
Select = Callable[[float], float]


def even(c: float) -> float:
    return 1.0


def hard(c: float) -> float:
    return 1000.0**c


def taught_pool(world: Weak, seed: int, size: int, shortest: bool) -> dict[str, Demonstration]:
    """The teacher's answers to a pool of problems, by task: the shortest right one of four, or the first right one."""
    draw = random.Random(mix(seed, "pool"))
    problems = {world.task(one, "slow").key: one for one in (world.drawn(draw) for _ in range(size))}
    tasks = [world.task(problem, "slow") for problem in problems.values()]
    teacher, draws = Oracle(world, problems, seed), mix(seed, "teacher")
    if shortest:
        return shortest_right(teacher, tasks, each(right), 4, draws)
    found = any_right(teacher, tasks, each(right), 4, draws)
    return {key: world.demonstrated(problems[key], "slow", text) for key, text in found.items()}


class Oracle:
    """A teacher that knows the answers, and is often long and sometimes wrong about it."""

    def __init__(self, world: Weak, problems: Mapping[str, Problem], seed: int):
        self.world, self.seed = world, seed
        self.by_prompt = {world.task(one, "slow").prompt[0]["content"]: one for one in problems.values()}

    def sample(self, asks: Sequence[Any]) -> list[Any]:
        import torch

        from posttrain.core import Reply

        draws = [random.Random(mix(self.seed, ask.seed)) for ask in asks]
        said = [
            self.world.taught(self.by_prompt[ask.messages[0]["content"]], draw)
            for ask, draw in zip(asks, draws, strict=True)
        ]
        return [Reply(text, torch.zeros(0), None) for text in said]


def distilled(
    select: Select | None, merge: float = 0.0, shortest: bool = True
) -> Callable[[int, bool], dict[str, float]]:
    """`select` None: one training on the whole pool, of as many steps as the iterations have together."""

    def arm(seed: int, quick: bool) -> dict[str, float]:
        world = Weak(seed)
        policy = base(world, seed, replace(SHORT, steps=20) if quick else SHORT)
        pool = taught_pool(world, seed, 200 if quick else POOL, shortest)
        steps = 5 if quick else STEPS
        if select is None:
            tiny.warm_start(policy, shuffled(list(pool.values()), seed), steps * COUNT, SHORT.rows, SHORT.rate)
            return recalled(policy, world, seed, quick)
        tasks = [Task(key, one.messages[:1], world_answer(one)) for key, one in pool.items()]

        def measure(number: int) -> dict[str, float]:
            if select is even:
                return dict.fromkeys(pool, 0.0)
            return complexity(policy, tasks, each(right), seed=mix(seed, "complexity", number))

        def teach(keys: Sequence[str], number: int) -> None:
            before = copied(policy)
            kept: list[dict[str, Any]] = []

            def watch(step: int, loss: float) -> None:
                if merge and step == steps // 2:
                    kept.append(copied(policy))

            rows = shuffled([pool[key] for key in keys], mix(seed, number))
            tiny.warm_start(policy, rows, steps, SHORT.rows, SHORT.rate, watch)
            if merge:
                policy.load_state_dict(merged(before, [*kept, copied(policy)], merge))

        each_time = 60 if quick else EACH
        iterations(measure, teach, list(pool), count=COUNT, each=each_time, weight=select, seed=seed)
        return recalled(policy, world, seed, quick)

    return arm


def world_answer(one: Demonstration) -> str:
    return one.messages[-1]["content"].split()[-1]


def copied(policy: TextPolicy) -> dict[str, Any]:
    return {name: value.clone() for name, value in policy.state_dict().items()}


def shuffled(rows: Sequence[Demonstration], seed: int) -> Any:
    draw = random.Random(mix(seed, "order"))
    while True:
        yield draw.choice(rows)


def recalled(policy: TextPolicy, world: Weak, seed: int, quick: bool) -> dict[str, float]:
    """Accuracy on short problems (old) and on those of four and six operations (new), and how many tokens too many."""
    out = {}
    for name, lengths in (("old", (1, 2)), ("new", (4, 6))):
        draws = [random.Random(mix(seed, "test", name, i)) for i in range(30 if quick else 300)]
        problems = [world.drawn(draw, held_out=True, lengths=lengths) for draw in draws]
        found = answered(policy, world, problems, "slow", seed)
        longer = [group[0].decisions - len(one[1]) - 4 for group, one in zip(found.groups, problems, strict=True)]
        out |= {name: found.reward, f"{name}, extra tokens": statistics.fmean(longer)}
    return out


# ---- D: the router of rewards

PARTLY = Size(steps=1000)
PER_STEP, LEARNT = 48, 40


def routed(
    scaling: Mapping[str, Scaling], advantage: Advantage = centred, pleasing: float = 0.25, lr: float = 1e-3
) -> Callable[[int, bool], dict[str, float]]:
    def arm(seed: int, quick: bool) -> dict[str, float]:
        world = Sources(seed, pleasing)
        policy = base(world, seed, replace(PARTLY, steps=60) if quick else PARTLY)
        before = by_source(policy, world, seed)
        rewards = {kind: each(grade) for kind, grade in GRADES.items()}
        recipe = Recipe(Router(rewards, kind_of, scaling), advantage=advantage, loss=clipped(), reduce=token_mean)
        source = Thirds(world.tasks(), seed)
        train_in_memory(policy, source, recipe, steps=4 if quick else LEARNT, per_step=PER_STEP, lr=lr, seed=seed)
        after = by_source(policy, world, seed)
        gains = {f"{kind} gained": after[kind] - before[kind] for kind in KINDS}
        return after | gains | {"least gained": min(gains.values()), "mean": statistics.fmean(after.values())}

    return arm


def masked(mask: bool, beta: float = 0.5) -> Callable[[int, bool], dict[str, float]]:
    """With a KL term: groups without credit dropped from the loss, or kept."""

    def arm(seed: int, quick: bool) -> dict[str, float]:
        world = Sources(seed)
        policy = base(world, seed, replace(PARTLY, steps=60) if quick else PARTLY)
        rewards = {kind: each(grade) for kind, grade in GRADES.items()}
        recipe = Recipe(
            Router(rewards, kind_of),
            advantage=normalised,
            loss=total((1.0, clipped()), (beta, kl_to_reference(k3))),
            reduce=token_mean,
            reference=policy.frozen(),
            keep=credited if mask else always,
        )
        source = Thirds(world.tasks(), seed)
        train_in_memory(policy, source, recipe, steps=4 if quick else 60, per_step=PER_STEP, lr=2e-3, seed=seed)
        return {"mean": statistics.fmean(by_source(policy, world, seed).values())}

    return arm


def by_source(policy: TextPolicy, world: Sources, seed: int) -> dict[str, float]:
    """Held out: accuracy, share of tests passed, and the share of the way from any word to the best."""
    out = {}
    for kind, tasks in world.tasks(held_out=True).items():
        grade = liked if kind == "general" else GRADES[kind]
        found = evaluate({"policy": policy}, tasks, each(grade), samples=8, seed=mix(seed, "held out"))
        if kind == "general":
            ways = [way_to_best(t.truth, statistics.fmean(v)) for t, v in zip(tasks, found.values, strict=True)]
            out[kind] = statistics.fmean(ways)
        else:
            out[kind] = found.reward
    return out


ADAPTIVE: Mapping[str, Scaling] = dict.fromkeys(KINDS, "zscore")
SQUASHED: Mapping[str, Scaling] = {"general": "sigmoid"}
