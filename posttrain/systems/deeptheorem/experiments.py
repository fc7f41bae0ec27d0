"""The arms of the claims, on theorems about sums: nothing, proofs to imitate, statements that hold, and variants."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace

from posttrain import tiny
from posttrain.advantage import normalised
from posttrain.core import Reward, Rollout, Task
from posttrain.data import Demonstration
from posttrain.evaluation import evaluate
from posttrain.lab.claim import SHARE, Claim
from posttrain.lab.world.theorems import Theorems, checked, steps
from posttrain.lab.world.words import Size, base
from posttrain.loss import clipped, token_mean
from posttrain.policy.text import TextPolicy
from posttrain.recipe import Recipe
from posttrain.reward import each
from posttrain.seeding import mix
from posttrain.step import train_in_memory
from posttrain.systems.deeptheorem.process import process_score
from posttrain.systems.deeptheorem.statements import measured
from posttrain.systems.deeptheorem.verdict import right

CLEAN, WEB = Size(steps=500), Size(steps=150)
LAZY, WRONG = 0.6, 0.15  # of the web's demonstrations: without a proof; of its proofs' steps
SAMPLES, PER_STEP, LEARNT, RATE = 16, 16, 60, 3e-4
TAUGHT, TAUGHT_ROWS, TAUGHT_RATE = 300, 64, 1e-3  # supervised steps

Arm = Callable[[int, bool], dict[str, float]]


def recipe(reward: Reward, samples: int = 64) -> Recipe:
    """GRPO as released: advantages by the group's deviation, one update on-policy, no KL and no entropy term."""
    return Recipe(reward, advantage=normalised, loss=clipped(), reduce=token_mean, samples=samples)


def read_much(seed: int, quick: bool = False) -> TextPolicy:
    """A base model that has learnt to prove, and then read replies of which most have no proof and any verdict."""
    web = Theorems(seed, LAZY, WRONG)
    if quick:
        return base(Theorems(seed), seed, replace(CLEAN, steps=40), (web, replace(WEB, steps=10)))
    return base(Theorems(seed), seed, CLEAN, (web, WEB))


def examined(policy: TextPolicy, world: Theorems, seed: int, theorems: int = 100) -> dict[str, float]:
    """Greedy replies to all statements of the held-out theorems, and the mean reward of samples of them."""
    tests = world.held_out(theorems)
    sampled = evaluate({"policy": policy}, tests, each(right), seed=mix(seed, "sampled")).reward
    plain, policy.sampling = policy.sampling, replace(policy.sampling, temperature=0.0)
    found = evaluate({"policy": policy}, tests, each(right), seed=mix(seed, "greedy"))
    policy.sampling = plain
    rollouts = [group[0] for group in found.groups]
    return {**measured(rollouts), **proved(rollouts), "sampled": sampled}


def proved(rollouts: list[Rollout]) -> dict[str, float]:
    """The process, by rules."""
    marks = [checked(one.text, one.task.truth) for one in rollouts]
    return {
        "process": statistics.fmean(map(process_score, marks)),
        "valid steps": statistics.fmean(one["validity"] for one in marks),
        "chain length": statistics.fmean(steps(one.text) for one in rollouts),
    }


def untrained(seed: int, quick: bool) -> dict[str, float]:
    return examined(read_much(seed, quick), Theorems(seed), seed, 10 if quick else 100)


def imitating(whole: bool) -> Arm:
    """Supervised on the training statements with the right verdict: after whole proofs, or after none of the steps."""

    def arm(seed: int, quick: bool) -> dict[str, float]:
        world, policy = Theorems(seed), read_much(seed, quick)
        shown = demonstrations(world, world.training(), whole, seed)
        tiny.warm_start(policy, shown, 4 if quick else TAUGHT, TAUGHT_ROWS, TAUGHT_RATE)
        return examined(policy, world, seed, 10 if quick else 100)

    return arm


def demonstrations(world: Theorems, tasks: list[Task], whole: bool, seed: int) -> Iterator[Demonstration]:
    draw = random.Random(mix(seed, "imitated"))
    while True:
        yield world.proof(draw.choice(tasks), whole)


def reinforced(variants: bool) -> Arm:
    """By the verdict alone: on statements with their contradictory variants, or on statements that hold."""

    def arm(seed: int, quick: bool) -> dict[str, float]:
        world, policy = Theorems(seed), read_much(seed, quick)
        made = recipe(each(right), samples=SAMPLES)
        taken = 3 if quick else LEARNT
        train_in_memory(policy, world.training(variants), made, steps=taken, per_step=PER_STEP, lr=RATE, seed=seed)
        return examined(policy, world, seed, 10 if quick else 100)

    return arm


SHOWN = "joint"  # the measure of the picture
ARMS = {
    "base": untrained,
    "concise proofs": imitating(whole=False),
    "true statements": reinforced(variants=False),
    "variants": reinforced(variants=True),
    "whole proofs": imitating(whole=True),
}
CLAIMS = (
    Claim(
        "rewarding the verdict beats imitating proofs",
        "outcome reward 47.2 against 32.9 for SFT, 7B; here by at least 0.2",
        "joint",
        "variants",
        "concise proofs",
        margin=-0.2,
    ),
    Claim(
        "contradictory variants are what makes rewarding the verdict work",
        "the reward cannot be hacked by giving one verdict throughout; here by at least 0.2",
        "joint",
        "variants",
        "true statements",
        margin=-0.2,
    ),
    Claim("rewarding the verdict makes proofs longer", "longer reasoning emerges", "chain length", "variants", "base"),
    Claim(
        "proofs improve although only the verdict is rewarded",
        "process score 34.0 against 25.2 for SFT, 7B; here graded by rules",
        "process",
        "variants",
        "concise proofs",
    ),
    Claim(
        "training on true statements alone teaches the model to answer `proved`",
        "ours: the share of verdicts that are `proved`, of which 0.66 would be right",
        "proved",
        "true statements",
        "variants",
        control=True,
    ),
    Claim(
        "rewarding the verdict beats a constant verdict",
        "always `proved`, computed from the statements",
        "joint",
        "variants",
        "variants",
        against="always proved",
        control=True,
    ),
    Claim(
        "imitating whole proofs would do as well as rewarding the verdict",
        "as many supervised steps, on proofs with all their steps; within 0.05",
        "joint",
        "whole proofs",
        "variants",
        margin=0.05,
        control=True,
        bounds=SHARE,
    ),
)
