"""The Entropy Mechanism of RL for reasoning language models: Clip-Cov and KL-Cov (arXiv:2505.22617).

Reward is traded for entropy, R = -a exp(H) + b, and the entropy goes through the few tokens whose log-probability and
advantage rise together: dH is about -lr Cov(log pi, A). Both methods restrain those and leave all others to plain GRPO.

    Clip-Cov   the gradient of some tokens whose covariance lies in (low, high), drawn at random, is dropped
    KL-Cov     the share of tokens with the largest covariance is held back by |log pi - log pi_old|
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

import posttrain as pt
from posttrain.lab.world.modes import Modes, distinct_right, is_right
from posttrain.lab.world.words import base

Method = Literal["kl_cov", "clip_cov", "grpo", "clip_higher", "entropy_bonus"]


ROUNDING = 1e-4  # nats; the gradient of |x| is +-1 however small x is, and what is smaller here is noise of floats


def covariance(batch: pt.Batch, now: pt.Density) -> Tensor:
    """[N] each decision's part of Cov(log pi, A) over the whole optimizer step (Eq. 10)."""
    return (now.logp - now.logp.mean()) * (batch.advantage - batch.advantage.mean())


def clip_cov(share: float = 2e-4, low: float = 1.0, high: float = 5.0, limit: float = 1.0) -> pt.Loss:
    """Clip-Cov: `share` of all decisions, drawn among those with low < covariance < high, are dropped.

    `limit` is PPO's clip range, 1 as released: only ratios above 2 are held. At least one decision is dropped, if one
    qualifies; the divisor does not shrink. Raises ValueError for a share outside [0, 1].
    """
    check_share(share)
    ppo = pt.clipped(limit, limit)

    def dropped_mask(batch: pt.Batch, now: pt.Density) -> Tensor:
        ratio = pt.log_ratio(batch, now).exp()
        held = -batch.advantage * ratio.clamp(1 - limit, 1 + limit) > -batch.advantage * ratio
        cov = covariance(batch, now)
        candidates = ((cov > low) & (cov < high) & ~held).nonzero()[:, 0]
        chosen = candidates[torch.randperm(len(candidates))[: max(int(share * len(cov)), 1)]]
        return torch.zeros_like(cov).index_fill(0, chosen, 1.0)

    def cost(batch: pt.Batch, now: pt.Density, dropped: Tensor) -> tuple[Tensor, pt.Metrics]:
        plain, metrics = ppo(batch, now)
        return plain * (1 - dropped), metrics | {"cov_share": dropped.mean().item()}

    return pt.WholeStep(dropped_mask, cost)


def kl_cov(share: float = 2e-3, weight: float = 1.0) -> pt.Loss:
    """KL-Cov: the top `share` of decisions by covariance pay `weight` |log pi - log pi_old|; no clipping.

    As released; Eq. 14 has KL(pi_old || pi). With one update per batch of rollouts the penalty is zero, and so is its
    gradient: `Recipe` warns. Raises ValueError for a share outside [0, 1].
    """
    check_share(share)

    def top(batch: pt.Batch, now: pt.Density) -> Tensor:
        cov = covariance(batch, now)
        return torch.zeros_like(cov).index_fill(0, cov.topk(max(int(share * len(cov)), 1)).indices, 1.0)

    def cost(batch: pt.Batch, now: pt.Density, chosen: Tensor) -> tuple[Tensor, pt.Metrics]:
        log = pt.log_ratio(batch, now)
        moved = chosen * (log.detach().abs() > ROUNDING)
        restrained = -batch.advantage * log.exp() + weight * moved * log.abs()
        return restrained, {"cov_share": chosen.mean().item(), "ratio_max": log.detach().exp().max().item()}

    return pt.WholeStep(top, cost, needs_updates=True)


def check_share(share: float) -> None:
    if not 0 <= share <= 1:
        raise ValueError(f"share={share}: it is a fraction of all decisions, in [0, 1]; the release counts in percent")


def probed(loss: pt.Loss) -> pt.Loss:
    """The same loss, with the step's covariance of log-probability and advantage among its metrics."""

    def nothing(batch: pt.Batch, now: pt.Density, cov: Tensor) -> tuple[Tensor, pt.Metrics]:
        return torch.zeros_like(now.logp), {"covariance": cov.mean().item()}

    return pt.total((1.0, loss), (0.0, pt.WholeStep(covariance, nothing)))


