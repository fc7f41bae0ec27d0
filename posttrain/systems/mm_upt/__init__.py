"""MM-UPT: unsupervised post-training by majority vote, on text and on pictures (arXiv:2505.22453).

GRPO with one change: nobody knows the answer, so the one that most samples agree on stands in for it. A task's truth is
never looked at. Where the majority is right more often than a sample, this approaches training with labels; where it is
wrong, the policy agrees on the wrong answer ever more.

    vote       clusters of answers, the majority's reward, the recipe
    questions  questions about pictures that the policy writes itself
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import posttrain as pt
from posttrain.systems.mm_upt.vote import clusters, majority, recipe, semantic_entropy, stated_answer

__all__ = ["PARTS", "clusters", "majority", "recipe", "semantic_entropy", "stated_answer"]

PARTS: Mapping[str, pt.Part] = {
    "majority": lambda plain, tiny: replace(
        plain, reward=majority(stated_answer), evaluation=plain.evaluation or plain.reward
    ),
}
