"""Pangu Embedded: distillation in rounds, a router of rewards, fast and slow thinking in one model (arXiv:2505.22375).

    distillation   what the student half knows, by the teacher's shortest right answers; checkpoints merged
    reinforcement  MARS: each source has its reward and its scale; prompts without a lesson are masked; a curriculum
    fusion         fast and slow modes, switched by hand, or as the model's own fast answers have shown it

Its latency-tolerant scheduler is posttrain's asynchronous mode (`posttrain/scale/`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from posttrain.advantage import normalised
from posttrain.core import Reward
from posttrain.kl import k3, kl_to_reference
from posttrain.loss import clipped, token_mean, total
from posttrain.policy.text import TextPolicy
from posttrain.recipe import Part, Recipe, credited
from posttrain.systems.pangu_embedded.mars import with_auxiliaries

__all__ = ["PARTS", "recipe"]


def recipe(reward: Reward, *, kl: float = 0.0, reference: TextPolicy | None = None, samples: int = 8) -> Recipe:
    """GRPO with the zero-advantage mask: rows that teach nothing leave the loss, so that a KL term cannot rule it."""
    loss = total((1.0, clipped()), (kl, kl_to_reference(k3))) if kl else clipped()
    return Recipe(
        reward,
        advantage=normalised,
        loss=loss,
        reduce=token_mean,
        samples=samples,
        keep=credited,
        reference=reference if kl else None,
    )


PARTS: Mapping[str, Part] = {
    "masked": lambda plain, tiny: replace(plain, keep=credited),
    "unrepeated": lambda plain, tiny: replace(
        plain, reward=with_auxiliaries(plain.reward, lambda text: True, format_weight=0.0)
    ),
}
