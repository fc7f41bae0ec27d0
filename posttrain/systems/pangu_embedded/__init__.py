"""Pangu Embedded: distillation in rounds, a router of rewards, fast and slow thinking in one model (arXiv:2505.22375).

    distillation   what the student half knows, by the teacher's shortest right answers; checkpoints merged
    reinforcement  MARS: each source has its reward and its scale; prompts without a lesson are masked; a curriculum
    fusion         fast and slow modes, switched by hand, or as the model's own fast answers have shown it

Its latency-tolerant scheduler is posttrain's asynchronous mode (`posttrain/scale/`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import posttrain as pt
from posttrain.systems.pangu_embedded.mars import with_auxiliaries

__all__ = ["PARTS", "recipe"]


def recipe(
    reward: pt.Reward, *, kl: float = 0.0, reference: pt.TextPolicy | None = None, samples: int = 8
) -> pt.Recipe:
    """Rewards centred on their group, with the zero-advantage mask: rows that teach nothing leave the loss, so that a
    KL term cannot rule it. A group's own deviation would undo the scale that the router gives a source.
    """
    loss = pt.total((1.0, pt.clipped()), (kl, pt.kl_to_reference(pt.k3))) if kl else pt.clipped()
    return pt.Recipe(
        reward,
        advantage=pt.centred,
        loss=loss,
        reduce=pt.token_mean,
        samples=samples,
        keep=pt.credited,
        reference=reference if kl else None,
    )


PARTS: Mapping[str, pt.Part] = {
    "masked": lambda plain, tiny: replace(plain, keep=pt.credited),
    "unrepeated": lambda plain, tiny: replace(
        plain, reward=with_auxiliaries(plain.reward, lambda rollout: True, format_weight=0.0)
    ),
}
