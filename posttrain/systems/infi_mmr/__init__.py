"""Infi-MMR: a curriculum from text over captioned pictures to pictures alone (arXiv:2505.23091).

Three trainings by GRPO, each from the weights of the one before (`posttrain.train_phases`): problems in text wake the
model's reasoning, captions carry it over to pictures, and problems without captions teach it to look for itself.

answers        the answer of a problem by its type: mathematics, a letter, or text
reward         a weighted sum of form and the right answer
data           problems of the three views from files: text, captioned, pictures
captions       a captioner describes the pictures of every problem, once
overlap        training problems that stand in held-out files
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import posttrain as pt
from posttrain.systems.infi_mmr.data import View
from posttrain.systems.infi_mmr.reward import is_in_form

__all__ = ["PARTS", "recipe", "split_steps"]


def recipe(
    reward: pt.Reward,
    policy: pt.TextPolicy,
    *,
    samples: int = 8,
    kl: float = 0.01,
    evaluation: pt.Reward | None = None,
) -> pt.Recipe:
    """GRPO, clip 0.2, with a k3 term to `policy` as it is now; groups whose samples all earn the same are left out.

    The summaries that we have of the paper name GRPO and no numbers; these are ours.
    """
    reference = policy.frozen_copy() if kl else None
    made = pt.grpo(reward, samples=samples, kl=kl, reference=reference, evaluation=evaluation)
    return replace(made, admit=pt.informative)


def split_steps(total: int, wanted: Mapping[View, int | None]) -> dict[View, int]:
    """So many steps in all: phases without a number share what the others leave, evenly, the first ones one more."""
    for view, steps in wanted.items():
        pt.at_least(1, **{f"{view}_steps": steps})
    left = total - sum(steps or 0 for steps in wanted.values())
    open_ = [view for view, steps in wanted.items() if steps is None]
    if left < len(open_) or (left > 0 and not open_):
        raise ValueError(f"`steps={total}`: it is the sum of all phases, and theirs leave {left} for {len(open_)} more")
    share = {view: left // len(open_) + (i < left % len(open_)) for i, view in enumerate(open_)}
    return {view: share[view] if steps is None else steps for view, steps in wanted.items()}


PARTS: Mapping[str, pt.Part] = {
    "thinking_form": lambda plain, tiny: replace(
        plain,
        reward=pt.weighted(format=(0.1, pt.each(is_in_form)), accuracy=(0.9, plain.reward)),
        evaluation=plain.evaluation or plain.reward,
    ),
}
