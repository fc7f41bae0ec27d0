"""GRPOVI: reward variance increase (arXiv:2505.23247).

Before advantages are taken, a group's rewards are replaced by those of largest variance among all that keep the mean,
the range and the order. The optimum has at most three values, so a rule's 0 and 1 are optimal already: which is the
paper's explanation of why rules do so well as rewards.
"""

from __future__ import annotations

import math
import statistics
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeAlias

import numpy as np
import torch

import posttrain as pt
from posttrain.lab.world.modes import Modes, likeness
from posttrain.lab.world.words import base

Weights = Literal["uniform", "policy", "policy_mean_token"]
Values: TypeAlias = "Sequence[float] | np.ndarray"


def spread_out(values: Values, low: float = 0.0, high: float = 1.0, weights: Values | None = None) -> np.ndarray:
    """[n] the values of largest weighted variance that keep the weighted mean, the range [low, high] and the order.

    In O(n log n): sorted from the best, values are raised to `high` as long as the mean allows, the next one takes what
    is left, the others fall to `low`. Ties stay ties. It is the only maximiser, of every convex function and not just
    of the square, since it fills the mass from the top faster than any other (docs/systems/grpovi.md has the proof).
    Raises ValueError for values outside the range, or weights that are not positive.
    """
    given = np.asarray(values, dtype=float)
    share = np.ones(len(given)) if weights is None else np.asarray(weights, dtype=float)
    if len(given) == 0:
        return given
    if not (low <= given.min() and given.max() <= high):
        outside = given[(given < low) | (given > high)][0]
        raise ValueError(f"a reward of {outside:g} is outside the range [{low:g}, {high:g}] that its variance may fill")
    if share.min() <= 0 or len(share) != len(given):
        raise ValueError("weights must be positive, one for each reward")
    if given.min() == given.max():
        return given.copy()
    _, place = np.unique(-given, return_inverse=True)  # from the best
    mass = np.bincount(place, share)
    room = share @ (given - low) / (high - low)  # how much mass can stand at `high`
    filled = np.clip(room - (np.cumsum(mass) - mass), 0.0, mass)
    return (low + (high - low) * filled / mass)[place]


def varied(
    reward: pt.Reward,
    low: float = 0.0,
    high: float = 1.0,
    *,
    weights: Weights = "uniform",
    reference: pt.Policy | None = None,
    within: Literal["range", "group"] = "range",
) -> pt.Reward:
    """The reward with each group's variance raised as far as its mean and order allow; the raw value stays as a part.

    weights   policy             the paper's: probabilities of the replies under the initial policy, `reference`
              policy_mean_token  the same per token, since long replies differ by hundreds of nats
              uniform            1/n: samples are draws already
    within    range: [low, high], as published; group: between the group's own least and largest reward
    Raises ValueError for weights without a reference.
    """
    if weights != "uniform" and reference is None:
        raise ValueError(
            f"`weights={weights}`: probabilities under the initial policy need `reference=policy.frozen_copy()`"
        )

    def wrapped(group: pt.Group) -> list[pt.Score | pt.Invalid]:
        scores = pt.group_scores(reward, group)
        valid = [i for i, score in enumerate(scores) if isinstance(score, pt.Score)]
        values = [score.value for score in scores if isinstance(score, pt.Score)]
        bounds = (min(values, default=0.0), max(values, default=0.0)) if within == "group" else (low, high)
        share = None
        if weights != "uniform" and reference is not None and valid:
            share = likelihoods(reference, [group[i] for i in valid], weights)
        for i, value in zip(valid, spread_out(values, *bounds, share), strict=True):
            score: Any = scores[i]
            scores[i] = replace(score, value=float(value), parts={**score.parts, "raw": score.value})
        return scores

    return wrapped


def likelihoods(reference: pt.Policy, group: pt.Group, weights: Weights) -> np.ndarray:
    """[n] the replies' probabilities, over the largest; at least the smallest positive float."""
    logp = pt.group_logps(reference, group)
    sums = torch.stack([part.mean() if weights == "policy_mean_token" else part.sum() for part in logp]).double()
    return (sums - sums.max()).exp().clamp(min=1e-300).numpy()


def recipe(
    reward: pt.Reward,
    *,
    std: bool = True,
    kl: float = 0.04,
    reference: pt.Policy | None = None,
    samples: int = 8,
    evaluation: pt.Reward | None = None,
) -> pt.Recipe:
    """GRPO with or without the division by the group's deviation, which undoes an increase of the variance."""
    loss = pt.total((1.0, pt.clipped()), (kl, pt.kl_to_reference(pt.k3))) if kl else pt.clipped()
    return pt.Recipe(
        reward,
        advantage=pt.normalised if std else pt.centred,
        loss=loss,
        reduce=pt.sequence_mean,
        samples=samples,
        reference=reference if kl else None,
        evaluation=evaluation,
    )


PARTS: Mapping[str, pt.Part] = {
    "varied": lambda plain, tiny: replace(
        plain, reward=varied(plain.reward), evaluation=plain.evaluation or plain.reward
    ),
}


