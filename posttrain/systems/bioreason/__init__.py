"""BioReason: a language model that is shown DNA reasons about the effects of its variants (arXiv:2505.23579).

A frozen DNA encoder and one linear layer make embeddings of two sequences, which stand before a question; supervised
learning of traces and answers, then GRPO on a reward of five terms.

data          the published columns, as tasks and as demonstrations; what of the DNA is shown
reward        the five terms of an answer and its form
measures      accuracy, precision, recall and F1, and the floor that a look-up of the question reaches
pooling       the arm that reads DNA alone
pretraining   masked-token pretraining of an encoder
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import posttrain as pt
from posttrain.grade.stated import whole_reply
from posttrain.systems.bioreason.reward import terms

__all__ = ["PARTS", "recipe"]

Method = Literal["dr_grpo", "grpo"]
SAMPLES: Mapping[Method, int] = {"dr_grpo": 8, "grpo": 4}
FORM = ("strict_format", "soft_format", "xmlcount")


def recipe(
    reward: pt.Reward,
    policy: pt.TextPolicy,
    *,
    method: Method = "dr_grpo",
    samples: int | None = None,
    kl: float = 0.04,
    evaluation: pt.Reward | None = None,
) -> pt.Recipe:
    """The two released versions; both divide by the group's deviation and clip at 0.2.

    method   dr_grpo (November 2025, the published numbers): every reply's sum is divided by the same constant, no KL;
             grpo (June 2025): every reply weighs the same, and `kl` weighs the divergence from `policy` as it is now
    samples  of a question: 8 for dr_grpo and 4 for grpo if not given
    kl       of grpo alone; 0 keeps no copy of the policy
    """
    count = SAMPLES[method] if samples is None else samples
    if method == "dr_grpo":
        plain = pt.dr_grpo(reward, max_new=policy.sampling.max_new, samples=count, evaluation=evaluation)
        return replace(plain, advantage=pt.normalised)  # `scale_rewards=group`, as released
    reference = policy.frozen_copy() if kl else None
    return pt.grpo(reward, samples=count, kl=kl, reference=reference, evaluation=evaluation)


# ---- for any recipe


def with_terms(plain: pt.Recipe, names: tuple[str, ...]) -> pt.Recipe:
    """What a reply earns, and these of the five terms beside it."""

    def added(group: pt.Group) -> list[pt.Score | pt.Invalid]:
        out: list[pt.Score | pt.Invalid] = []
        for rollout, score in zip(group, pt.group_scores(plain.reward, group), strict=True):
            if isinstance(score, pt.Score):
                found = terms(whole_reply(rollout), "")
                paid = {name: found[name] for name in names}
                score = replace(score, value=score.value + sum(paid.values()), parts={**score.parts, **paid})
            out.append(score)
        return out

    return replace(plain, reward=added, evaluation=plain.evaluation or plain.reward)


PARTS: Mapping[str, pt.Part] = {
    "concise": lambda plain, tiny: with_terms(plain, ("concise",)),
    "thinking_format": lambda plain, tiny: with_terms(plain, FORM),
}
