"""DeepTheorem: prove or disprove, rewarded by the verdict, made informative by variants (arXiv:2505.23754).

GRPO on natural-language theorems. Only the verdict is rewarded, and a verdict can be guessed; but every theorem comes
with a statement that is true and one that is false, and counts as decided only when all of its statements are.

    verdict     the reward, and the replies that it refuses to read
    statements  theorems from files, the share of them that is decided, and what constant answers would decide
    process     a judge's four marks of a proof
    pipeline    theorems with variants from questions of your own
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import posttrain as pt
from posttrain.systems.deeptheorem.verdict import guard

__all__ = ["PARTS", "recipe"]


def recipe(reward: pt.Reward, samples: int = 64) -> pt.Recipe:
    """GRPO as released: advantages by the group's deviation, one update on-policy, no KL and no entropy term."""
    return pt.Recipe(reward, advantage=pt.normalised, loss=pt.clipped(), reduce=pt.token_mean, samples=samples)


PARTS: Mapping[str, pt.Part] = {
    "guarded": lambda plain, tiny: replace(plain, reward=guard(plain.reward)),
}
