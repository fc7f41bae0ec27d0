"""GRPOVI: reward variance increase (arXiv:2505.23247).

Before advantages are taken, a group's rewards are replaced by those of largest variance among all that keep the mean,
the range and the order. The optimum has at most three values, so a rule's 0 and 1 are optimal already: which is the
paper's explanation of why rules do so well as rewards.
"""

from __future__ import annotations

import math
import statistics
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeAlias

import numpy as np
import torch

from posttrain.advantage import centred, normalised
from posttrain.cli.options import ModelOptions, RunOptions, TaskOptions
from posttrain.core import Group, Invalid, Policy, Reward, Rollout, Score
from posttrain.kl import k3, kl_to_reference
from posttrain.lab.claim import SHARE, Claim
from posttrain.lab.world.modes import Modes, likeness
from posttrain.lab.world.words import Size, base
from posttrain.loss import clipped, sequence_mean, total
from posttrain.recipe import Part, Recipe
from posttrain.reward import each, graded
from posttrain.row import scored_group
from posttrain.run.session import Session
from posttrain.step import train, train_in_memory

Weights = Literal["uniform", "policy", "policy_mean_token"]
Values: TypeAlias = "Sequence[float] | np.ndarray"


def spread_out(values: Values, low: float = 0.0, high: float = 1.0, weights: Values | None = None) -> np.ndarray:
    """[n] the values of largest weighted variance that keep the weighted mean, the range [low, high] and the order.

    In O(n log n): sorted from the best, all are raised to `high` as long as the mean allows, one keeps what is left,
    the others fall to `low`. Ties stay ties. It is the only maximiser, of every convex function and not just of the
    square, since it fills the mass from the top faster than any other (docs/systems/grpovi.md has the proof).
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
    reward: Reward,
    low: float = 0.0,
    high: float = 1.0,
    *,
    weights: Weights = "uniform",
    reference: Policy | None = None,
    within: Literal["range", "group"] = "range",
) -> Reward:
    """A reward of the same mean and order and of the largest variance; the raw reward stays as a part.

    weights   policy             the paper's: probabilities of the replies under the initial policy, `reference`
              policy_mean_token  the same per token, since long replies differ by hundreds of nats
              uniform            1/n: samples are draws already
    within    range: [low, high], as published; group: between the group's own least and largest reward
    """
    if weights != "uniform" and reference is None:
        raise ValueError(
            f"weights={weights!r} are probabilities under the initial policy: give reference=policy.frozen()"
        )

    def wrapped(group: Group) -> list[Score | Invalid]:
        scores = graded(reward, group)
        valid = [i for i, score in enumerate(scores) if isinstance(score, Score)]
        values = [score.value for score in scores if isinstance(score, Score)]
        bounds = (min(values, default=0.0), max(values, default=0.0)) if within == "group" else (low, high)
        share = None
        if weights != "uniform" and reference is not None and valid:
            share = likelihoods(reference, [group[i] for i in valid], weights)
        for i, value in zip(valid, spread_out(values, *bounds, share), strict=True):
            score: Any = scores[i]
            scores[i] = replace(score, value=float(value), parts={**score.parts, "raw": score.value})
        return scores

    return wrapped


def likelihoods(reference: Policy, group: Group, weights: Weights) -> np.ndarray:
    """[n] the replies' probabilities, over the largest; at least the smallest positive float."""
    logp = scored_group(reference, group)
    sums = torch.stack([part.mean() if weights == "policy_mean_token" else part.sum() for part in logp]).double()
    return (sums - sums.max()).exp().clamp(min=1e-300).numpy()


def recipe(
    reward: Reward, *, std: bool = True, kl: float = 0.04, reference: Policy | None = None, samples: int = 8
) -> Recipe:
    """GRPO with or without the division by the group's deviation, which takes out again what the variance put in."""
    loss = total((1.0, clipped()), (kl, kl_to_reference(k3))) if kl else clipped()
    return Recipe(
        reward,
        advantage=normalised if std else centred,
        loss=loss,
        reduce=sequence_mean,
        samples=samples,
        reference=reference if kl else None,
    )


