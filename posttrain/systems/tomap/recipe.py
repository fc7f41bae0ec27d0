"""How Alice learns: PPO in which every turn is a sample of its own."""

from __future__ import annotations

from collections.abc import Mapping

import posttrain as pt
from posttrain.systems.tomap.reward import PUBLISHED, Weights, reward, validation


def recipe(
    policy: pt.TextPolicy,
    env: pt.Env,
    players: Mapping[str, pt.Sampler],
    *,
    weights: Weights = PUBLISHED,
    updates: int = 6,
    critic_lr: float = 2e-6,
    kl: float = 0.001,
    entropy: float = 0.001,
    micro_tokens: int = 16384,
) -> pt.Recipe:
    """PPO as released: gamma = lambda = 1 within a turn, clip 0.2, a k3 term and an entropy bonus of 0.001 in the loss.

    One dialogue of each topic: its turns are compared with what the critic expects, and not with one another.
    """
    critic = pt.Critic(policy, lr=critic_lr, micro_tokens=micro_tokens)
    terms = [(1.0, pt.clipped(0.2, 0.2))]
    terms += [(kl, pt.kl_to_reference(pt.k3))] if kl else []
    terms += [(entropy, pt.entropy_bonus)] if entropy else []
    return pt.Recipe(
        reward(weights),
        env,
        advantage=pt.Gae(critic, gamma=1.0, lam=1.0, updates=updates, by_turn=True),
        across=pt.whitened,
        loss=pt.total(*terms),
        reduce=pt.token_mean,
        samples=1,
        updates=updates,
        others=players,
        reference=policy.frozen_copy() if kl else None,
        evaluation=validation(weights),
    )
