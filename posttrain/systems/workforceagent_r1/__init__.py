"""WorkForceAgent-R1: an agent that reasons before each action in a browser (arXiv:2505.22942).

An oracle's episodes are cut into single steps. A short supervised start teaches the form, GRPO with a progressive rule
reward what to do; neither needs a browser. What counts is measured in one: tasks done, live, over many steps.

prompts     what the agent is shown of a step, within a number of tokens
reply       the thought and the action that a reply states
reward      formed, the right action's name, its arguments, and an end
traces      recorded steps, WorkArena's among them; splits by task
live        episodes on live pages, side by side
suites      the workplace of `posttrain/lab`, MiniWoB++, and BrowserGym's environments
oracle      traces of the workplace, recorded in the browser
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import posttrain as pt

__all__ = ["PARTS", "recipe"]

KL, ENTROPY = 0.001, 0.001


def recipe(
    reward: pt.Reward,
    *,
    samples: int = 8,
    kl: float = KL,
    entropy: float = ENTROPY,
    updates: int = 16,
    reference: pt.Policy | None = None,
    evaluation: pt.Reward | None = None,
) -> pt.Recipe:
    """GRPO as released: groups of 8, clip 0.2, k3 0.001 to the start and entropy 0.001 in the loss, a mean over tokens.

    updates  optimizer steps on a batch of rollouts: 128 prompts in mini-batches of 8
    """
    made = pt.grpo(reward, samples=samples, kl=kl, reference=reference, evaluation=evaluation)
    loss = pt.total((1.0, made.loss), (entropy, pt.entropy_bonus)) if entropy else made.loss
    return replace(made, loss=loss, reduce=pt.token_mean, updates=updates)


PARTS: Mapping[str, pt.Part] = {}