@dataclass(frozen=True)
class Preset:
    """The published numbers choose 1 token in 500 to 5,000, of which most are near certain; in a tiny world every
    token is a choice, and such shares would be no token at all.
    """

    clip_share: float = 2e-4
    low: float = 1.0
    kl_share: float = 2e-3
    kl_weight: float = 1.0
    bonus: float = 5e-3
    updates: int = 8
    rounds: int = 10


WINDOW, SEEN = 7, 36  # steps of the moving mean, and those that the law is fitted to
PAPER, TINY = Preset(), Preset(0.1, 0.5, 0.3, 2.0, 0.1, updates=4, rounds=1)


def recipe(reward: pt.Reward, method: Method = "kl_cov", preset: Preset = PAPER, samples: int = 8) -> pt.Recipe:
    """GRPO as the paper runs it (token mean, no KL, flat groups replaced), with one of the losses."""
    return pt.Recipe(
        reward,
        advantage=pt.normalised,
        loss=loss_of(method, preset),
        reduce=pt.token_mean,
        samples=samples,
        updates=preset.updates,
        admit=pt.informative if preset.rounds > 1 else lambda scores: True,
        rounds=preset.rounds,
    )


def loss_of(method: Method, preset: Preset) -> pt.Loss:
    losses: dict[str, pt.Loss] = {
        "grpo": pt.clipped(),
        "clip_higher": pt.clipped(0.2, 0.28),
        "entropy_bonus": pt.total((1.0, pt.clipped()), (preset.bonus, pt.entropy_bonus)),
        "clip_cov": clip_cov(preset.clip_share, preset.low),
        "kl_cov": kl_cov(preset.kl_share, preset.kl_weight),
    }
    return losses[method]


def restrained(plain: pt.Recipe, method: Method, preset: Preset) -> pt.Recipe:
    """Another method with this loss in place of its surrogate, and the updates that it needs; other terms stay."""
    return pt.with_surrogate(plain, loss_of(method, preset), updates=max(plain.updates, preset.updates))


