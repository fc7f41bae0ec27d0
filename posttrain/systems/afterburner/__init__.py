"""Afterburner: code is rewritten again and again, by how it was measured to run (arXiv:2505.23387).

    iterate       ask for better code, execute it, keep the better of both, ask again: the environment
    measurement   seconds, memory and their product in the sandbox; BEYOND, the rank among people's solutions
    reward        repaired or broken, the relative gain, the form of the reply; and GRPO on it
    venus         problems with tests and people's solutions, for checkpoints of your own

SFT learns the best solutions by people, DPO which of two is better, both without anything to start from. Only GRPO is
trained on what it is asked at test time: some code, and how it performed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import posttrain as pt
from posttrain.systems.afterburner.reward import is_well_formed, recipe

__all__ = ["PARTS", "recipe"]

PARTS: Mapping[str, pt.Part] = {
    "formed": lambda plain, tiny: replace(
        plain,
        reward=pt.weighted(
            plain=(1.0, plain.reward), format=(0.2, pt.each(lambda rollout: is_well_formed(rollout.text)))
        ),
        evaluation=plain.evaluation or plain.reward,
    ),
}
