"""Emotion-o1: one model that thinks briefly about emotions and at length about sarcasm (arXiv:2505.22548).

A teacher's chains are kept where their label is right; they are learnt, with prompts that name the task; then PPO with
a critic, on a reward of four terms, one of which is the length that the teacher's chains have on that task.

reply         the label and the chain that a reply states, words of reasoning
utterances    MELD, MUStARD and a user's own rows, as tasks with labels
lengths       bands of lengths, task by task, fitted on these chains before reinforcement
reward        accuracy, length, structure and redundancy, each with a weight of its own
measures      accuracy, weighted F1, lengths and redundancy, task by task
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import posttrain as pt
from posttrain.systems.emotion_o1.lengths import band

__all__ = ["PARTS", "recipe"]

Method = Literal["ppo", "grpo"]
SAMPLES: Mapping[Method, int] = {"ppo": 1, "grpo": 16}
KL: Mapping[Method, float] = {"ppo": 0.05, "grpo": 0.01}


def recipe(
    reward: pt.Reward,
    policy: pt.TextPolicy,
    *,
    method: Method = "ppo",
    samples: int | None = None,
    kl: float | None = None,
    critic_lr: float = 1e-5,
    epochs: int = 4,
    evaluation: pt.Reward | None = None,
) -> pt.Recipe:
    """PPO with a critic: gamma and lambda 1, both clips 0.2, four passes over a batch, KL to the start in the reward.

    method   ppo; or grpo with groups of 16 and the KL in the loss
    samples  of an utterance: 1 for ppo, 16 for grpo if not given
    kl       weight of the divergence from `policy` as it is now, 0.05 for ppo and 0.01 for grpo if not given; 0 keeps
             no copy of it
    epochs   passes of ppo over each batch
    The paper names PPO and no numbers; these are ours.
    """
    count, kl = SAMPLES[method] if samples is None else samples, KL[method] if kl is None else kl
    reference = policy.frozen_copy() if kl else None
    if method == "grpo":
        return pt.grpo(reward, samples=count, kl=kl, reference=reference, evaluation=evaluation)
    advantage = pt.Gae(pt.Critic(policy, lr=critic_lr, clip=0.2), gamma=1.0, lam=1.0, updates=4)
    options = {"kl": kl, "reference": reference, "updates": 1, "epochs": epochs}
    return pt.ppo(reward, advantage=advantage, samples=count, evaluation=evaluation, **options)


# ---- for any recipe


def banded(reward: pt.Reward, weight: float = 0.3) -> pt.Reward:
    """A right reply earns `weight` more between the quartiles of the lengths of its group's right replies, less beyond.

    As the reward's term of length, where no teacher's chains are there to fit a band on; lengths in decisions.
    """

    def banded_reward(group: pt.Group) -> list[pt.Score | pt.Invalid]:
        scores = pt.group_scores(reward, group)
        right = [isinstance(one, pt.Score) and one.value >= pt.measure.RIGHT for one in scores]
        lengths = [rollout.decisions for rollout, is_right in zip(group, right, strict=True) if is_right]
        middle = band(lengths) if lengths else None
        out: list[pt.Score | pt.Invalid] = []
        for rollout, score, is_right in zip(group, scores, right, strict=True):
            if isinstance(score, pt.Score):
                close = middle.closeness(rollout.decisions) if middle and is_right else 0.0
                score = with_term(score, "length_band", close, weight)
            out.append(score)
        return out

    return banded_reward


def unrepeated(reward: pt.Reward, weight: float = 0.1, width: int = 4) -> pt.Reward:
    """The reward less `weight` times the share of repeated 4-grams of words."""

    def unrepeated_reward(group: pt.Group) -> list[pt.Score | pt.Invalid]:
        return [
            with_term(score, "repetition", pt.measure.repetition(rollout.text.split(), width), -weight)
            if isinstance(score, pt.Score)
            else score
            for rollout, score in zip(group, pt.group_scores(reward, group), strict=True)
        ]

    return unrepeated_reward


def with_term(score: pt.Score, name: str, value: float, weight: float) -> pt.Score:
    return replace(score, value=score.value + weight * value, parts={**score.parts, name: value})


PARTS: Mapping[str, pt.Part] = {
    "length_band": lambda plain, tiny: replace(
        plain, reward=banded(plain.reward), evaluation=plain.evaluation or plain.reward
    ),
    "no_repetition": lambda plain, tiny: replace(
        plain, reward=unrepeated(plain.reward), evaluation=plain.evaluation or plain.reward
    ),
}
