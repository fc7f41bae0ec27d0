"""The RL step, and nothing that belongs to one method.

tasks --env--> rollouts --reward--> scores --advantage--> credit --rows--> rows     gather
rows --density--> log-probabilities --loss--> cost, weighed once --> optimizer      update
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from posttrain.advantage import GROUP_BASELINES, normalised
from posttrain.core import (
    Across,
    Advantage,
    Batch,
    Density,
    Env,
    Group,
    Invalid,
    Loss,
    Metrics,
    Policy,
    Reduce,
    Reward,
    Rollout,
    Row,
    Sampler,
    Score,
    Task,
)
from posttrain.episode import rollout, single_turn
from posttrain.loss import Corrected, clipped, token_mean, whole_step_parts
from posttrain.reward import graded, spread_of
from posttrain.row import flatten, micro_batches, rows
from posttrain.run import Run, Session
from posttrain.seeding import mix
from posttrain.stream import Source


def always(_: object) -> bool:
    return True


def credited(row: Row) -> bool:
    """Some decision of the row has an advantage. Without one only KL and entropy terms could teach it."""
    return bool(row.advantage.any())


def finished(row: Row) -> bool:
    """The row was not cut off by the length limit: keeping only these is DAPO's overlong filtering."""
    return row.turns[-1].reply.stop != "length"


@runtime_checkable
class Learner(Protocol):
    """An advantage that learns as well (GAE's critic): called once a step, after the policy's update."""

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
    max_invalid: float = 0.2  # largest share of rollouts that may be ungradable in a step

    def __post_init__(self):
        if self.samples < 2 and self.advantage in GROUP_BASELINES:
            raise ValueError(
                f"samples={self.samples} with the advantage {self.advantage.__name__}: a group of one has no baseline; "
                "take at least 2 samples per task, or an advantage without a group baseline (raw, to_go, gae)"
            )


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
    groups: list[Group] = []
    scores: list[list[Score | Invalid]] = []
    seconds: dict[str, float] = defaultdict(float)
    refused = 0
    for attempt in range(recipe.rounds):
        drawn: list[Task] = source.take(tasks - len(groups))
        clock = time.perf_counter()
        played = rollout(recipe.env, drawn, players, recipe.samples, seed=mix(seed, attempt))  # [P][G]
        seconds["seconds_sample"] += time.perf_counter() - clock
        clock = time.perf_counter()
        marked = [graded(recipe.reward, group) for group in played]  # [P][G]
        seconds["seconds_grade"] += time.perf_counter() - clock
        admitted = [i for i, marks in enumerate(marked) if recipe.admit(marks)]
        groups += [played[i] for i in admitted]
        scores += [marked[i] for i in admitted]
        refused += len(drawn) - len(admitted)
        if len(groups) >= tasks:
            break
    credit = credited_groups(recipe, groups, scores)
    packed = [
        row
        for i, group in enumerate(credit)
        for one in group
        if one.advantage is not None
        for row in rows(policy, one.rollout, one.advantage, group=i)
        if recipe.keep(row)
    ]
    flat = [one for group in credit for one in group]
    return Experience(packed, flat, {**described(flat, scores, packed), "groups_refused": float(refused), **seconds})


def credited_groups(recipe: Recipe, groups: list[Group], scores: list[list[Score | Invalid]]) -> list[list[Played]]:
    """Advantages of every group's valid members, then the change across the step."""
    total = sum(map(len, scores))
    reasons = [score.reason for marks in scores for score in marks if isinstance(score, Invalid)]
    if total and len(reasons) > recipe.max_invalid * total:
        raise ValueError(
            f"{len(reasons)} of {total} rollouts could not be graded (limit: a share of {recipe.max_invalid}); "
            f"the first because: {reasons[0]}"
        )
    credit: list[Tensor] = []
    for group, marks in zip(groups, scores, strict=True):
        pairs = [(one, score) for one, score in zip(group, marks, strict=True) if isinstance(score, Score)]
        if pairs:
            credit += recipe.advantage([one for one, _ in pairs], [score for _, score in pairs])
    if recipe.across:
        credit = recipe.across(credit)
    left = iter(credit)
    return [
        [
            Played(one, score, next(left) if isinstance(score, Score) else None)
            for one, score in zip(group, marks, strict=True)
        ]
        for group, marks in zip(groups, scores, strict=True)
    ]


