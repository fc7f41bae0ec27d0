"""RL-Wall: Plan, Execute, Verify, and the coverage wall (arXiv:2505.22756).

Solving is to plan, to execute and to verify. GRPO mainly makes execution robust: accuracy stops depending on the
temperature (temperature distillation), and the problems that are solved at all stay the same (the coverage wall). In a
tiny world of walks both can be seen, and what breaks the wall: more problems to learn from, or fewer spurious cues.

    judge  plan, execution and answer of any solution, by another model
    tree   the samples of a problem as a tree of their tokens
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import posttrain as pt


def recipe(reward: pt.Reward, policy: pt.TextPolicy, samples: int = 8, epochs: int = 4) -> pt.Recipe:
    """GRPO as released: clip 0.2, KL 0.001 to the start, entropy 0.001, four epochs."""
    return pt.Recipe(
        reward,
        advantage=pt.normalised,
        loss=pt.total((1.0, pt.clipped()), (0.001, pt.kl_to_reference(pt.k3)), (0.001, pt.entropy_bonus)),
        reduce=pt.token_mean,
        samples=samples,
        epochs=epochs,
        reference=policy.frozen_copy(),
    )


PARTS: Mapping[str, pt.Part] = {
    "epochs": lambda plain, tiny: replace(plain, epochs=2 if tiny else 4),
    "entropy": lambda plain, tiny: replace(plain, loss=pt.total((1.0, plain.loss), (0.001, pt.entropy_bonus))),
}
