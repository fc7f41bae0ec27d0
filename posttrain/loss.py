"""Losses give every decision a cost, [N] -> [N]; a reduction says how much each one weighs.

Keeping the two apart is what makes gradient accumulation exact: weights are made once per
optimizer step, over all of its rows, and a micro-batch just takes its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from posttrain.core import Batch, Density, Loss, Metrics, Reduce

# ---- reductions: decisions per row [B], group of each row [B] -> the weight of one decision of each row [B] ----


def token_mean(lengths: Tensor, group: Tensor) -> Tensor:
    """Every decision of the step weighs the same (DAPO, arXiv:2503.14476, Eq. 12)."""
    return torch.ones(len(lengths)) / lengths.sum()


def sequence_mean(lengths: Tensor, group: Tensor) -> Tensor:
    """Every row weighs the same (GRPO, arXiv:2402.03300, Eq. 3)."""
    return 1 / lengths / len(lengths)


def prompt_mean(lengths: Tensor, group: Tensor) -> Tensor:
    """Every task weighs the same, and within a task every decision."""
    _, index = group.unique(return_inverse=True)
    decisions = torch.zeros(int(index.max()) + 1).index_add(0, index, lengths.float())
    return 1 / decisions[index] / len(decisions)


def constant_length(length: int) -> Reduce:
    """Every row is divided by the same length, in decisions (Dr. GRPO, arXiv:2503.20783, Sec. 3.2)."""
    return lambda lengths, group: torch.ones(len(lengths)) / (length * len(lengths))


# ---- losses -------------------------------------------------------------------------------------------------

LOG_RATIO_LIMIT = 20.0  # exp(20) = 5e8: far outside every clip range, and finite


def log_ratio(batch: Batch, now: Density) -> Tensor:
    """[N] log pi - log pi_old, held within ±20 so that its exponential stays finite."""
    return (now.logp - batch.logp_old).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def surrogate(ratio: Tensor, advantage: Tensor, low: float, high: float, dual: float | None) -> tuple[Tensor, Metrics]:
    """[N] the pessimistic cost of PPO (arXiv:1707.06347, Eq. 7) for any kind of ratio."""
    free, held = -advantage * ratio, -advantage * ratio.clamp(1 - low, 1 + high)
    cost = torch.maximum(free, held)
    metrics = {"clip_share": (held > free).float().mean().item(), "ratio_max": ratio.max().item()}
    if dual is not None:  # arXiv:1912.09729, Eq. 5: a bad decision made likely is not pushed without bound
        cost = torch.where(advantage < 0, torch.minimum(cost, -advantage * dual), cost)
    return cost, metrics


Made = TypeVar("Made", bound=Loss)


def mark_proportional(loss: Made) -> Made:
    """Mark a loss whose cost, and gradient, are zero for a decision without advantage: see `credit_only`."""
    loss.proportional = True  # type: ignore[attr-defined]
    return loss


def clipped(low: float = 0.2, high: float = 0.2, dual: float | None = None) -> Loss:
    """PPO's clipped surrogate (arXiv:1707.06347, Eq. 7). `high > low` is DAPO's clip-higher.

    `dual` bounds the cost of a bad decision (Dual-clip PPO, arXiv:1912.09729, Eq. 5).
    """
    if dual is not None and dual <= 1:
        raise ValueError(f"clipped(dual={dual}): the dual clip must be above 1")

    @mark_proportional
    def loss(batch: Batch, now: Density) -> tuple[Tensor, Metrics]:
        log = log_ratio(batch, now)
        cost, metrics = surrogate(log.exp(), batch.advantage, low, high, dual)
        return cost, metrics | {"kl_old": (log.detach().exp() - 1 - log.detach()).mean().item()}

    return loss


def gspo(low: float = 3e-4, high: float = 4e-4) -> Loss:
    """Group Sequence Policy Optimization (arXiv:2507.18071, Eq. 5 and 7): one ratio per row, length-normalised."""

    @mark_proportional
    def loss(batch: Batch, now: Density) -> tuple[Tensor, Metrics]:
        return surrogate(batch.row_mean(log_ratio(batch, now)).exp(), batch.advantage, low, high, None)

    return loss


def cispo(cap: float = 5.0) -> Loss:
    """CISPO (arXiv:2506.13585, Eq. 4-5): the ratio is a weight, clipped above, without gradient; no decision is lost.

    `cap` is the largest weight; 5 is ScaleRL's choice (arXiv:2510.13786), MiniMax-M1 leaves it unstated.
    """

    @mark_proportional
    def loss(batch: Batch, now: Density) -> tuple[Tensor, Metrics]:
        ratio = log_ratio(batch, now).detach().exp()
        metrics = {"clip_share": (ratio > cap).float().mean().item(), "ratio_max": ratio.max().item()}
        return -batch.advantage * ratio.clamp(max=cap) * now.logp, metrics

    return loss


@mark_proportional
def likelihood(batch: Batch, now: Density) -> tuple[Tensor, Metrics]:
    """-A log pi: REINFORCE (Williams 1992) when A is a credit, supervised learning when every A is 1."""
    return -batch.advantage * now.logp, {}


def entropy_bonus(batch: Batch, now: Density) -> tuple[Tensor, Metrics]:
    """The negative entropy, so that a positive weight in `total` keeps the policy wide."""
    return -now.entropy, {}


# ---- combinators --------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Total:
    """A weighted sum of losses; their metrics are merged."""

    terms: tuple[tuple[float, Loss], ...]

    def __call__(self, batch: Batch, now: Density) -> tuple[Tensor, Metrics]:
        cost, metrics = torch.zeros_like(now.logp), {}
        for weight, term in self.terms:
            part, more = term(batch, now)
            cost, metrics = cost + weight * part, metrics | more
        return cost, metrics


def total(*terms: tuple[float, Loss]) -> Loss:
    """`total((1.0, clipped()), (0.01, entropy_bonus))`: a weighted sum of losses."""
    return Total(terms)


@dataclass(frozen=True, eq=False)
class WholeStep:
    """A loss that needs statistics over the whole optimizer step (a covariance, a top share, a quantile).

    `mark(batch, density) -> [N]` sees every decision of the step at once, without gradients; the loss
    finds its own part of the result in `batch.marks[self]`, whatever micro-batch it is given.
    """

    mark: Callable[[Batch, Density], Tensor]
    cost: Callable[[Batch, Density, Tensor], tuple[Tensor, Metrics]]  # (batch, now, marks [N])
    needs_updates: bool = False  # it does nothing with one update per batch of rollouts

    def __call__(self, batch: Batch, now: Density) -> tuple[Tensor, Metrics]:
        return self.cost(batch, now, batch.marks[self])


@dataclass(frozen=True, eq=False)
class ImportanceCorrection:
    """Weights min(pi_old / mu, cap) for a sampler mu that is not the trainer (as IMPALA, arXiv:1802.01561)."""

    loss: Loss
    cap: float = 2.0

    def __call__(self, batch: Batch, now: Density) -> tuple[Tensor, Metrics]:
        cost, metrics = self.loss(batch, now)
        gap = (batch.logp_old - batch.logp_sampler).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
        weight = gap.exp().clamp(max=self.cap)
        return weight * cost, metrics | {"correction_capped": (gap.exp() > self.cap).float().mean().item()}


def loss_parts(loss: Loss) -> Iterator[Loss]:
    """A loss and every loss inside it."""
    yield loss
    inner = [term for _, term in loss.terms] if isinstance(loss, Total) else []
    inner += [loss.loss] if isinstance(loss, ImportanceCorrection) else []
    for part in inner:
        yield from loss_parts(part)


def whole_step_parts(loss: Loss) -> list[WholeStep]:
    return [part for part in loss_parts(loss) if isinstance(part, WholeStep)]


def credit_only(loss: Loss) -> bool:
    """Every term of the loss is `mark_proportional`: rows without credit need not be computed."""
    terms = [part for part in loss_parts(loss) if not isinstance(part, Total | ImportanceCorrection)]
    return all(getattr(term, "proportional", False) for term in terms)