def described(played: list[Played], scores: list[list[Score | Invalid]], packed: list[Row]) -> Metrics:
    """What a person wants to know of a step's rollouts; see docs/metrics.md."""
    valid = [one.score for one in played if isinstance(one.score, Score)]
    if not played:
        return {"rollouts": 0.0, "rows": 0.0}
    values = [score.value for score in valid]
    metrics = {
        "reward": statistics.fmean(values) if values else 0.0,
        "reward_std": statistics.pstdev(values) if values else 0.0,
        "groups_flat": statistics.fmean(spread_of(marks) == 0 for marks in scores),
        "invalid": 1 - len(valid) / len(played),
        "length": statistics.fmean(one.rollout.decisions for one in played),
        "truncated": statistics.fmean(one.rollout.truncated for one in played),
        "turns": statistics.fmean(len(one.rollout.turns) for one in played),
        "rollouts": float(len(played)),
        "rows": float(len(packed)),
        "decisions": float(sum(one.rollout.decisions for one in played)),
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
        for share in torch.randperm(len(rows), generator=generator).chunk(updates):
            chosen, chosen_old = [rows[i] for i in share.tolist()], [old[i] for i in share.tolist()]
            optimizer.zero_grad()
            accumulate(policy, chosen, chosen_old, loss, reduce, reference, micro_tokens, log)
            norm = clip_grad_norm_(list(policy.parameters()), max_norm)
            if not torch.isfinite(norm):
                raise FloatingPointError(
                    f"the gradient's norm is {norm.item()} at version {policy.version}: no step was taken. Look at the "
                    "log-ratios and advantages of this step's rollouts; lower the learning rate, or leave bf16"
                )
            optimizer.step()
            policy.version += 1
            log.add({"grad_norm": norm.item()}, 1)
    return log.means()


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
    marks = first_pass(policy, rows, old, loss, micro_tokens)
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
    policy: Policy, rows: Sequence[Row], old: Sequence[Tensor], loss: Loss, micro_tokens: int
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
    batch, density = flatten(rows, torch.cat(list(old))), Density(torch.cat(logp), torch.cat(entropy))
    sizes = [len(row.advantage) for row in rows]
    return {part: list(part.mark(batch, density).split(sizes)) for part in wanting}


def on_device(batch: Batch, device: torch.device, marks: Mapping[Loss, Sequence[Tensor]]) -> Batch:
    return Batch(
        logp_sampler=batch.logp_sampler.to(device),
        logp_old=batch.logp_old.to(device),
        advantage=batch.advantage.to(device),
        row=batch.row.to(device),
        logp_ref=batch.logp_ref,
        marks={part: torch.cat(list(values)).to(device) for part, values in marks.items()},
    )


def scored(policy: Policy, rows: Sequence[Row], micro_tokens: int = 16384) -> list[Tensor]:
    """[B][N] log-probabilities of every row under the current parameters, without gradients, on the CPU."""
    out: list[Tensor] = [torch.empty(0)] * len(rows)
    with torch.no_grad():
        for piece in micro_batches(policy, rows, micro_tokens):
            logp = policy.density([rows[i] for i in piece]).logp.cpu()
            for i, part in zip(piece, logp.split([len(rows[i].advantage) for i in piece]), strict=True):
                out[i] = part
    return out


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
    policy: Policy, optimizer: Optimizer, experience: Experience, recipe: Recipe, run: Run, seed: int = 0, **options
) -> Metrics:
    """The second half of a step: update the policy, then whatever else of the recipe learns."""
    clock = time.perf_counter()
    metrics: Metrics = {}
    if experience.rows:
        metrics = update(
            policy,
            optimizer,
            experience.rows,
            recipe.loss,
            recipe.reduce,
            recipe.reference,
            updates=recipe.updates,
            epochs=recipe.epochs,
            micro_tokens=run.micro_tokens,
            max_norm=run.max_norm,
            seed=seed,
            **options,
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
        for number in session:
            seed = mix(run.seed, number)
            experience = gather(policy, session.source, recipe, run.tasks, seed=seed, sampler=sampler)
            metrics = learn(policy, session.optimizer, experience, recipe, run, seed, corrected=sampler is not None)
            session.log(experience.metrics | metrics, experience.played)
    return session
