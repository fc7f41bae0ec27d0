"""The router of rewards: three sources on three scales, and the zero-advantage mask."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

import posttrain as pt
from posttrain.lab.world.sources import GRADES, KINDS, EvenSource, Sources, kind_of, liking, way_to_best
from posttrain.lab.world.words import Size
from posttrain.systems.pangu_embedded.mars import Router, Scaling

PARTLY = Size(steps=1000)
PER_STEP, STEPS, MASKED_STEPS = 48, 40, 60
REWARDS = {kind: pt.each(grade) for kind, grade in GRADES.items()}
ADAPTIVE: Mapping[str, Scaling] = dict.fromkeys(KINDS, "zscore")
SQUASHED: Mapping[str, Scaling] = {"general": "sigmoid"}


def routed(
    scaling: Mapping[str, Scaling], advantage: pt.Advantage = pt.centred, pleasing: float = 0.25, lr: float = 1e-3
) -> pt.Arm:
    def build_recipe(lab: pt.Lab) -> pt.Recipe:
        lab.notes["before"] = by_source(lab)
        return pt.Recipe(
            Router(REWARDS, kind_of, scaling), advantage=advantage, loss=pt.clipped(), reduce=pt.token_mean
        )

    def measures(lab: pt.Lab) -> pt.Measures:
        before, after = lab.notes["before"], by_source(lab)
        gains = {f"{kind} gained": after[kind] - before[kind] for kind in KINDS}
        return after | gains | {"least gained": min(gains.values()), "mean": statistics.fmean(after.values())}

    return pt.trial(
        lambda seed: Sources(seed, pleasing),
        build_recipe,
        measures,
        steps=STEPS,
        per_step=PER_STEP,
        lr=lr,
        size=PARTLY,
        tasks=lambda lab: EvenSource(lab.world.tasks(), lab.seed),
    )


def masked(mask: bool, beta: float = 0.5) -> pt.Arm:
    """With a KL term: groups without credit dropped from the loss, or kept."""

    def build_recipe(lab: pt.Lab) -> pt.Recipe:
        return pt.Recipe(
            Router(REWARDS, kind_of),
            advantage=pt.normalised,
            loss=pt.total((1.0, pt.clipped()), (beta, pt.kl_to_reference(pt.k3))),
            reduce=pt.token_mean,
            reference=lab.policy.frozen_copy(),
            keep=pt.credited if mask else pt.always,
        )

    return pt.trial(
        Sources,
        build_recipe,
        lambda lab: {"mean": statistics.fmean(by_source(lab).values())},
        steps=MASKED_STEPS,
        per_step=PER_STEP,
        lr=2e-3,
        size=PARTLY,
        tasks=lambda lab: EvenSource(lab.world.tasks(), lab.seed),
    )


def by_source(lab: pt.Lab) -> dict[str, float]:
    """Held out: accuracy, share of tests passed, and the share of the way from any word to the best."""
    out = {}
    for kind, tasks in lab.world.tasks(held_out=True).items():
        grade = liking if kind == "general" else GRADES[kind]
        found = lab.evaluate(tasks, pt.each(grade), samples=8, seed=pt.mix(lab.seed, "held out"))
        out[kind] = found.reward
        if kind == "general":
            ways = [way_to_best(t.truth, statistics.fmean(v)) for t, v in zip(tasks, found.values, strict=True)]
            out[kind] = statistics.fmean(ways)
    return out


ARMS = {
    "raw": routed({}),
    "adaptive": routed(ADAPTIVE),
    "squashed": routed(SQUASHED),
    "group deviations": routed({}, pt.normalised),
    "raw, unskilled": routed({}, pleasing=0.0),
    "adaptive, unskilled": routed(ADAPTIVE, pleasing=0.0),
    "raw, four times the rate": routed({}, lr=4e-3),
    "masked": masked(True),
    "unmasked": masked(False),
}
CLAIMS = pt.claims("""
    adaptive scaling teaches more math
        paper: no source dominates a mixed batch
        math: adaptive > raw
    adaptive scaling teaches more code
        paper: no source dominates a mixed batch
        code: adaptive > raw
    adaptive scaling costs the loud source nothing
        paper: no source dominates a mixed batch; here within 0.05
        general: adaptive > raw - 0.05
    without adaptive scaling one source hardly improves
        paper: only adaptive scaling improves every source; here raw rewards gain at most 0.05 in one
        least gained: raw < 0.05
    a sigmoid on the loud source alone does as well as adaptive scaling
        paper: the router in the facts squashes the reward model; here within 0.03
        mean: squashed > adaptive - 0.03
    adaptive scaling beats dividing by each group's deviation
        ours: GRPO's own scaling, without a router
        mean: adaptive > group deviations
    adaptive scaling beats a higher learning rate
        ours: raw rewards with four times the learning rate
        mean: adaptive > raw, four times the rate
    adaptive scaling costs the loud source nothing where it is also the hard one
        ours: a base model without any skill in the loud source, which may need its scale; within 0.05
        general: adaptive, unskilled > raw, unskilled - 0.05
    masking keeps the KL term from dominating
        paper: zero-advantage masking, with a KL weight of 0.5
        mean: masked > unmasked
""")
