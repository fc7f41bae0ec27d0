"""SRRL: a diffusion model reflects on what it drew, and reinforcement trains the redrawing (arXiv:2505.22407).

A picture is a walk of denoising steps, each a decision with a Gaussian density, so that PPO trains it (DDPO). Here the
walk does not begin at fresh noise: the model draws, its picture is led back to noise, and it draws again, round after
round (`reflected`). From B2-DiffuRL come branches of one trunk, of which the best and the worst are learned from
(`Curriculum`, `selected`), and z-scores over a prompt's last groups (`Windowed`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import posttrain as pt
from posttrain.systems.srrl.reflection import Trained, every_round, reflected
from posttrain.systems.srrl.selection import Windowed, selected

__all__ = ["PARTS", "recipe"]


def recipe(
    reward: pt.Reward,
    *,
    rounds: int = 0,
    trained: Trained = "last",
    samples: int = 5,
    select: float | None = 0.5,
    clip: float = 0.1,
    epochs: int = 2,
) -> pt.Recipe:
    """PPO on denoising steps, with rounds of reflection before or between the trained walks.

    rounds   where the task does not say; 0 is DDPO
    select   of a group only the best and the worst are trained, if so many deviations out; None: all are
    clip     of the ratio, of whose smallness see `gaussian_logp`: DDPO's release has 1e-4 for the same mean
    """
    windowed = Windowed()
    return pt.Recipe(
        every_round(reward) if trained == "all" else reward,
        env=reflected(rounds, trained),
        advantage=windowed if select is None else selected(windowed, select),
        loss=pt.clipped(clip, clip),
        reduce=pt.token_mean,
        samples=samples,
        epochs=epochs,
        keep=pt.always if select is None else pt.credited,
        evaluation=reward,
    )


PARTS: Mapping[str, pt.Part] = {
    "windowed": lambda plain, tiny: replace(plain, advantage=Windowed()),
    "selected": lambda plain, tiny: replace(plain, advantage=selected(plain.advantage), keep=pt.credited),
}