PARTS: Mapping[str, Part] = {
    "varied": lambda plain, tiny: replace(plain, reward=varied(plain.reward)),
}


# ---- at two scales


def laptop(
    increase: bool = True,
    std: bool = False,
    weights: Weights = "uniform",
    run: RunOptions = RunOptions("runs/grpovi", steps=90, tasks=32, lr=1e-3),
) -> Session:
    """Solution modes under a reward model whose scores all lie between 0.45 and 0.55.

    increase  raise the variance of a group's rewards (--no-increase: plain GRPO)
    std       divide by the group's standard deviation
    weights   of a group's replies: equal, or their probabilities under the initial policy (the paper's), or the mean
              logarithms per token of these, for long replies
    """
    world = Modes(run.seed)
    policy = base(world, run.seed)
    reference = policy.frozen()
    reward = each(lambda rollout: timid(world, rollout))
    reward = varied(reward, weights=weights, reference=reference) if increase else reward
    made = recipe(reward, std=std, reference=reference)
    return train(policy, world.training(), made, run.run(increase=increase, std=std, weights=weights))


def full(
    task: TaskOptions,
    model: ModelOptions,
    run: RunOptions = RunOptions("runs/grpovi", steps=200, tasks=64, lr=1e-6),
    increase: bool = True,
    std: bool = True,
    weights: Weights = "policy",
    reward_model: str | None = None,
    low: float = 0.0,
    high: float = 1.0,
    kl: float = 0.04,
) -> Session:
    """Your checkpoint under `--grade`, or under a sequence classifier (`--reward-model`), whose range you declare.

    A reward model's scores are clipped to [--low, --high].

    increase  raise the variance of a group's rewards (--no-increase: plain GRPO)
    std       divide by the group's standard deviation
    weights   of a group's replies: equal, or their probabilities under the initial policy (the paper's), or the mean
              logarithms per token of these, for long replies
    reward_model  a sequence classifier that grades in place of --grade: a Hub id, a folder, or the address of a server
                  (posttrain serve --reward-model FOLDER)
    low       least reward
    high      greatest reward
    kl        weight of the divergence from the model it starts from
    """
    policy = model.policy()
    reference = policy.frozen()
    graded_by = task.reward()
    if reward_model:
        from posttrain.policy.scoring import reward_of

        judge = reward_of(reward_model, device=model.device)
        graded_by = each(lambda rollout: clipped_score(judge, rollout, low, high))
    reward = varied(graded_by, low, high, weights=weights, reference=reference) if increase else graded_by
    made = recipe(reward, std=std, kl=kl, reference=reference)
    described = {"increase": increase, "std": std, "weights": weights, "reward_model": reward_model}
    return train(policy, task.tasks(), made, run.run(**described, **task.describe(), **vars(model)))


def clipped_score(judge: Reward, rollout: Rollout, low: float, high: float) -> Score | Invalid:
    score = judge([rollout])[0]
    return score if isinstance(score, Invalid) else replace(score, value=min(max(score.value, low), high))


# ---- claims


