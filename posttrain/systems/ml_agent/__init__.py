"""ML-Agent: an agent that improves machine learning scripts learns one action at a time (arXiv:2505.23723).

An expert explores with diverse ideas, and its episodes are learnt; its states become a pool, from which reinforcement
starts one action each; the metric before and after an edit is the reward.

problem       a folder with a script, what is wanted of it, and a scorer where scripts must not print their own metric
workspace     changed files, edits that can be undone, and states with snapshot and restore
actions       the tools and the response format of MLAgentBench
prompt        how a state is put to a policy
bench         the player that executes scripts in a sandbox, each once
episode       one action from a state, or a whole episode
reward        0, 0.5, or a sigmoid of the relative change of the metric
pool          the states of an expert's episodes, as a source
ideas         ideas that differ most from one another
"""

from __future__ import annotations

from collections.abc import Mapping

import posttrain as pt

__all__ = ["PARTS", "recipe"]


def recipe(
    policy: pt.TextPolicy,
    env: pt.Env,
    reward: pt.Reward,
    players: Mapping[str, pt.Sampler],
    *,
    critic_lr: float = 1e-5,
    samples: int = 1,
    updates: int = 1,
    epochs: int = 1,
    evaluation: pt.Reward | None = None,
) -> pt.Recipe:
    """PPO with a critic, without a KL term. `env` of one action is the paper's; of many, its episode-wise baseline.

    updates, epochs  optimizer steps in a pass over a batch, and passes
    The paper names PPO and both learning rates; gamma = lambda = 1 and both clips of 0.2 are ours.
    """
    advantage = pt.Gae(pt.Critic(policy, lr=critic_lr, clip=0.2), gamma=1.0, lam=1.0, updates=max(updates * epochs, 1))
    options = {"updates": updates, "epochs": epochs, "evaluation": evaluation}
    return pt.ppo(reward, advantage=advantage, samples=samples, env=env, others=players, **options)


PARTS: Mapping[str, pt.Part] = {}
