"""Reward models from pairs: Bradley-Terry, regression, or any loss over the scores of chosen and rejected replies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from posttrain.core import Metrics
from posttrain.data import Pair
from posttrain.descent import descend
from posttrain.policy.value import RewardModel
from posttrain.preference import PairScores, accumulate_pairs, check_lengths, detached_scores, is_coupled
from posttrain.row import split_to_size
from posttrain.run.session import Session
from posttrain.run.settings import Run

ScoreLoss: TypeAlias = Callable[[Tensor, Tensor], Tensor]  # scores of chosen and rejected [B] -> cost [B] or []


def bradley_terry(margin: float = 0.0) -> ScoreLoss:
    """InstructGPT (arXiv:2203.02155, Eq. 1): -log sigmoid(r(chosen) - r(rejected) - margin)."""
    return lambda chosen, rejected: -F.logsigmoid(chosen - rejected - margin)


def regression(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Half the squared distance from 1 for the chosen reply and from 0 for the rejected one, for scores in [0, 1]."""
    return ((chosen - 1).square() + rejected.square()) / 2


def train_reward_model(
    model: RewardModel,
    pairs: Sequence[Pair],
    run: Run,
    *,
    loss: ScoreLoss = bradley_terry(),
    held_out: Sequence[Pair] | Mapping[str, Sequence[Pair]] = (),
) -> Session:
    """Train a sequence classifier on pairs; `run.tasks` is the number of pairs in a step.

    The loss sees all pairs of a step at once, whatever the micro-batches.

    held_out  pairs that are not learned, or several sets by name: loss, accuracy and margin are measured as often as
              `run.eval_every` says
    Raises ValueError, naming the pair, when a reply does not fit the model's context.
    """

    def size(pair: Pair) -> int:
        return max(len(model.ids(pair.prompt, text)) for text in (pair.chosen, pair.rejected))

    check_lengths(size, model.context, pairs, held_out)

    def measure(some: Sequence[Pair]) -> Metrics:
        return reward_metrics(detached_scores(*scoring(model, some, run.micro_tokens)), loss)

    policy: Any = model
    settings = {"loss": loss}
    with Session(
        run, policy, pairs, kind="reward-model", held_out=held_out, measure=measure, settings=settings
    ) as session:
        for _ in session:
            batch: list[Pair] = session.source.take(run.tasks)
            session.optimizer.zero_grad()
            metrics = reward_step(model, batch, loss, run.micro_tokens)
            stepped = descend(session.optimizer, run.max_norm)
            model.version += 1
            session.log(metrics | stepped | {"pairs": float(len(batch))})
    return session


def reward_step(model: RewardModel, pairs: Sequence[Pair], loss: ScoreLoss, micro_tokens: int = 16384) -> Metrics:
    """Add the gradient of one step over the pairs; the metrics."""
    pieces, score = scoring(model, pairs, micro_tokens)

    def cost(found: PairScores) -> Tensor:
        return loss(found.chosen, found.rejected)

    return reward_metrics(accumulate_pairs(pieces, score, cost, is_coupled(loss)), loss)


def scoring(
    model: RewardModel, pairs: Sequence[Pair], micro_tokens: int
) -> tuple[list[list[int]], Callable[[Sequence[int]], PairScores]]:
    """The pairs' indices in pieces of at most so many tokens, and what scores a piece."""
    ids = [[model.ids(pair.prompt, text) for text in (pair.chosen, pair.rejected)] for pair in pairs]

    def size(piece: Sequence[int]) -> int:
        return 2 * len(piece) * max(len(one) for i in piece for one in ids[i])

    def score(piece: Sequence[int]) -> PairScores:
        both = [one for i in piece for one in ids[i]]
        found, lengths = model.scores(both), torch.tensor([len(one) for one in both])
        return PairScores(found[::2], found[1::2], lengths[::2], lengths[1::2])

    return split_to_size(range(len(pairs)), size, micro_tokens), score


def reward_metrics(found: PairScores, loss: ScoreLoss) -> Metrics:
    gap = found.chosen - found.rejected
    return {
        "loss": loss(found.chosen, found.rejected).mean().item(),
        "accuracy": (gap > 0).float().mean().item(),
        "margin": gap.mean().item(),
        "score": torch.cat([found.chosen, found.rejected]).mean().item(),
    }