# ---- at two scales


def laptop(
    increase: bool = True,
    std: bool = False,
    weights: Weights = "uniform",
    run: pt.Run = pt.Run("runs/grpovi", steps=90, tasks=32, lr=1e-3),
) -> pt.Session:
    """Solution modes under a reward model whose scores all lie between 0.45 and 0.55.

    increase  raise the variance of a group's rewards; without it, plain GRPO
    std       divide by the group's standard deviation
    weights   of a group's replies: equal, or their probabilities under the initial policy (the paper's), or the mean
              log-probability per token of these, for long replies
    """
    world = Modes(run.seed)
    policy = base(world, run.seed)
    reference = policy.frozen_copy()
    raw = pt.each(lambda rollout: timid_score(world, rollout))
    reward = varied(raw, weights=weights, reference=reference) if increase else raw
    made = recipe(reward, std=std, reference=reference, evaluation=raw)
    return pt.train(policy, world.training_tasks(), made, run, held_out=world.held_out_tasks())


def learn(
    task: pt.TaskOptions,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    run: pt.Run = pt.Run("runs/grpovi", steps=200, tasks=64, lr=1e-6),
    increase: bool = True,
    std: bool = True,
    weights: Weights = "policy",
    reward_model: str | None = None,
    low: float | None = None,
    high: float | None = None,
    kl: float = 0.04,
    held_out: tuple[str, ...] = (),
) -> pt.Session:
    """Your checkpoint, graded by a rule (`grade`) or by a sequence classifier (`reward_model`), in a range you declare.

    A reward model's scores are clipped to [`low`, `high`], and the share of those that were is logged (`part/clipped`).
    Held-out tasks are graded without the increase.

    increase      raise the variance of a group's rewards; without it, plain GRPO
    std           divide by the group's standard deviation
    weights       of a group's replies: equal, or their probabilities under the initial policy (the paper's), or the
                  mean log-probability per token of these, for long replies
    reward_model  a sequence classifier that grades in place of `grade`: a Hub id, a folder, or the address of a server
                  (posttrain serve --scorer reward-model=FOLDER)
    low           least reward: 0 for a rule; of a reward model it must be given
    high          greatest reward: 1 for a rule; of a reward model it must be given
    kl            weight of the divergence from the model it starts from; 0 leaves it out
    held_out      data of tasks that are only evaluated: FILE, or NAME=FILE
    """
    if reward_model and (low is None or high is None):
        raise ValueError("`reward_model` needs `low` and `high`: its scores are spread within that range")
    low, high = 0.0 if low is None else low, 1.0 if high is None else high
    if not low < high:
        raise ValueError(f"`high={high}`: it must be above `low={low}`")
    policy, raw = model.policy(), task.reward()
    reference = policy.frozen_copy()
    if reward_model:
        judge = pt.reward_of(reward_model, device=model.device)
        raw = pt.each(lambda rollout: clipped_score(judge, rollout, low, high))
    reward = varied(raw, low, high, weights=weights, reference=reference) if increase else raw
    made = recipe(reward, std=std, kl=kl, reference=reference, evaluation=raw)
    return scale.train(policy, task.tasks(), made, run, held_out=task.tests(held_out))


def clipped_score(judge: pt.Reward, rollout: pt.Rollout, low: float, high: float) -> pt.Score | pt.Invalid:
    score = judge([rollout])[0]
    if isinstance(score, pt.Invalid):
        return score
    held = min(max(score.value, low), high)
    return replace(score, value=held, parts={**score.parts, "clipped": float(held != score.value)})


STAGES = {"laptop": laptop, "train": learn}
SMOKE = pt.Smoke("""
    laptop
    laptop --weights policy_mean_token
    laptop --no-increase --std
    train --data {questions} --max-new 6 --held-out {questions}
    train --data {questions} --max-new 6 --reward-model {classifier} --low -3 --high 3
""")


# ---- claims


def timid_score(world: Modes, rollout: pt.Rollout, outliers: float = 0.0) -> float:
    """What a timid reward model says: 0.45 to 0.55 by the answer's likeness to mode 1, with a little noise.

    `outliers` of all texts are scored 0, whatever they say. Noise and outliers belong to the text.
    """
    drawn = zlib.crc32(f"{world.seed} {rollout.task.key} {rollout.text}".encode()) / 2**32
    if drawn < outliers:
        return 0.0
    return 0.45 + 0.1 * likeness(world, rollout) + 0.01 * (drawn * 1e4 % 1 - 0.5)


GOOD = 0.8  # likeness to mode 1


