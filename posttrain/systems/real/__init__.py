"""ReaL: code that is safe and works, by PPO on program analysis and unit tests (arXiv:2505.22704).

taint        input that reaches a sink: an analysis of the syntax tree (flow: its statements, names and functions)
detectors    the analysers by name: ours, ruff and mypy in batches, and semgrep, which is held out
problems     rows of SafeSQL, SecCodePLT and APPS+, and of one's own, as problems with unit tests
unit_tests   the three kinds of unit tests, run in the sandbox
reward       the weighted mean of detectors and tests
attack       attacks on real SQLite, held out
measures     Function, Quality and both
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import posttrain as pt
from posttrain.systems.real.detectors import detectors_of
from posttrain.systems.real.problems import fenced_code, is_placeholder

__all__ = ["PARTS", "recipe"]


def recipe(
    reward: pt.Reward,
    policy: pt.TextPolicy,
    *,
    samples: int = 1,
    kl: float = 0.001,
    entropy: float = 0.001,
    critic_lr: float = 1e-5,
    updates: int = 1,
    evaluation: pt.Reward | None = None,
) -> pt.Recipe:
    """PPO with a critic from the same model: gamma and lambda 1, clip 0.2, value clip 0.5, one pass over a batch.

    kl       weight of the divergence from `policy` as it is now, in the reward; 0 keeps no copy of it
    entropy  weight of the entropy, in the loss
    updates  optimizer steps of a pass: batch by mini-batch (1 for SafeSQL and APPS+, 8 for SecCodePLT+)
    """
    made = pt.ppo(
        reward,
        advantage=pt.Gae(pt.Critic(policy, lr=critic_lr, clip=0.5), gamma=1.0, lam=1.0, updates=updates),
        samples=samples,
        kl=kl,
        reference=policy.frozen_copy() if kl else None,
        updates=updates,
        evaluation=evaluation,
    )
    return replace(made, loss=pt.total((1.0, made.loss), (entropy, pt.entropy_bonus))) if entropy else made


# ---- for any recipe


def with_detector(reward: pt.Reward, name: str, weight: float = 0.3) -> pt.Reward:
    """The reward and `weight` times what a detector says of the reply's last block of Python, where there is one.

    Raises ValueError, at once, for a detector whose tool is not installed.
    """
    [detector] = detectors_of([name]).values()

    def analysed_reward(group: pt.Group) -> list[pt.Score | pt.Invalid]:
        codes = [fenced_code(rollout.text) for rollout in group]
        codes = [None if code is None or is_placeholder(code, "") else code for code in codes]
        some = [code for code in codes if code is not None]
        found = dict(zip(some, detector.scores(some), strict=True))
        out: list[pt.Score | pt.Invalid] = []
        for score, code in zip(pt.group_scores(reward, group), codes, strict=True):
            said = found.get(code) if code is not None else None
            if isinstance(said, pt.Invalid) and isinstance(score, pt.Score):
                score = said
            elif isinstance(said, float) and isinstance(score, pt.Score):
                score = replace(score, value=score.value + weight * said, parts={**score.parts, name: said})
            out.append(score)
        return out

    return analysed_reward


def part(name: str) -> pt.Part:
    return lambda plain, tiny: replace(
        plain, reward=with_detector(plain.reward, name), evaluation=plain.evaluation or plain.reward
    )


PARTS: Mapping[str, pt.Part] = {"secure": part("taint"), "typed": part("mypy")}
