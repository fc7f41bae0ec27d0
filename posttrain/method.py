"""Named methods: recipes with their published numbers. Change one by its arguments, or by `dataclasses.replace`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from posttrain.advantage import best, centred, leave_one_out, normalised, to_go, whitened
from posttrain.core import Loss, Policy, Reward
from posttrain.kl import k3, kl_in_reward, kl_to_reference
from posttrain.loss import cispo as cispo_loss
from posttrain.loss import clipped, constant_length, likelihood, sequence_mean, token_mean, total
from posttrain.loss import gspo as gspo_loss
from posttrain.recipe import Recipe, credited
from posttrain.reward import informative, overlong


def require_reference(reference: Policy | None, kl: float, method: str) -> Policy:
    if reference is None:
        raise ValueError(f"{method}(kl={kl}) needs a reference: give `reference=policy.frozen_copy()`, or kl=0")
    return reference


def with_kl(loss: Loss, kl: float, reference: Policy | None, method: str) -> tuple[Loss, Policy | None]:
    """The loss with a k3 term, or the loss alone and no reference to load."""
    if kl == 0:
        return loss, None
    return total((1.0, loss), (kl, kl_to_reference(k3))), require_reference(reference, kl, method)


def grpo(
    reward: Reward,
    *,
    samples: int = 8,
    kl: float = 0.0,
    reference: Policy | None = None,
    low: float = 0.2,
    high: float = 0.2,
    dual: float | None = None,
    **more: Any,
) -> Recipe:
    """Group Relative Policy Optimization (arXiv:2402.03300): group z-scores, clip 0.2, every reply weighs the same.

    The paper samples 64 and weighs the KL 0.04; today's practice for verifiable rewards, 8 and none, is the default.
    `dual` bounds the ratio of what was bad (Dual-clip PPO).
    """
    loss, reference = with_kl(clipped(low, high, dual=dual), kl, reference, "grpo")
    return Recipe(
        reward, advantage=normalised, loss=loss, reduce=sequence_mean, samples=samples, reference=reference, **more
    )


def dr_grpo(reward: Reward, *, max_new: int, samples: int = 8, **more: Any) -> Recipe:
    """Dr. GRPO (arXiv:2503.20783): no division by the group's deviation, none by the reply's length.

    `max_new` is the constant that every reply's sum is divided by, in tokens.
    """
    return Recipe(reward, advantage=centred, loss=clipped(), reduce=constant_length(max_new), samples=samples, **more)


def dapo(reward: Reward, *, max_new: int, samples: int = 16, buffer: int | None = None, **more: Any) -> Recipe:
    """DAPO (arXiv:2503.14476): clip-higher 0.2/0.28, dynamic sampling, token mean, soft overlong punishment.

    Groups whose samples all earn the same are replaced, in at most 10 rounds (as released). The paper's overlong
    buffer is 4,096 of 20,480 tokens; `buffer` defaults to the same fifth of `max_new`.
    """
    width = buffer if buffer is not None else max(max_new // 5, 1)
    return Recipe(
        overlong(reward, max_new, width),
        advantage=normalised,
        loss=clipped(0.2, 0.28),
        reduce=token_mean,
        samples=samples,
        admit=informative,
        rounds=10,
        **more,
    )


def rloo(reward: Reward, *, samples: int = 4, kl: float = 0.0, reference: Policy | None = None, **more: Any) -> Recipe:
    """REINFORCE Leave-One-Out (arXiv:2402.14740): the other samples are the baseline; a reply is one action.

    So its tokens are summed. The KL, 0.03 in the paper, is in the reward.
    """
    graded = kl_in_reward(reward, require_reference(reference, kl, "rloo"), kl) if kl else reward
    return Recipe(graded, advantage=leave_one_out, loss=likelihood, reduce=constant_length(1), samples=samples, **more)


def reinforce_pp(
    reward: Reward, *, samples: int = 1, kl: float = 0.0, reference: Policy | None = None, **more: Any
) -> Recipe:
    """REINFORCE++ (arXiv:2501.03262): returns-to-go, normalised over the whole batch, under PPO's clip.

    The KL, 0.01 in the paper, is in the reward; one sample per task is enough.
    """
    graded = kl_in_reward(reward, require_reference(reference, kl, "reinforce_pp"), kl) if kl else reward
    return Recipe(
        graded, advantage=to_go(), across=whitened, loss=clipped(), reduce=token_mean, samples=samples, **more
    )


def ppo(
    reward: Reward,
    *,
    advantage: Any,
    samples: int = 1,
    kl: float = 0.0,
    reference: Policy | None = None,
    updates: int = 4,
    **more: Any,
) -> Recipe:
    """PPO (arXiv:1707.06347) as in InstructGPT (arXiv:2203.02155): a critic, gamma 1, lambda 0.95, KL in the reward.

    `advantage` is `posttrain.Gae(posttrain.Critic(policy))`; the paper's KL is 0.02. Credit is whitened over the batch.
    """
    graded = kl_in_reward(reward, require_reference(reference, kl, "ppo"), kl) if kl else reward
    return Recipe(
        graded,
        advantage=advantage,
        across=whitened,
        loss=clipped(),
        reduce=token_mean,
        samples=samples,
        updates=updates,
        **more,
    )


def gspo(reward: Reward, *, samples: int = 8, updates: int = 4, **more: Any) -> Recipe:
    """Group Sequence Policy Optimization (arXiv:2507.18071): one ratio per reply, clip 3e-4/4e-4, 4 updates."""
    return Recipe(
        reward,
        advantage=normalised,
        loss=gspo_loss(3e-4, 4e-4),
        reduce=sequence_mean,
        samples=samples,
        updates=updates,
        **more,
    )


def cispo(reward: Reward, *, samples: int = 16, updates: int = 1, **more: Any) -> Recipe:
    """CISPO (arXiv:2506.13585): clipped importance weights, no token dropped, token mean, group z-scores."""
    return Recipe(
        reward,
        advantage=normalised,
        loss=cispo_loss(),
        reduce=token_mean,
        samples=samples,
        updates=updates,
        **more,
    )


def expert_iteration(reward: Reward, *, samples: int = 8, count: int = 1, least: float = 0.0, **more: Any) -> Recipe:
    """Learn the `count` best samples of each task that earn more than `least` by likelihood (best-of-n distillation).

    Expert iteration is Anthony et al. 2017 (arXiv:1705.08439); for language models also rejection sampling, RAFT.
    """
    return Recipe(
        reward,
        advantage=best(count, least),
        loss=likelihood,
        reduce=token_mean,
        samples=samples,
        keep=credited,
        **more,
    )


METHODS: dict[str, Callable[..., Recipe]] = {
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "dapo": dapo,
    "rloo": rloo,
    "reinforce_pp": reinforce_pp,
    "ppo": ppo,
    "gspo": gspo,
    "cispo": cispo,
    "expert_iteration": expert_iteration,
}
