"""SRRL as a recipe."""

from __future__ import annotations

from posttrain.core import Reward
from posttrain.loss import clipped, token_mean
from posttrain.recipe import Recipe, always, credited
from posttrain.systems.srrl.reflection import Trained, every_round, reflected
from posttrain.systems.srrl.selection import Windowed, selected


def recipe(
    reward: Reward,
    *,
    rounds: int = 0,
    trained: Trained = "last",
    samples: int = 5,
    select: float | None = 0.5,
    clip: float = 0.1,
    epochs: int = 2,
) -> Recipe:
    """PPO on denoising steps, with rounds of reflection before or between the trained walks.

    rounds   where the task does not say; 0 is DDPO
    select   of a group only the best and the worst are trained, if so many deviations out; None: all are
    clip     of the ratio, of whose smallness see `gaussian_logp`: DDPO's release has 1e-4 for the same mean
    """
    windowed = Windowed()
    return Recipe(
        every_round(reward) if trained == "all" else reward,
        env=reflected(rounds, trained),
        advantage=windowed if select is None else selected(windowed, select),
        loss=clipped(clip, clip),
        reduce=token_mean,
        samples=samples,
        epochs=epochs,
        keep=always if select is None else credited,
        evaluation=reward,
    )
