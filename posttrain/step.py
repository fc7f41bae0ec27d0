"""The RL step, and nothing that belongs to one method.

tasks --env--> rollouts --reward--> scores --advantage--> credit --rows--> rows     gather
rows --density--> log-probabilities --loss--> cost, weighed once --> optimizer      update
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from posttrain.core import (
    Batch,
    Density,
    Group,
    Invalid,
    Loss,
    Metrics,
    Policy,
    Reduce,
    Rollout,
    Row,
    Sampler,
    Score,
    Task,
)
from posttrain.episode import rollout
from posttrain.loss import Corrected, token_mean, whole_step_parts
from posttrain.recipe import Learner, Recipe
from posttrain.reward import graded, spread_of
from posttrain.row import flatten, micro_batches, rows, scored
from posttrain.run import Run, Session
from posttrain.seeding import mix
from posttrain.stream import Source


@dataclass(frozen=True, slots=True)
class Graded:
    """A group with its scores, [G] each."""

    group: Group
    scores: list[Score | Invalid]

    @property
    def valid(self) -> list[tuple[Rollout, Score]]:
        return [(r, s) for r, s in zip(self.group, self.scores, strict=True) if isinstance(s, Score)]


@dataclass(frozen=True, slots=True)
class Played:
    """A rollout with what became of it."""

    rollout: Rollout
    score: Score | Invalid
    advantage: Tensor | None  # [N]; None when the rollout could not be graded


@dataclass(frozen=True, slots=True)
class Experience:
    rows: list[Row]
    played: list[Played]
    metrics: Metrics


def gather(
    policy: Policy, source: Source, recipe: Recipe, tasks: int, *, seed: int = 0, sampler: Sampler | None = None
) -> Experience:
    """Play, grade, credit, pack: `tasks` groups from the source. `sampler` plays in the policy's place (an engine).

    Raises ValueError when more than `recipe.max_invalid` of the rollouts cannot be graded.
    """
    players = {"policy": sampler or policy, **recipe.others}
    seen: list[Graded] = []
    admitted: list[Graded] = []
    seconds: dict[str, float] = defaultdict(float)
    for attempt in range(recipe.rounds):
        drawn: list[Task] = source.take(tasks - len(admitted))
        clock = time.perf_counter()
        played = rollout(recipe.env, drawn, players, recipe.samples, seed=mix(seed, attempt))  # [P][G]
        seconds["seconds_sample"] += time.perf_counter() - clock
        clock = time.perf_counter()
        fresh = [Graded(group, graded(recipe.reward, group)) for group in played]
        seconds["seconds_grade"] += time.perf_counter() - clock
        seen += fresh
        admitted += [one for one in fresh if recipe.admit(one.scores)]
        if len(admitted) >= tasks:
            break
    limit_invalid(seen, recipe.max_invalid)
    credit = credited_groups(recipe, admitted)
    packed = [
        row
        for i, group in enumerate(credit)
        for one in group
        if one.advantage is not None
        for row in rows(policy, one.rollout, one.advantage, group=i)
        if recipe.keep(row)
    ]
    refused = {"groups_refused": float(len(seen) - len(admitted)), "rows": float(len(packed))}
    return Experience(packed, [one for group in credit for one in group], {**described(seen), **refused, **seconds})


def limit_invalid(seen: Sequence[Graded], most: float) -> None:
    scores = [score for one in seen for score in one.scores]
    reasons = [score.reason for score in scores if isinstance(score, Invalid)]
    if len(reasons) > most * len(scores):
        raise ValueError(
            f"{len(reasons)} of {len(scores)} rollouts could not be graded (limit: a share of {most}); "
            f"the first because: {reasons[0]}"
        )


def credited_groups(recipe: Recipe, groups: Sequence[Graded]) -> list[list[Played]]:
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
            credit += found
    if recipe.across:
        credit = recipe.across(credit)
    left = iter(credit)
    return [
        [
            Played(rollout, score, next(left) if isinstance(score, Score) else None)
            for rollout, score in zip(one.group, one.scores, strict=True)
        ]
        for one in groups
    ]


def described(seen: Sequence[Graded]) -> Metrics:
    """What a person wants to know of all that was played and graded in a step; see docs/metrics.md."""
    played = [rollout for one in seen for rollout in one.group]
    valid = [score for one in seen for _, score in one.valid]
    values = [score.value for score in valid]
    compared = [spread_of(one.scores) == 0 for one in seen if len(one.valid) > 1]
    metrics = {
        "reward": statistics.fmean(values) if values else 0.0,
        "reward_std": statistics.pstdev(values) if values else 0.0,
        "groups_flat": statistics.fmean(compared) if compared else 0.0,
        "invalid": 1 - len(valid) / len(played),
        "length": statistics.fmean(rollout.decisions for rollout in played),
        "truncated": statistics.fmean(rollout.truncated for rollout in played),
        "turns": statistics.fmean(len(rollout.turns) for rollout in played),
        "rollouts": float(len(played)),
        "decisions": float(sum(rollout.decisions for rollout in played)),
    }
    named: dict[str, list[float]] = defaultdict(list)
    for score in valid:
        for name, value in score.parts.items():
            named[f"part/{name}"].append(value)
    return metrics | {name: statistics.fmean(part) for name, part in named.items()}


def update(
    policy: Policy,
    optimizer: Optimizer,
    rows: Sequence[Row],
    loss: Loss,
    reduce: Reduce = token_mean,
    reference: Policy | None = None,
    *,
    updates: int = 1,
    epochs: int = 1,
    micro_tokens: int = 16384,
    max_norm: float = 1.0,
    seed: int = 0,
    corrected: bool = False,
) -> Metrics:
    """Take `updates` optimizer steps over the rows, each on its own share of them, `epochs` times.

    `corrected`: another engine sampled the rows, so importance weights are recomputed and truncated.
    Raises FloatingPointError, before the parameters change, when the gradient is not finite.
    """
    recompute = corrected or updates * epochs > 1
    old = scored(policy, rows, micro_tokens) if recompute else [row.logp for row in rows]
    loss = Corrected(loss) if corrected else loss
    log = Averages()
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for share in torch.randperm(len(rows), generator=generator).tensor_split(min(updates, len(rows))):
            chosen, chosen_old = [rows[i] for i in share.tolist()], [old[i] for i in share.tolist()]
            optimizer.zero_grad()
            accumulate(policy, chosen, chosen_old, loss, reduce, reference, micro_tokens, log)
            log.add(descend(optimizer, max_norm), 1)
            policy.version += 1
    return log.means()


def descend(optimizer: Optimizer, max_norm: float) -> Metrics:
    """Clip the gradient and take the optimizer's step. Raises FloatingPointError before it when it is not finite."""
    norm = clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], max_norm)
    if not torch.isfinite(norm):
        raise FloatingPointError(
            f"the gradient's norm is {norm.item()}: no step was taken. Look at the advantages and log-probabilities of "
            "this step's rollouts; lower the learning rate, or leave bf16"
        )
    optimizer.step()
    return {"grad_norm": norm.item()}


