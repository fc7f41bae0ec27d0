"""The arms on text: two habits, of which one mostly works, and what the majority makes of them."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from posttrain.core import Reward, Task
from posttrain.evaluation import Evaluation, evaluate
from posttrain.lab.world.habits import Habits, answer, right
from posttrain.lab.world.words import Size, base
from posttrain.measure import majority_at_k, mean_pass_at_k
from posttrain.policy.text import TextPolicy
from posttrain.reward import each
from posttrain.step import train_in_memory
from posttrain.systems.mm_upt.vote import Answer, clusters, majority, recipe, semantic_entropy

SAMPLES = 10


def world_of(seed: int, reliable: bool) -> Habits:
    """A base model of about 0.67 whose guesses fail at random, or one of about 0.4 that insists on its mistakes."""
    return Habits(seed, worked=0.7) if reliable else Habits(seed, worked=0.4, stubborn=True)


def measured(policy: TextPolicy, tasks: Sequence[Task], grade: Reward, find: Answer, seed: int) -> dict[str, float]:
    found: Evaluation = evaluate({"policy": policy}, tasks, grade, samples=2 * SAMPLES, seed=seed)
    policy.sampling = replace(policy.sampling, temperature=0.0)
    greedy = evaluate({"policy": policy}, tasks, grade, seed=seed)
    policy.sampling = replace(policy.sampling, temperature=1.0)
    said = [[find(rollout.text) for rollout in group] for group in found.groups]
    votes = [majority_at_k([a], [v], SAMPLES) for a, v in zip(said, found.values, strict=True)]
    return {
        "mean@1": found.reward,
        "greedy": greedy.reward,
        "pass@10": mean_pass_at_k(found.values, SAMPLES),
        "majority@10": statistics.fmean(votes),
        "semantic entropy": statistics.fmean(semantic_entropy(clusters(one)) for one in said),
        "agreement": statistics.fmean(max(Counter(one).values()) / len(one) for one in said),
    }


def arm(labels: bool | None, reliable: bool) -> Callable[[int, bool], dict[str, float]]:
    def run(seed: int, quick: bool) -> dict[str, float]:
        world = world_of(seed, reliable)
        policy = base(world, seed, Size(steps=60) if quick else Size())
        if labels is not None:
            made = recipe(each(right) if labels else majority(answer), reference=policy.frozen())
            train_in_memory(policy, world.training(), made, steps=4 if quick else 40, per_step=16, lr=1e-3, seed=seed)
        return measured(policy, world.held_out(), each(right), answer, seed)

    return run
