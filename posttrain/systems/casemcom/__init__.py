"""CaSemCom: a language gate decides what of a picture is sent, and by which expert, for a task (arXiv:2505.23249).

A gate reads the task, its priority and latency tolerance, the channel and the budget; it selects items of the picture
and one of several semantic encoders. It learns a rule table, then GRPO on the quality that arrives less what it took.
Beside it stands what the paper compares with, a single agent of deep reinforcement learning that sees the channel, and
one that sees all that the gate reads.

experts   encoders and decoders for a channel, by region and number of symbols
link      Rayleigh fading, a receiver that asks once more, and what all of it took
slots     users who share a budget of symbols; reader of a user's own pictures
gate      prompt, JSON, rule table, and the episode of user after user
control   the agent: one categorical policy over the choices of all users
reward    PSNR of the task's region, less symbols, retransmission and lateness
digital   the traditional baseline: quantised pixels, CRC, 5G LDPC and QAM by sionna
quality   PSNR and SSIM by region
measures  means by band of the ratio, and what keeping decisions by their prompts saves
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

import posttrain as pt
from posttrain.systems.casemcom.gate import user_by_user

Method = Literal["grpo", "ppo"]

__all__ = ["control_recipe", "recipe"]


def recipe(
    reward: pt.Reward,
    *,
    instructions: str = "",
    samples: int = 8,
    kl: float = 0.0,
    reference: pt.Policy | None = None,
    entropy: float = 0.0,
) -> pt.Recipe:
    """GRPO of the gate: a group is `samples` decisions of the same slot, over the same fading.

    The reply about a user is credited with what this user and those after it earn, who get what it leaves, centred on
    the group. That, and the numbers, are ours.
    """
    plain = pt.grpo(reward, samples=samples, kl=kl, reference=reference, env=user_by_user(instructions))
    return with_entropy(replace(plain, advantage=pt.to_go_by_turn()), entropy)


def control_recipe(
    reward: pt.Reward,
    policy: pt.DecisionPolicy,
    *,
    method: Method = "grpo",
    samples: int = 8,
    entropy: float = 0.03,
    critic_lr: float = 1e-2,
) -> pt.Recipe:
    """The agent's: with the credit that the gate gets, or PPO with a critic; gamma and lambda 1. Numbers are ours."""
    if method == "ppo":
        advantage = pt.Gae(pt.Critic(policy, lr=critic_lr), gamma=1.0, lam=1.0)
        return with_entropy(pt.ppo(reward, advantage=advantage, samples=samples, updates=1, epochs=2), entropy)
    return with_entropy(replace(pt.grpo(reward, samples=samples), advantage=centred_to_go), entropy)


def centred_to_go(group: pt.Group, scores: list[pt.Score]) -> list[Tensor]:
    """Returns-to-go of decision rewards, centred on the group: as `pt.to_go_by_turn`, of decisions within one turn."""
    returns = torch.stack(pt.to_go()(group, scores))
    return list(returns - returns.mean(0))


def with_entropy(plain: pt.Recipe, weight: float) -> pt.Recipe:
    return replace(plain, loss=pt.total((1.0, plain.loss), (weight, pt.entropy_bonus))) if weight else plain
