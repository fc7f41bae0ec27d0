"""What Q-RM is compared with, from the same base model: an implicit reward, an outcome model, a process model."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import posttrain as pt
from posttrain.lab.world.lookup import Lookup, is_right, token_marks
from posttrain.reward_training import reward_step
from posttrain.systems.q_rm.model import QModel, by_token

PER_STEP, RATE = 16, 1e-3  # pairs of a step, and learning rate, of every reward model of the tiny world


def dpo_reward(policy: pt.TextPolicy, pairs: Sequence[pt.Pair], world: Lookup, seed: int, steps: int) -> pt.Reward:
    """Rafailov et al.'s implicit reward, log pi - log pi_ref of each token, after DPO on the same pairs."""
    reference = policy.frozen_copy()
    taught = pt.TextPolicy(copy.deepcopy(policy.model), policy.tokenizer, policy.sampling)
    optimizer = torch.optim.AdamW(taught.parameters(), lr=RATE, weight_decay=0.0)
    source = pt.ShuffledSource(pairs, seed)
    for _ in range(steps):
        optimizer.zero_grad()
        pt.accumulate_pairs(
            [source.take(PER_STEP)], lambda piece: pt.pair_scores(taught, reference, piece), pt.dpo(), False
        )
        pt.descend(optimizer, 1.0)

    def values(group: pt.Group) -> list[Tensor]:
        return [a - b for a, b in zip(pt.group_logps(taught, group), pt.group_logps(reference, group), strict=True)]

    return by_token(values)


def outcome_model(policy: pt.TextPolicy, pairs: Sequence[pt.Pair], world: Lookup, seed: int, steps: int) -> pt.Reward:
    """An outcome reward model, Bradley-Terry at the last token, on the policy's trunk, from the same pairs."""
    from transformers import Qwen3ForSequenceClassification

    torch.manual_seed(pt.mix(seed, "orm") % 2**32)
    config = copy.deepcopy(policy.body.config)
    config.num_labels = 1
    network: Any = Qwen3ForSequenceClassification(config)
    network.model.load_state_dict(policy.body.model.state_dict())
    judge = pt.RewardModel(network.eval(), policy.tokenizer)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=RATE, weight_decay=0.0)
    source = pt.ShuffledSource(pairs, seed)
    for _ in range(steps):
        optimizer.zero_grad()
        reward_step(judge, source.take(PER_STEP), pt.bradley_terry())
        pt.descend(optimizer, 1.0)
    return judge


def process_model(policy: pt.TextPolicy, pairs: Sequence[pt.Pair], world: Lookup, seed: int, steps: int) -> pt.Reward:
    """A token-level process reward model: tanh of Z against labels of -1 and 1 for every token, by squares.

    It is told more than the others: which tokens are wrong.
    """
    torch.manual_seed(pt.mix(seed, "prm") % 2**32)
    model = QModel(policy)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    found = pt.evaluate(
        {"policy": policy}, world.problems(len(pairs), "pairs"), pt.each(is_right), samples=1, seed=seed
    )
    source = pt.ShuffledSource([group[0] for group in found.groups], seed)
    for _ in range(steps):
        batch: list[pt.Rollout] = source.take(2 * PER_STEP)
        optimizer.zero_grad()
        rows = [one for rollout in batch for one in pt.rows_of(model.policy, rollout, rollout.turns)]
        labels = torch.cat([2 * token_marks(rollout) - 1 for rollout in batch])
        (torch.tanh(model.values(rows)) - labels).square().mean().backward()
        pt.descend(optimizer, 1.0)
    return by_token(lambda group: [torch.tanh(value) for value in model.token_values(group)])


def truth(policy: pt.TextPolicy, pairs: Sequence[pt.Pair], world: Lookup, seed: int, steps: int) -> pt.Reward:
    return pt.each(is_right)
