"""How Alice learns: PPO in which every turn is a sample of its own."""

from __future__ import annotations

from collections.abc import Mapping

from posttrain.advantage import whitened
from posttrain.core import Env, Sampler
from posttrain.kl import k3, kl_to_reference
from posttrain.loss import clipped, entropy_bonus, token_mean, total
from posttrain.policy.text import TextPolicy
from posttrain.policy.value import Critic, Gae
from posttrain.recipe import Recipe
from posttrain.systems.tomap.reward import PUBLISHED, Weights, reward, validation


def recipe(
    policy: TextPolicy,
    env: Env,
    players: Mapping[str, Sampler],
    *,
    weights: Weights = PUBLISHED,
    updates: int = 6,
    critic_lr: float = 2e-6,
    kl: float = 0.001,
    entropy: float = 0.001,
    micro_tokens: int = 16384,
) -> Recipe:
    """PPO as released: gamma = lambda = 1 within a turn, clip 0.2, a k3 term and an entropy bonus of 0.001 in the loss.

    One dialogue of each topic: its turns are compared with what the critic expects, and not with one another.
    """
    critic = Critic(policy, lr=critic_lr, micro_tokens=micro_tokens)
    terms = [(1.0, clipped(0.2, 0.2))]
    terms += [(kl, kl_to_reference(k3))] if kl else []
    terms += [(entropy, entropy_bonus)] if entropy else []
    return Recipe(
        reward(weights),
        env,
        advantage=Gae(critic, gamma=1.0, lam=1.0, updates=updates, by_turn=True),
        across=whitened,
        loss=total(*terms),
        reduce=token_mean,
        samples=1,
        updates=updates,
        others=players,
        reference=policy.frozen_copy() if kl else None,
        evaluation=validation(weights),
    )
