"""RAMSemCom: agents on a thin radio link fetch what they need to act, and no more (arXiv:2505.23275).

A sender describes its scene in a compact summary; the receiver looks whether it can answer, and asks for the elements
that are most like its question until it can. One scheduler for all links, trained by PPO, decides after every round how
many elements each link may fetch of what is left of a shared budget, or that the receiver shall answer.

element   what a sender has seen, piece by piece, and the index that is searched
link      one sender and one receiver: the radio between them, the receiver's cache, what has been charged
exchange  the environment: rounds of decisions over several links
network   what decides: one body for all links
reward    what elements, seconds and answers are worth
rules     schedulers that learn nothing, to compare with
scenes    a user's own scenes, questions and answers
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import posttrain as pt
from posttrain.systems.ramsemcom.exchange import OPTIONS, PER_LINK, SHARED
from posttrain.systems.ramsemcom.network import LinkChoices
from posttrain.systems.ramsemcom.reward import Prices, reward

__all__ = ["recipe", "scheduler"]

HIDDEN = (64, 64)


def scheduler(links: int, hidden: tuple[int, ...] = HIDDEN) -> pt.DecisionPolicy:
    """A choice of `OPTIONS` for each link, one after another, that together fetch no more than the budget."""
    return pt.DecisionPolicy(LinkChoices(links, PER_LINK, SHARED, OPTIONS, hidden))


def recipe(
    policy: pt.DecisionPolicy,
    env: pt.Env,
    receiver: Mapping[str, pt.Sampler],
    prices: Prices,
    *,
    samples: int = 1,
    critic_lr: float = 3e-3,
    entropy: float = 0.01,
    epochs: int = 4,
) -> pt.Recipe:
    """PPO: gamma 1, lambda 0.95, both clips 0.2, four passes over a batch, an entropy bonus. The numbers are ours.

    receiver  the player `receiver`, who says what it can answer
    """
    advantage = pt.Gae(pt.Critic(policy, lr=critic_lr, clip=0.2), gamma=1.0, lam=0.95, updates=4)
    made = pt.ppo(
        reward(prices), advantage=advantage, samples=samples, updates=1, epochs=epochs, env=env, others=receiver
    )
    return replace(made, loss=pt.total((1.0, made.loss), (entropy, pt.entropy_bonus)))