def accumulate(
    policy: Policy,
    rows: Sequence[Row],
    old: Sequence[Tensor],
    loss: Loss,
    reduce: Reduce,
    reference: Policy | None,
    micro_tokens: int,
    log: Averages,
) -> None:
    """Add the gradient of one optimizer step, micro-batch by micro-batch; the weights are made once, for all rows."""
    lengths = torch.tensor([len(row.advantage) for row in rows])
    weight = reduce(lengths, torch.tensor([row.group for row in rows]))  # [B]
    marks = first_pass(policy, rows, old, loss, reference, micro_tokens)
    whole = 0.0
    for piece in micro_batches(policy, rows, micro_tokens):
        chosen = [rows[i] for i in piece]
        with torch.no_grad():
            logp_ref = reference.density(chosen).logp if reference else None
        now = policy.density(chosen)
        batch = flatten(chosen, torch.cat([old[i] for i in piece]), logp_ref)
        batch = on_device(batch, now.logp.device, {part: [values[i] for i in piece] for part, values in marks.items()})
        if now.logp.shape != batch.logp_old.shape:
            raise ValueError(f"{len(batch.logp_old)} decisions were sampled, but density scored {len(now.logp)}")
        cost, metrics = loss(batch, now)  # [N]
        step_cost = (weight[piece].to(cost.device)[batch.row] * cost).sum()
        step_cost.backward()
        whole += step_cost.item()
        gap = (now.logp.detach() - batch.logp_sampler).abs()
        metrics |= {"entropy": now.entropy.mean().item(), "sampler_gap": gap.mean().item()}
        log.add(metrics, len(cost))
    log.add({"loss": whole}, 1)


