"""What Q-RM is compared with, from the same base model: an implicit reward, an outcome model, a process model."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from posttrain.core import Group, Reward, Rollout
from posttrain.data import Pair
from posttrain.descent import descend
from posttrain.evaluation import evaluate
from posttrain.lab.world.lookup import Lookup, is_right, token_marks
from posttrain.policy.text import TextPolicy
from posttrain.policy.value import RewardModel
from posttrain.preference import accumulate_pairs, dpo, pair_scores
from posttrain.reward import each
from posttrain.reward_training import bradley_terry, reward_step
from posttrain.row import group_logps, rows_of
from posttrain.seeding import mix
from posttrain.stream import ShuffledSource
from posttrain.systems.q_rm.model import QModel, by_token

PER_STEP, RATE = 16, 1e-3  # pairs of a step, and learning rate, of every reward model of the tiny world


def dpo_reward(policy: TextPolicy, pairs: Sequence[Pair], world: Lookup, seed: int, steps: int) -> Reward:
    """Rafailov et al.'s implicit reward, log pi - log pi_ref of each token, after DPO on the same pairs."""
    reference = policy.frozen_copy()
    taught = TextPolicy(copy.deepcopy(policy.model), policy.tokenizer, policy.sampling)
    optimizer = torch.optim.AdamW(taught.parameters(), lr=RATE, weight_decay=0.0)
    source = ShuffledSource(pairs, seed)
    for _ in range(steps):
        optimizer.zero_grad()
        accumulate_pairs([source.take(PER_STEP)], lambda piece: pair_scores(taught, reference, piece), dpo(), False)
        descend(optimizer, 1.0)

    def values(group: Group) -> list[Tensor]:
        return [a - b for a, b in zip(group_logps(taught, group), group_logps(reference, group), strict=True)]

    return by_token(values)


def outcome_model(policy: TextPolicy, pairs: Sequence[Pair], world: Lookup, seed: int, steps: int) -> Reward:
    """An outcome reward model, Bradley-Terry at the last token, on the policy's trunk, from the same pairs."""
    from transformers import Qwen3ForSequenceClassification

    torch.manual_seed(mix(seed, "orm") % 2**32)
    config = copy.deepcopy(policy.body.config)
    config.num_labels = 1
    network: Any = Qwen3ForSequenceClassification(config)
    network.model.load_state_dict(policy.body.model.state_dict())
    judge = RewardModel(network.eval(), policy.tokenizer)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=RATE, weight_decay=0.0)
    source = ShuffledSource(pairs, seed)
    for _ in range(steps):
        optimizer.zero_grad()
        reward_step(judge, source.take(PER_STEP), bradley_terry())
        descend(optimizer, 1.0)
    return judge


def process_model(policy: TextPolicy, pairs: Sequence[Pair], world: Lookup, seed: int, steps: int) -> Reward:
    """A token-level process reward model: tanh of Z against labels of -1 and 1 for every token, by squares.

    It is told more than the others: which tokens are wrong.
    """
    torch.manual_seed(mix(seed, "prm") % 2**32)
    model = QModel(policy)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    found = evaluate({"policy": policy}, world.problems(len(pairs), "pairs"), each(is_right), samples=1, seed=seed)
    source = ShuffledSource([group[0] for group in found.groups], seed)
    for _ in range(steps):
        batch: list[Rollout] = source.take(2 * PER_STEP)
        optimizer.zero_grad()
        rows = [one for rollout in batch for one in rows_of(model.policy, rollout, rollout.turns)]
        labels = torch.cat([2 * token_marks(rollout) - 1 for rollout in batch])
        (torch.tanh(model.values(rows)) - labels).square().mean().backward()
        descend(optimizer, 1.0)
    return by_token(lambda group: [torch.tanh(value) for value in model.token_values(group)])


def truth(policy: TextPolicy, pairs: Sequence[Pair], world: Lookup, seed: int, steps: int) -> Reward:
    return each(is_right)
