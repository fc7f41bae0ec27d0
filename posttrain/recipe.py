"""A method as a value: the functions that make it up."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeAlias, runtime_checkable

from posttrain.advantage import GROUP_BASELINES, normalised
from posttrain.core import (
    Across,
    Advantage,
    Draw,
    Env,
    Invalid,
    Loss,
    Metrics,
    Policy,
    Reduce,
    Reward,
    Row,
    Sampler,
    Score,
)
from posttrain.episode import single_turn
from posttrain.loss import Total, clipped, loss_parts, token_mean, total


def always(_: object) -> bool:
    """Every row, or every group."""
    return True


def credited(row: Row) -> bool:
    """Some decision of the row has an advantage. Without one only KL and entropy terms could teach it."""
    return bool(row.advantage.any())


def wait_for_learners(row: Row) -> bool:
    """The row was not cut off by the length limit: keeping only these is DAPO's overlong filtering."""
    return row.turns[-1].reply.stop != "length"


Part: TypeAlias = "Callable[[Recipe, bool], Recipe]"  # changes a recipe; True: with the numbers of tiny worlds


@runtime_checkable
class LearningAdvantage(Protocol):
    """An advantage that learns as well (GAE's critic): called once a step, after the policy's update.

    One that has a property `warming_up` is also asked for it: while it is true, the policy takes no step.
    """

    def learn(self) -> Metrics: ...


@dataclass(frozen=True, slots=True)
class Recipe:
    """A method: what is played, what is good, who gets the credit, and how it is learned."""

    reward: Reward
    env: Env = single_turn
    advantage: Advantage = normalised
    across: Across | None = None  # a last change to the credit of the whole step, such as `whitened`
    loss: Loss = clipped()
    reduce: Reduce = token_mean
    samples: int = 8  # G, rollouts per task
    updates: int = 1  # optimizer steps per pass over a batch of rollouts
    epochs: int = 1  # passes over a batch of rollouts
    keep: Callable[[Row], bool] = always  # rows that are trained; dropping some changes what `reduce` divides by
    admit: Callable[[Sequence[Score | Invalid]], bool] = always  # groups that count; others are replaced
    rounds: int = 1  # most rounds of sampling to replace groups that were not admitted
    others: Mapping[str, Sampler] = field(default_factory=dict)  # frozen players, by the name episodes ask for
    reference: Policy | None = None  # frozen, for losses that read `logp_ref`
    evaluation: Reward | None = None  # grades held-out tasks where the reward itself is not what one wants to know
    max_invalid: float = 0.2  # largest share of rollouts that may be ungradable in a step
    draw: Draw | None = None  # a picture of a rollout for the report; None: what its prompt shows besides text

    def __post_init__(self):
        if self.samples < 2 and self.advantage in GROUP_BASELINES:
            raise ValueError(
                f"samples={self.samples} with the advantage {self.advantage.__name__}: a group of one has no baseline; "
                "take at least 2 samples per task, or an advantage without a group baseline (raw, to_go, gae)"
            )
        if self.updates * self.epochs == 1 and any(
            getattr(part, "needs_updates", False) for part in loss_parts(self.loss)
        ):
            warnings.warn(
                "this loss restrains by the distance from the policy that sampled, which is zero with one update per "
                "batch of rollouts: give updates=2 or more (the paper's runs take 8)",
                stacklevel=3,
            )


def with_surrogate(recipe: Recipe, loss: Loss, **others: Any) -> Recipe:
    """The recipe with this loss in the place of its surrogate, the first term; a divergence and all other terms stay.

    `others` are more fields to be changed.
    """

    def replace_first_term(whole: Loss) -> Loss:
        if not isinstance(whole, Total):
            return loss
        (weight, first), *rest = whole.terms
        return total((weight, replace_first_term(first)), *rest)

    return replace(recipe, loss=replace_first_term(recipe.loss), **others)
