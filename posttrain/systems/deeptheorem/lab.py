"""DeepTheorem on theorems about sums: the base model, proofs to imitate, statements that hold, and variants."""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator

import posttrain as pt
from posttrain.lab.world.theorems import Theorems, proof_marks, steps
from posttrain.lab.world.words import Size, base
from posttrain.systems.deeptheorem import recipe
from posttrain.systems.deeptheorem.process import process_score
from posttrain.systems.deeptheorem.statements import measures_of
from posttrain.systems.deeptheorem.verdict import right

CLEAN, WEB = Size(steps=500), Size(steps=150)
LAZY, WRONG = 0.6, 0.15  # of the web's demonstrations: without a proof; of its proofs' steps
SAMPLES, PER_STEP, LEARNT, RATE = 16, 16, 60, 3e-4
TAUGHT, TAUGHT_ROWS, TAUGHT_RATE = 300, 64, 1e-3  # supervised steps
TESTED = 100  # theorems


def base_model(world: Theorems, seed: int, budget: pt.Budget = pt.FULL) -> pt.TextPolicy:
    """It has learnt to prove, and then read replies of which most have no proof and any verdict."""
    return base(world, seed, budget.size(CLEAN), (Theorems(seed, LAZY, WRONG), budget.size(WEB)))


def measures(lab: pt.Lab) -> dict[str, float]:
    """Greedy replies to all statements of the held-out theorems, and the mean reward of samples of them."""
    tests = lab.world.held_out_tasks(lab.budget.items(TESTED))
    sampled = lab.evaluate(tests, pt.each(right), seed=pt.mix(lab.seed, "sampled")).reward
    found = lab.evaluate(tests, pt.each(right), seed=pt.mix(lab.seed, "greedy"), temperature=0.0)
    replies = [group[0] for group in found.groups]
    return {**measures_of(replies), **proof_measures(replies), "sampled": sampled}


def proof_measures(replies: list[pt.Rollout]) -> dict[str, float]:
    """The process, by rules."""
    marks = [proof_marks(one.text, one.task.truth) for one in replies]
    return {
        "process": statistics.fmean(map(process_score, marks)),
        "valid steps": statistics.fmean(one["validity"] for one in marks),
        "chain length": statistics.fmean(steps(one.text) for one in replies),
    }


def imitation(whole: bool) -> pt.Arm:
    """Supervised on the training statements with the right verdict: after whole proofs, or after none of the steps."""

    def imitation_policy(world: Theorems, seed: int, budget: pt.Budget) -> pt.TextPolicy:
        policy = base_model(world, seed, budget)
        shown = demonstrations(world, world.training_tasks(), whole, seed)
        pt.tiny.warm_start(policy, shown, budget.steps(TAUGHT), TAUGHT_ROWS, TAUGHT_RATE)
        return policy

    return pt.trial(Theorems, None, measures, policy=imitation_policy)


def demonstrations(world: Theorems, tasks: list[pt.Task], whole: bool, seed: int) -> Iterator[pt.Demonstration]:
    draw = random.Random(pt.mix(seed, "imitated"))
    while True:
        yield world.proof(draw.choice(tasks), whole)


def reinforcement(variants: bool) -> pt.Arm:
    """By the verdict alone: on statements with their contradictory variants, or on statements that hold."""
    return pt.trial(
        Theorems,
        lambda lab: recipe(pt.each(right), samples=SAMPLES),
        measures,
        steps=LEARNT,
        per_step=PER_STEP,
        lr=RATE,
        policy=base_model,
        tasks=lambda lab: lab.world.training_tasks(variants),
    )


PICTURE = "joint"
ARMS = {
    "base": pt.trial(Theorems, None, measures, policy=base_model),
    "concise proofs": imitation(whole=False),
    "true statements": reinforcement(variants=False),
    "variants": reinforcement(variants=True),
    "whole proofs": imitation(whole=True),
}
CLAIMS = pt.claims("""
    rewarding the verdict beats imitating proofs
        paper: outcome reward 47.2 against 32.9 for SFT, 7B; here by at least 0.2
        joint: variants > concise proofs + 0.2
    contradictory variants are what makes rewarding the verdict work
        paper: the reward cannot be hacked by giving one verdict throughout; here by at least 0.2
        joint: variants > true statements + 0.2
    rewarding the verdict makes proofs longer
        paper: longer reasoning emerges
        chain length: variants > base
    proofs improve although only the verdict is rewarded
        paper: process score 34.0 against 25.2 for SFT, 7B; here graded by rules
        process: variants > concise proofs
    training on true statements alone teaches the model to answer `proved`
        ours: the share of verdicts that are `proved`, of which 0.66 would be right
        proved: true statements > variants
    rewarding the verdict beats a constant verdict
        ours: always `proved`, computed from the statements
        joint: variants > always proved: variants
    imitating whole proofs would do as well as rewarding the verdict
        ours: as many supervised steps, on proofs with all their steps; within 0.05
        joint in [0, 1]: whole proofs > variants - 0.05
""")
HEADLINE = pt.Headline("rewarding the verdict beats imitating proofs")
SMOKE = pt.Smoke(
    """
    laptop
    laptop --no-variants
    train --data {theorems} --max-new 6 --samples 2 --held-out {variants} --keep-out 1
    sft --data {theorems} --max-new 6 --held-out {variants} --limit 3
    evaluate --data {variants} --max-new 6
    """,
    {"lab.TESTED": 10},
)