def first_pass(
    policy: Policy,
    rows: Sequence[Row],
    old: Sequence[Tensor],
    loss: Loss,
    reference: Policy | None,
    micro_tokens: int,
) -> dict[Loss, list[Tensor]]:
    """What each `WholeStep` part of the loss says of every decision of the step, split by row."""
    wanting = whole_step_parts(loss)
    if not wanting:
        return {}
    logp: list[Tensor] = [torch.empty(0)] * len(rows)
    entropy = list(logp)
    with torch.no_grad():
        for piece in micro_batches(policy, rows, micro_tokens):
            now = policy.density([rows[i] for i in piece])
            sizes = [len(rows[i].advantage) for i in piece]
            for i, a, b in zip(piece, now.logp.cpu().split(sizes), now.entropy.cpu().split(sizes), strict=True):
                logp[i], entropy[i] = a, b
    logp_ref = torch.cat(scored(reference, rows, micro_tokens)) if reference else None
    batch, density = flatten(rows, torch.cat(list(old)), logp_ref), Density(torch.cat(logp), torch.cat(entropy))
    sizes = [len(row.advantage) for row in rows]
    return {part: list(part.mark(batch, density).split(sizes)) for part in wanting}


def on_device(batch: Batch, device: torch.device, marks: Mapping[Loss, Sequence[Tensor]]) -> Batch:
    return Batch(
        logp_sampler=batch.logp_sampler.to(device),
        logp_old=batch.logp_old.to(device),
        advantage=batch.advantage.to(device),
        row=batch.row.to(device),
        logp_ref=None if batch.logp_ref is None else batch.logp_ref.to(device),
        marks={part: torch.cat(list(values)).to(device) for part, values in marks.items()},
    )


class Averages:
    """Means of metrics weighted by decisions; of a name that ends in `_max`, the largest."""

    def __init__(self):
        self.sums: dict[str, float] = defaultdict(float)
        self.weights: dict[str, float] = defaultdict(float)
        self.largest: dict[str, float] = {}

    def add(self, metrics: Metrics, weight: float) -> None:
        for name, value in metrics.items():
            if name.endswith("_max"):
                self.largest[name] = max(value, self.largest.get(name, value))
            else:
                self.sums[name] += value * weight
                self.weights[name] += weight

    def means(self) -> Metrics:
        return {name: total / self.weights[name] for name, total in self.sums.items()} | self.largest


def learn(
    policy: Policy, session: Session, experience: Experience, recipe: Recipe, *, corrected: bool = False
) -> Metrics:
    """The second half of a step: update the policy, then whatever else of the recipe learns."""
    clock = time.perf_counter()
    metrics: Metrics = {}
    if experience.rows:
        metrics = update(
            policy,
            session.optimizer,
            experience.rows,
            recipe.loss,
            recipe.reduce,
            recipe.reference,
            updates=recipe.updates,
            epochs=recipe.epochs,
            micro_tokens=session.run.micro_tokens,
            max_norm=session.run.max_norm,
            seed=session.seed,
            corrected=corrected,
        )
    if isinstance(recipe.advantage, Learner):
        metrics |= recipe.advantage.learn()
    return metrics | {"seconds_learn": time.perf_counter() - clock}


def train(
    policy: Policy,
    tasks: Sequence[Task] | Source,
    recipe: Recipe,
    run: Run,
    *,
    held_out: Sequence[Task] = (),
    sampler: Sampler | None = None,
) -> Session:
    """Train a policy on tasks by a recipe, in a run directory; returns the session, whose `history` holds the metrics.

    `sampler` plays in the policy's place; its replies are corrected for the difference. `held_out` tasks are
    graded every `run.eval_every` steps and never trained on.
    """
    with Session(run, policy, tasks, recipe, held_out=held_out) as session:
        for _ in session:
            experience = gather(policy, session.source, recipe, run.tasks, seed=session.seed, sampler=sampler)
            metrics = learn(policy, session, experience, recipe, corrected=sampler is not None)
            session.log(experience.metrics | metrics, experience.played)
    return session