def arm(
    increase: bool,
    std: bool,
    kl: float,
    outliers: float = 0.0,
    weights: Weights = "uniform",
    rule: bool = False,
    stretch: bool = False,
) -> pt.Arm:
    def build_recipe(lab: pt.Lab) -> pt.Recipe:
        world, reference = lab.world, lab.policy.frozen_copy()
        plain = pt.each(lambda rollout: timid_score(world, rollout, outliers))
        if rule:
            plain = pt.each(lambda rollout: float(likeness(world, rollout) == 1.0))
        if stretch:  # the reward model's band, made as wide as the range: known beforehand, and linear
            plain = pt.each(lambda rollout: min(max((timid_score(world, rollout) - 0.45) / 0.1, 0.0), 1.0))
        reward = varied(plain, weights=weights, reference=reference) if increase else plain
        return recipe(with_quality(lab, reward), std=std, kl=kl, reference=reference)

    return pt.trial(Modes, build_recipe, measures, steps=90, per_step=32, lr=1e-3)


def with_quality(lab: pt.Lab, reward: pt.Reward) -> pt.Reward:
    """The reward with the likeness to mode 1 as a part; the variance of each group is noted."""
    variances = lab.notes["variances"] = list[float]()

    def wrapped(group: pt.Group) -> list[pt.Score | pt.Invalid]:
        scores = pt.group_scores(reward, group)
        variances.append(statistics.pvariance([s.value for s in scores if isinstance(s, pt.Score)]))
        return [
            replace(s, parts={**s.parts, "quality": likeness(lab.world, rollout)}) if isinstance(s, pt.Score) else s
            for s, rollout in zip(scores, group, strict=True)
        ]

    return wrapped


def measures(lab: pt.Lab) -> pt.Measures:
    curve = [step["part/quality"] for step in lab.history]
    reached = next((i for i, value in enumerate(curve) if value >= GOOD), len(curve))
    return {
        "final quality": statistics.fmean(curve[-10:]),
        "steps to 0.8": float(reached),
        "log10 variance": math.log10(statistics.fmean(lab.notes["variances"][:32]) + 1e-12),
    }


def solver_gain(seed: int, budget: pt.Budget) -> pt.Measures:
    """How far the solver can raise the variance of random groups of 0 and 1: not at all."""
    draw = np.random.default_rng(seed)
    groups = [draw.integers(0, 2, 8).astype(float) for _ in range(budget.items(500))]
    gaps = [np.var(spread_out(group)) - np.var(group) for group in groups]
    return {"gain on 0 and 1": float(np.max(np.abs(gaps)))}


ARMS = {
    "grpo": arm(False, False, 0.04),
    "varied": arm(True, False, 0.04),
    "varied, policy's weights": arm(True, False, 0.04, weights="policy"),
    "rule": arm(False, False, 0.04, rule=True),
    "stretched": arm(False, False, 0.04, stretch=True),
    "grpo, std": arm(False, True, 0.04),
    "varied, std": arm(True, True, 0.04),
    "grpo, std, outliers": arm(False, True, 0.0, outliers=0.12),
    "varied, std, outliers": arm(True, True, 0.0, outliers=0.12),
    "solver": solver_gain,
}
CLAIMS = pt.claims("""
    increasing the variance ends higher than GRPO
        paper: a higher reward at equal steps; both divide by the group's standard deviation, as GRPO does
        final quality in [0, 1]: varied, std > grpo, std
    increasing the variance converges faster than GRPO
        paper: faster training; both divide by the group's standard deviation, as GRPO does
        steps to 0.8: varied, std < grpo, std
    increasing the variance converges faster than GRPO, neither divided by the deviation
        ours: the scale of the advantage, which the division takes out, is where the variance acts
        steps to 0.8: varied < grpo
    increasing the variance ends higher than GRPO, neither divided by the deviation
        ours: the scale of the advantage, which the division takes out, is where the variance acts
        final quality: varied > grpo
    increasing the variance under the policy's weights ends higher than GRPO, neither divided by the deviation
        ours: p_i under the initial policy, as published, without the division
        final quality: varied, policy's weights > grpo
    increasing the variance, without the division, ends higher than GRPO divided by the deviation
        paper: against GRPO as the paper runs it, on the raw reward
        final quality in [0, 1]: varied > grpo, std
    increasing the variance beats stretching the reward to its range
        ours: equal information: the band is known, and stretched linearly
        final quality in [0, 1]: varied > stretched
    with outliers, increasing the variance helps even when divided by the deviation
        paper: an outlier squeezes the other advantages (our reading)
        final quality in [0, 1]: varied, std, outliers > grpo, std, outliers
    increasing the variance gains nothing when divided by the deviation
        ours: the division takes the scale out again: the raw reward does no worse, within 0.02
        final quality in [0, 1]: grpo, std > varied, std - 0.02
    the variance of the reward rises
        paper: by construction; here at least tenfold
        log10 variance: varied > grpo + 1
    a rule's rewards of 0 and 1 cannot be spread further
        paper: the optimum has at most three values, so rules are optimal already
        gain on 0 and 1: solver < 1e-12
    a rule does as well as a reward of increased variance
        paper: why rule-based rewards work; here within 0.05
        final quality in [0, 1]: rule > varied - 0.05
""")
HEADLINE = pt.Headline(
    "increasing the variance ends higher than GRPO",
    "GRPO divides by the group's deviation, which takes out the scale that the transform puts in",
)