def timid(world: Modes, rollout: Rollout, outliers: float = 0.0) -> float:
    """A reward model that says little: 0.45 to 0.55 by the answer's likeness to mode 1, with a little noise.

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
) -> Callable[[int, bool], dict[str, float]]:
    def run(seed: int, quick: bool) -> dict[str, float]:
        world, steps = Modes(seed), 4 if quick else 90
        policy = base(world, seed, Size(steps=60) if quick else Size())
        reference = policy.frozen()
        quality = each(lambda rollout: likeness(world, rollout))
        scored = each(lambda rollout: timid(world, rollout, outliers))
        plain = each(lambda rollout: float(likeness(world, rollout) == 1.0)) if rule else scored
        if stretch:  # the reward model's band, made as wide as the range: known beforehand, and linear
            plain = each(lambda rollout: min(max((timid(world, rollout) - 0.45) / 0.1, 0.0), 1.0))
        reward = varied(plain, weights=weights, reference=reference) if increase else plain
        variances: list[float] = []

        def watched(group: Group) -> Sequence[Score | Invalid]:
            scores = graded(reward, group)
            variances.append(statistics.pvariance([s.value for s in scores if isinstance(s, Score)]))
            good = graded(quality, group)
            return [
                replace(s, parts={**s.parts, "quality": q.value})
                if isinstance(s, Score) and isinstance(q, Score)
                else s
                for s, q in zip(scores, good, strict=True)
            ]

        made = recipe(watched, std=std, kl=kl, reference=reference)
        history = train_in_memory(policy, world.training(), made, steps=steps, per_step=32, lr=1e-3, seed=seed)
        curve = [step["part/quality"] for step in history]
        reached = next((i for i, value in enumerate(curve) if value >= GOOD), steps)
        return {
            "final quality": statistics.fmean(curve[-10:]),
            "steps to 0.8": float(reached),
            "log10 variance": math.log10(statistics.fmean(variances[:32]) + 1e-12),
        }

    return run


def solver_arm(seed: int, quick: bool) -> dict[str, float]:
    """The solver on random groups: its variance beside that of binary rewards, which it cannot raise."""
    draw = np.random.default_rng(seed)
    groups = [draw.integers(0, 2, 8).astype(float) for _ in range(20 if quick else 500)]
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
    "solver": solver_arm,
}
CLAIMS = (
    Claim(
        "increasing the variance converges faster than GRPO, neither divided by the deviation",
        "a higher reward at equal steps; here without the division by the group's standard deviation",
        "steps to 0.8",
        "varied",
        "grpo",
        larger=False,
    ),
    Claim(
        "increasing the variance ends higher than GRPO, neither divided by the deviation",
        "a higher reward at equal steps; here without the division by the group's standard deviation",
        "final quality",
        "varied",
        "grpo",
    ),
    Claim(
        "increasing the variance under the policy's weights ends higher than GRPO, neither divided by the deviation",
        "p_i under the initial policy, as published",
        "final quality",
        "varied, policy's weights",
        "grpo",
    ),
    Claim(
        "increasing the variance ends higher than GRPO divided by the deviation",
        "against GRPO as it is usually run, on the raw reward",
        "final quality",
        "varied",
        "grpo, std",
        control=True,
        bounds=SHARE,
    ),
    Claim(
        "increasing the variance beats stretching the reward to its range",
        "equal information: the band is known, and stretched linearly",
        "final quality",
        "varied",
        "stretched",
        control=True,
        bounds=SHARE,
    ),
    Claim(
        "with outliers, increasing the variance helps even when divided by the deviation",
        "an outlier squeezes the other advantages (our reading)",
        "final quality",
        "varied, std, outliers",
        "grpo, std, outliers",
        bounds=SHARE,
    ),
    Claim(
        "increasing the variance gains nothing when divided by the deviation",
        "the division takes the scale out again: the raw reward does no worse, within 0.02",
        "final quality",
        "grpo, std",
        "varied, std",
        margin=0.02,
        control=True,
        bounds=SHARE,
    ),
    Claim(
        "the variance of the reward rises",
        "by construction; here at least tenfold",
        "log10 variance",
        "varied",
        "grpo",
        margin=-1.0,
    ),
    Claim(
        "a rule's rewards of 0 and 1 cannot be spread further",
        "the optimum has at most three values, so rules are optimal already",
        "gain on 0 and 1",
        "solver",
        1e-12,
        larger=False,
    ),
    Claim(
        "a rule does as well as a reward of increased variance",
        "why rule-based rewards work; here within 0.05",
        "final quality",
        "rule",
        "varied",
        margin=0.05,
        bounds=SHARE,
    ),
)
