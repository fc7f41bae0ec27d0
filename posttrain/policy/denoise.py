"""Denoising as a walk of decisions: the steps of DDIM with noise, how likely each was, and the way back to noise.

A picture x at level a (alpha bar, the share of signal) is sqrt(a) x0 + sqrt(1 - a) e. A step leads from level a to the
next, p, by what the network makes of e (DDIM, arXiv:2010.02502, Eq. 12 and 16):

    x0      = (x - sqrt(1 - a) e) / sqrt(a)
    sigma^2 = eta^2 (1 - p) / (1 - a) (1 - a / p)
    mean    = sqrt(p) x0 + sqrt(1 - p - sigma^2) e           and the decision is drawn from N(mean, sigma^2)

Eta is the temperature. At 0 there is no noise, and nothing is decided. The way back (inversion) takes the same steps
from p to a without noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

Reduction = Literal["mean", "sum"]
LEAST_SIGMA = 0.02  # in units of a pixel, whose values lie in [-1, 1]


@dataclass(frozen=True, slots=True, eq=False)
class Schedule:
    """The steps of a walk, noisiest first.

    The last step may end at level 1, where sigma is 0 and a decision would have no density; so what is drawn is drawn
    with `least_sigma` at least. The mean keeps the schedule's own sigma.
    """

    timesteps: Tensor  # [T] int, what the network is told
    level: Tensor  # [T] before each step
    after: Tensor  # [T] after it
    prediction: str = "epsilon"  # what the network predicts: epsilon or v_prediction
    least_sigma: float = LEAST_SIGMA

    def __len__(self) -> int:
        return len(self.timesteps)

    def on(self, device: torch.device) -> Schedule:
        return replace(
            self, timesteps=self.timesteps.to(device), level=self.level.to(device), after=self.after.to(device)
        )

    def sigma(self, step: Tensor, temperature: Tensor) -> Tensor:
        """[N] what the schedule says, of steps [N] at a temperature [N]; it may be 0."""
        a, p = self.level[step], self.after[step]
        return temperature * ((1 - p) / (1 - a) * (1 - a / p)).clamp(min=0).sqrt()

    def width(self, step: Tensor, temperature: Tensor) -> Tensor:
        """[N] the deviation with which a step is drawn: sigma, or the least there is; 0 where the temperature is."""
        sigma = self.sigma(step, temperature)
        return torch.where(temperature > 0, sigma.clamp(min=self.least_sigma), sigma)

    def mean(self, x: Tensor, predicted: Tensor, step: Tensor, temperature: Tensor) -> Tensor:
        """[N, C, H, W] around which the next picture is drawn, of pictures x at their `step` [N]."""
        p = self.after[step]
        x0, noise = self.parts(x, predicted, self.level[step])
        return (
            per_picture(p.sqrt()) * x0
            + per_picture((1 - p - self.sigma(step, temperature).square()).clamp(min=0).sqrt()) * noise
        )

    def back(self, x: Tensor, predicted: Tensor, step: Tensor) -> Tensor:
        """From the level after `step` [N] to the one before it, as predicted at its timestep: DDIM inversion."""
        a, p = self.level[step], self.after[step]
        x0, noise = self.parts(x, predicted, p)
        return per_picture(a.sqrt()) * x0 + per_picture((1 - a).sqrt()) * noise

    def parts(self, x: Tensor, predicted: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """The picture and the noise that x, at a level [N], is taken to be made of."""
        signal, dirt = per_picture(level.sqrt()), per_picture((1 - level).sqrt())
        if self.prediction == "v_prediction":
            return signal * x - dirt * predicted, signal * predicted + dirt * x
        return (x - dirt * predicted) / signal, predicted


def schedule(scheduler: Any, steps: int, least_sigma: float = LEAST_SIGMA) -> Schedule:
    """`steps` steps as diffusers' `DDIMScheduler` takes them.

    Raises ValueError for a scheduler that clips pictures on the way, or whose network predicts something else: its
    steps are not Gaussian around a mean that training could move.
    """
    config = scheduler.config
    if config.prediction_type not in ("epsilon", "v_prediction"):
        raise ValueError(f"the scheduler's prediction_type is {config.prediction_type}, not epsilon or v_prediction")
    if config.clip_sample or config.thresholding:
        raise ValueError("the scheduler clips pictures at every step (clip_sample, thresholding): set both to false")
    if not 1 <= steps <= config.num_train_timesteps:
        raise ValueError(f"{steps} denoising steps: the model was trained on {config.num_train_timesteps}")
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps
    before = timesteps - config.num_train_timesteps // steps
    levels = scheduler.alphas_cumprod
    after = torch.where(before >= 0, levels[before.clamp(min=0)], scheduler.final_alpha_cumprod)
    return Schedule(timesteps, levels[timesteps], after, config.prediction_type, least_sigma)


def gaussian_logp(x: Tensor, mean: Tensor, sigma: Tensor, reduction: Reduction) -> Tensor:
    """[N] log density of x [N, C, H, W] in nats: the sum over its numbers, or their mean, as DDPO's release has it.

    Of the mean the ratio of two policies is the geometric mean of the numbers' ratios: near 1, so that a clip range
    for sums hardly ever clips it.
    """
    each = -((x - mean) / per_picture(sigma)).square() / 2 - per_picture(sigma).log() - math.log(2 * math.pi) / 2
    return each.flatten(1).mean(1) if reduction == "mean" else each.flatten(1).sum(1)


def gaussian_entropy(sigma: Tensor, numbers: int, reduction: Reduction) -> Tensor:
    """[N] nats of a Gaussian of so many numbers with one sigma [N] each; per number for the mean."""
    each = sigma.log() + math.log(2 * math.pi * math.e) / 2
    return each if reduction == "mean" else each * numbers


def per_picture(values: Tensor) -> Tensor:
    """[N] -> [N, 1, 1, 1]"""
    return values.view(-1, 1, 1, 1)
