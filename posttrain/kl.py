"""The divergence from a reference policy: which estimator, where it enters, and which gradient it has.

    in the loss     `total((1.0, clipped()), (0.001, kl_to_reference()))`
    in the reward   `kl_in_reward(reward, reference, beta=0.01)`

Estimators of KL(pi || ref) from one sample of pi, with d = log pi - log ref (Schulman, joschu.net/blog/kl-approx.html):

    k1 = d                  unbiased, can be negative;  its own gradient has mean zero: use it in the reward
    k2 = d^2 / 2            biased value;               its gradient is the gradient of the KL when sampled on-policy
    k3 = exp(-d) - 1 + d    unbiased, never negative;   its own gradient is not that of the KL: see `corrected`
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from posttrain.advantage import decision_rewards, logp_of
from posttrain.core import Batch, Density, Group, Invalid, Loss, Metrics, Policy, Reward, Score
from posttrain.loss import LOG_RATIO_LIMIT, log_ratio
from posttrain.reward import group_scores
from posttrain.row import group_logps

Estimator = Callable[[Tensor], Tensor]  # d [N] -> [N]


def k1(d: Tensor) -> Tensor:
    return d


def k2(d: Tensor) -> Tensor:
    return d.square() / 2


def k3(d: Tensor) -> Tensor:
    d = d.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return torch.expm1(-d) + d


def kl_to_reference(estimator: Estimator = k3, corrected: bool = False) -> Loss:
    """The estimated KL to the recipe's reference, as a cost.

    `corrected` multiplies by the differentiable ratio pi/pi_old, so that the gradient is that of the KL itself,
    also off-policy: grad E_old[(pi/pi_old) k] = grad E_pi[k]. Without it k3 is GRPO's term (arXiv:2402.03300, Eq. 4).
    """

    def loss(batch: Batch, now: Density) -> tuple[Tensor, Metrics]:
        if batch.logp_ref is None:
            raise ValueError("kl_to_reference needs a reference: give `Recipe(reference=policy.frozen_copy())`")
        kl = estimator(now.logp - batch.logp_ref)
        cost = kl * log_ratio(batch, now).exp() if corrected else kl
        return cost, {"kl": kl.mean().item()}

    return loss


def kl_in_reward(reward: Reward, reference: Policy, beta: float, estimator: Estimator = k1) -> Reward:
    """Pay -beta KL for every decision and the reward at the last one (InstructGPT, arXiv:2203.02155, Eq. 2).

    The score's `value` becomes reward - beta * sum of KL, for group baselines; its `decisions` hold the terms
    one by one, for returns-to-go and GAE, rewards of turns among them. Parts gain `raw` and `kl` (nats, summed over
    the rollout).
    """

    def penalised_reward(group: Group) -> list[Score | Invalid]:
        out: list[Score | Invalid] = []
        for rollout, score, logp_ref in zip(
            group, group_scores(reward, group), group_logps(reference, group), strict=True
        ):
            if isinstance(score, Invalid):
                out.append(score)
                continue
            far = estimator(logp_of(rollout) - logp_ref)
            paid = decision_rewards(rollout, score) - beta * far
            kl = far.sum().item()
            parts = {**score.parts, "raw": score.value, "kl": kl}
            out.append(Score(score.value - beta * kl, parts, decisions=paid))
        return out

    return penalised_reward
