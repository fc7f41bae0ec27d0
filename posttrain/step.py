"""The RL step, and nothing that belongs to one method.

tasks --env--> rollouts --reward--> scores --advantage--> credit --rows--> rows     gather
rows --density--> log-probabilities --loss--> cost, weighed once --> optimizer      update
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from posttrain import ranks
from posttrain.core import Metrics, Policy, Row, Sampler, Score, ShardedSampler, Task
from posttrain.descent import require_shape, update
from posttrain.group import GradedGroup, ScoredRollout, group_metrics, limit_invalid, play_and_grade
from posttrain.recipe import LearningAdvantage, Recipe
from posttrain.row import rows
from posttrain.run.session import HeldOut, Session
from posttrain.run.settings import Run
from posttrain.seeding import mix, seed_everything
from posttrain.stream import ShuffledSource, Source


@dataclass(frozen=True, slots=True)
class Experience:
    rows: list[Row]
    played: list[ScoredRollout]
    metrics: Metrics


def gather(
    policy: Policy, source: Source, recipe: Recipe, tasks: int, *, seed: int = 0, sampler: Sampler | None = None
) -> Experience:
    """Play, grade, credit, pack: `tasks` groups from the source. `sampler` plays in the policy's place (an engine).

    Raises ValueError when more than `recipe.max_invalid` of the rollouts cannot be graded.
    """
    players = {"policy": sampler or policy, **recipe.others}
    seen: list[GradedGroup] = []
    admitted: list[GradedGroup] = []
    seconds: dict[str, float] = defaultdict(float)
    for attempt in range(recipe.rounds):
        drawn: list[Task] = source.take(tasks - len(admitted))
        with (
            policy.gather_parameters() if isinstance(policy, ShardedSampler) else nullcontext()
        ):  # a reward may score by the same model
            fresh, spent = play_and_grade(drawn, recipe.env, recipe.reward, players, recipe.samples, mix(seed, attempt))
        for name, value in spent.items():
            seconds[name] += value
        seen += fresh
        admitted += [one for one in fresh if recipe.admit(one.scores)]
        if len(admitted) >= tasks:
            break
    return credit_and_pack(policy, recipe, seen, admitted, seconds)


def credit_and_pack(
    policy: Policy, recipe: Recipe, seen: Sequence[GradedGroup], admitted: Sequence[GradedGroup], metrics: Metrics
) -> Experience:
    """Credit and rows of the admitted groups, and the metrics of all that were seen.

    Raises ValueError when more than `recipe.max_invalid` of the rollouts cannot be graded.
    """
    limit_invalid(seen, recipe.max_invalid)
    credit = credit_groups(recipe, admitted)
    packed = [
        row
        for i, group in enumerate(credit)
        for one in group
        if one.advantage is not None
        for row in rows(policy, one.rollout, one.advantage, i, one.score if isinstance(one.score, Score) else None)
        if recipe.keep(row)
    ]
    played = [one for group in credit for one in group]
    credited = [bool(one.advantage.any()) for one in played if one.advantage is not None]
    about = {
        "groups_refused": float(len(seen) - len(admitted)),
        "rows": float(len(packed)),
        "credited": statistics.fmean(credited) if credited else 0.0,
    }
    return Experience(packed, played, {**group_metrics(seen), **about, **metrics})


def credit_groups(recipe: Recipe, groups: Sequence[GradedGroup]) -> list[list[ScoredRollout]]:
    """Advantages of every group's valid members, then the change across the step."""
    credit: list[Tensor] = []
    for one in groups:
        if one.valid:
            found = list(recipe.advantage([rollout for rollout, _ in one.valid], [score for _, score in one.valid]))
            if len(found) != len(one.valid):
                raise ValueError(
                    f"task {one.group[0].task.key!r}: the advantage returned {len(found)} tensors for "
                    f"{len(one.valid)} rollouts; it returns one [N] tensor for each"
                )
            for (rollout, _), values in zip(one.valid, found, strict=True):
                require_shape(values, rollout.decisions, "the advantage", "decision of a rollout")
            credit += found
    if recipe.across:
        sizes, credit = [len(values) for values in credit], list(recipe.across(credit))
        if [len(values) for values in credit] != sizes:
            raise ValueError(
                "`across` returned credit of another shape: it returns one [N] tensor for each it is given"
            )
    left = iter(credit)
    return [
        [
            ScoredRollout(rollout, score, next(left) if isinstance(score, Score) else None)
            for rollout, score in zip(one.group, one.scores, strict=True)
        ]
        for one in groups
    ]


