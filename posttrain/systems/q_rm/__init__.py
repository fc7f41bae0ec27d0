"""Q-RM: a token-level Q-function reward model, from preference pairs alone (arXiv:2505.23363).

A discriminative policy phi = softmax Z is learnt from pairs, apart from the policy that speaks: the mean of Z over the
chosen reply must exceed that over the rejected one. In maximum-entropy terms Z is the optimal Q up to a constant of the
state, so that Z of each token can be its advantage, in REINFORCE or in PPO.

    model    Z of every token, how it is learnt from pairs, and how it pays tokens
    serving  a Q model that was saved, in this process or in one of its own
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

import posttrain as pt
from posttrain.advantage import decision_rewards, logp_of


def scaled(credit: list[Tensor]) -> list[Tensor]:
    """The step's credit in its standard deviations, without taking off the mean: as released for REINFORCE."""
    std = torch.cat(credit).std(unbiased=False).clamp(min=1e-6)
    return [values / std for values in credit]


class TokenCritic(pt.Gae):
    """PPO as released: r_t = score_t / std(score) - kl |log pi_old - log pi_ref|, A_t = r_t - 0.01 V_t / std(V).

    The critic, which reads the state before the token, learns r_t. Both deviations are of the whole step, so that
    `across` must be the recipe's.
    """

    def __init__(
        self, critic: pt.Critic, reference: pt.Policy, *, kl: float = 0.01, weight: float = 0.01, updates: int = 1
    ):
        super().__init__(critic, gamma=0.0, lam=0.0, updates=updates)
        self.reference, self.kl, self.weight = reference, kl, weight
        self.gaps: list[Tensor] = []  # [N] of each rollout, nats

    def __call__(self, group: pt.Group, scores: list[pt.Score]) -> list[Tensor]:
        super().__call__(group, scores)  # keeps rows and values for `across` and `learn`
        for rollout, logp in zip(group, pt.group_logps(self.reference, group), strict=True):
            self.gaps.append((logp_of(rollout) - logp).abs())
        return [decision_rewards(rollout, score) for rollout, score in zip(group, scores, strict=True)]

    def across(self, credit: list[Tensor]) -> list[Tensor]:
        paid = [score - self.kl * gap for score, gap in zip(scaled(credit), self.gaps, strict=True)]
        kept = [(rows, value) for rows, _, value in self.seen]
        self.seen = [(rows, reward, value) for (rows, value), reward in zip(kept, paid, strict=True)]
        self.gaps = []
        spread = torch.cat([value for _, value in kept]).std(unbiased=False).clamp(min=1e-6)
        return [reward - self.weight * value / spread for reward, (_, value) in zip(paid, kept, strict=True)]


def recipe(reward: pt.Reward, *, centre: bool = True, samples: int = 1, updates: int = 1) -> pt.Recipe:
    """REINFORCE on token rewards. `centre=False` is the release, which only divides by the deviation."""
    return pt.Recipe(
        reward,
        advantage=pt.by_decision,
        across=pt.whitened if centre else scaled,
        loss=pt.likelihood,
        reduce=pt.token_mean,
        samples=samples,
        updates=updates,
    )


def ppo_recipe(
    reward: pt.Reward, critic: pt.Critic, reference: pt.TextPolicy, kl: float = 0.01, updates: int = 4
) -> pt.Recipe:
    """PPO on token rewards as released, without GAE: scaled, then less a KL; critic and actor take as many steps."""
    token = TokenCritic(critic, reference, kl=kl, updates=updates)
    return pt.Recipe(
        reward,
        advantage=token,
        across=token.across,
        loss=pt.clipped(),
        reduce=pt.token_mean,
        samples=1,
        updates=updates,
    )


PARTS: Mapping[str, pt.Part] = {
    "scaled": lambda plain, tiny: replace(plain, across=scaled),
    "token_credit": lambda plain, tiny: replace(
        plain, advantage=pt.by_decision, across=pt.whitened if tiny else scaled
    ),
    "reinforce": lambda plain, tiny: pt.with_surrogate(plain, pt.likelihood),
}