def law(history: list[pt.Metrics]) -> dict[str, float]:
    """How well the law fits a run, and how well its first steps foretell the rest, beside the last value staying."""
    seen = min(SEEN, len(history) - 1)
    window = min(WINDOW, max(seen // 3, 1))
    entropy = pt.measure.moving_mean([step["entropy"] for step in history], window)
    reward = pt.measure.moving_mean([step["reward"] for step in history], window)
    early, rest = pt.measure.entropy_law(entropy[:seen], reward[:seen]), range(seen, len(entropy))
    change = np.diff([step["entropy"] for step in history])
    cov = np.array([step["covariance"] for step in history][:-1])
    return {
        "law R2": pt.measure.entropy_law(entropy, reward).r_squared,
        "law error": math.sqrt(statistics.fmean((early.reward(entropy[i]) - reward[i]) ** 2 for i in rest)),
        "staying error": math.sqrt(statistics.fmean((reward[seen - 1] - reward[i]) ** 2 for i in rest)),
        "positive covariance": float((cov > 0).mean()),
        "covariance against entropy change": float(np.corrcoef(-cov, change)[0, 1]),
    }


PARTS: Mapping[str, pt.Part] = {
    "kl_cov": lambda plain, tiny: restrained(plain, "kl_cov", TINY if tiny else PAPER),
    "clip_cov": lambda plain, tiny: restrained(plain, "clip_cov", TINY if tiny else PAPER),
    "probe": lambda plain, tiny: replace(plain, loss=probed(plain.loss)),
}


# ---- at two scales

# Priors of the modes: of the hard questions the base model solves a seventh in 16 samples, or nearly half.
RARE, EASIER = (0.92, 0.05, 0.03), (0.85, 0.10, 0.05)


def laptop(method: Method = "kl_cov", run: pt.Run = pt.Run("runs/entropy", steps=150, tasks=32, lr=1e-3)) -> pt.Session:
    """Solution modes: the base model has a habit that is wrong for half of the questions.

    method  which decisions are restrained: the paper's kl_cov and clip_cov, or what they are compared with
    """
    world = Modes(run.seed, RARE)
    made = recipe(pt.each(is_right), method, TINY)
    return pt.train(base(world, run.seed), world.training_tasks(), made, run, held_out=world.held_out_tasks())


def learn(
    task: pt.TaskOptions,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    run: pt.Run = pt.Run("runs/entropy", steps=300, tasks=256, lr=5e-7),
    method: Method = "kl_cov",
    share: float | None = None,
    held_out: tuple[str, ...] = (),
) -> pt.Session:
    """As published: 256 prompts x 8, 8 updates a step, dynamic sampling, on your checkpoint and data.

    Give `max_new=8192` for the published length.

    method    which decisions are restrained: the paper's kl_cov and clip_cov, or what they are compared with
    share     of the decisions that are restrained, 2e-3 (KL-Cov) or 2e-4 (Clip-Cov) if not given; 2e-4 for 32B
    held_out  data of tasks that are only evaluated: FILE, or NAME=FILE
    """
    preset = PAPER if share is None else replace(PAPER, clip_share=share, kl_share=share)
    made = recipe(task.reward(), method, preset)
    return scale.train(model.policy(), task.tasks(), made, run, held_out=task.tests(held_out))


STAGES = {"laptop": laptop, "train": learn}
SMOKE = pt.Smoke("""
    laptop
    laptop --method clip_cov
    laptop --method grpo
    train --data {questions} --max-new 6 --method clip_cov --held-out {questions}
""")


# ---- claims

SAMPLES = 16


def arm(method: Method, prior: tuple[float, ...] = RARE) -> pt.Arm:
    def build_recipe(lab: pt.Lab) -> pt.Recipe:
        plain = recipe(pt.each(is_right), method, TINY)
        return replace(plain, loss=probed(plain.loss)) if method == "grpo" else plain

    def measures(lab: pt.Lab) -> pt.Measures:
        after = lab.evaluate(lab.world.all_tasks(), pt.each(is_right), samples=SAMPLES)
        found = {
            "final reward": statistics.fmean(step["reward"] for step in lab.history[-10:]),
            "accuracy": after.reward,
            "final entropy": statistics.fmean([step["entropy"] for step in lab.history if "entropy" in step][-10:]),
        }
        return found | hard_measures(lab) | (law(lab.history) if method == "grpo" else {})

    return pt.trial(lambda seed: Modes(seed, prior), build_recipe, measures, steps=150, per_step=32, lr=1e-3)


def hard_measures(lab: pt.Lab) -> dict[str, float]:
    hard = lab.evaluate(lab.world.hard_tasks(), pt.each(is_right), samples=SAMPLES)
    right_ones = statistics.fmean(map(distinct_right, hard.groups))
    return {"hard pass@16": pt.measure.mean_pass_at_k(hard.values, SAMPLES), "distinct right": right_ones}


METHODS: tuple[Method, ...] = ("grpo", "kl_cov", "clip_cov", "clip_higher", "entropy_bonus")
ARMS = {
    "base": pt.trial(lambda seed: Modes(seed, RARE), None, hard_measures),
    **{method: arm(method) for method in METHODS},
    "grpo, easier": arm("grpo", EASIER),
    "kl_cov, easier": arm("kl_cov", EASIER),
}
CLAIMS = pt.claims("""
    KL-Cov beats GRPO
        paper: 7B average 40.6 against 38.6
        accuracy: kl_cov > grpo
    Clip-Cov beats GRPO
        paper: 7B average 40.4 against 38.6
        accuracy: clip_cov > grpo
    KL-Cov beats GRPO where answers are easier to find
        ours: a prior of 0.85, 0.10, 0.05, with which GRPO finds the rarer modes by itself
        accuracy: kl_cov, easier > grpo, easier
    KL-Cov beats clip-higher
        paper: 40.6 against 38.8
        accuracy: kl_cov > clip_higher
    KL-Cov beats an entropy bonus
        paper: a bonus of 5e-3 stabilises the entropy without a gain; here one weight, 0.1, untuned
        accuracy: kl_cov > entropy_bonus
    KL-Cov keeps more entropy than GRPO
        paper: more than ten times the baseline's at the plateau
        final entropy: kl_cov > grpo
    GRPO does not extend what the base model can find
        paper: an exhausted entropy is a ceiling; here pass@16 of the hard tasks, within 0.05
        hard pass@16: base > grpo - 0.05
    reward follows the law of entropy
        paper: R = -a exp(H) + b in all runs (Eq. 6); here an R2 above 0.4
        law R2: grpo > 0.4
    the law, fitted to the first steps, predicts the end of training
        paper: 36 steps predict the next 200 with an error of 0.9 %; here against predicting that nothing changes
        law error: grpo < staying error: grpo
    the covariance of log-probability and advantage is mostly positive
        paper: in most steps (Fig. 8)
        positive covariance: grpo > 0.5
    the covariance predicts the change in entropy
        paper: dH is proportional to -Cov(log pi, A) (Theorem 2)
        covariance against entropy change: grpo > 0
""")
HEADLINE = pt.Headline("KL-Cov beats GRPO")