def learn(
    policy: Policy, session: Session, experience: Experience, recipe: Recipe, *, corrected: bool = False
) -> Metrics:
    """The second half of a session's step: update the policy, then whatever else of the recipe learns."""
    options = {"max_norm": session.run.max_norm, "micro_tokens": session.micro_tokens, "seed": session.seed}
    metrics = learn_from(policy, session.optimizer, experience, recipe, **options, corrected=corrected)
    session.micro_tokens = int(metrics.get("micro_tokens", session.micro_tokens))
    return metrics


def learn_from(
    policy: Policy,
    optimizer: Optimizer,
    experience: Experience,
    recipe: Recipe,
    *,
    micro_tokens: int = 16384,
    max_norm: float = 1.0,
    seed: int = 0,
    corrected: bool = False,
) -> Metrics:
    """`learn` with an optimizer and settings of one's own."""
    clock = time.perf_counter()
    metrics: Metrics = {}
    learning = recipe.advantage if isinstance(recipe.advantage, LearningAdvantage) else None
    if experience.rows and not getattr(learning, "warming_up", False):
        metrics = update(
            policy,
            optimizer,
            experience.rows,
            recipe.loss,
            recipe.reduce,
            recipe.reference,
            updates=recipe.updates,
            epochs=recipe.epochs,
            micro_tokens=micro_tokens,
            max_norm=max_norm,
            seed=seed,
            corrected=corrected,
        )
    if learning:
        metrics |= learning.learn()
    return metrics | {"seconds_learn": time.perf_counter() - clock}


def train_in_memory(
    policy: Policy,
    tasks: Sequence[Task] | Source,
    recipe: Recipe,
    *,
    steps: int,
    per_step: int = 16,
    lr: float = 3e-4,
    max_norm: float = 1.0,
    seed: int = 0,
    watch: Callable[[int], Metrics | None] = lambda step: None,
) -> list[Metrics]:
    """As `train`, without a directory, checkpoints or progress: the metrics of every step. For experiments.

    `watch(step)` is called before each step and after the last; the metrics that it returns join the step's.
    """
    source: Source = ShuffledSource(tasks, seed) if isinstance(tasks, Sequence) else tasks
    optimizer = torch.optim.AdamW(policy.parameters(), lr=lr, weight_decay=0.0, fused=True)
    history: list[Metrics] = []
    for step in range(steps):
        found = watch(step) or {}
        now = mix(seed, step)
        seed_everything(mix(seed, "step", step))
        experience = gather(policy, source, recipe, per_step, seed=now)
        found |= learn_from(policy, optimizer, experience, recipe, max_norm=max_norm, seed=now)
        history.append({"step": step, **experience.metrics, **found})
    if last := watch(steps):
        history.append({"step": steps, **last})
    return history


def train(
    policy: Policy,
    tasks: Sequence[Task] | Source,
    recipe: Recipe,
    run: Run,
    *,
    held_out: HeldOut = (),
    sampler: Sampler | None = None,
    on_start: Callable[[Session], None] = lambda session: None,
) -> Session:
    """Train a policy on tasks by a recipe, in a run directory; returns the session, whose `history` holds the metrics.

    `sampler` plays in the policy's place; its replies are corrected for the difference, and if it is an engine it is
    given the weights before every step. `held_out` tasks, or several sets of them by name, are graded every
    `run.eval_every` steps and never trained on. `on_start` is called once before the first step, when the directory is
    prepared and a resumed run restored. Under torchrun the policy is sharded over the ranks.
    """
    with Session(run, policy, tasks, recipe, held_out=held_out, sampler=sampler) as session:
        on_start(session)
        for _ in session:
            experience = gather(policy, session.source, recipe, run.tasks, seed=session.seed, sampler=sampler)
            if session.engine and ranks.is_primary():
                session.engine.rest()
            metrics = learn(policy, session, experience, recipe, corrected=sampler is not None)
            session.log(experience.metrics | metrics, experience.played)
    return session
