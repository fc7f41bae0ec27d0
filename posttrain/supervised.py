"""Learning from what others said: supervised fine-tuning and off-policy distillation.

It is the `update` of reinforcement learning with a likelihood loss, on rows that somebody else took.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from posttrain.core import Metrics, Row, Sampler, Task
from posttrain.data import Demonstration
from posttrain.descent import update
from posttrain.episode import rollout, single_turn
from posttrain.loss import likelihood, token_mean
from posttrain.policy.text import TextPolicy
from posttrain.row import demonstration_rows, row_logps
from posttrain.run.session import HeldOut, Session
from posttrain.run.settings import Run


def sft(
    policy: TextPolicy,
    demonstrations: Sequence[Demonstration],
    run: Run,
    *,
    held_out: HeldOut = (),
    measure: Callable[[Sequence[Any]], Metrics] | None = None,
    on_start: Callable[[Session], None] = lambda session: None,
) -> Session:
    """Supervised fine-tuning, the loss on assistant replies only; `run.tasks` is the number of rows in a step.

    held_out  demonstrations that are not learned, or several sets by name: their loss is measured as often as
              `run.eval_every` says
    measure   what is measured of each set in place of the loss; the sets hold whatever it takes
    on_start  called once before the first step, when the directory is prepared and a resumed run restored
    Raises ValueError naming the demonstration that is longer than the model's context.
    """
    rows = learned_rows(policy, demonstrations)
    sets = held_out if isinstance(held_out, Mapping) else {"": held_out}
    tests = sets if measure else {name: learned_rows(policy, some) for name, some in sets.items()}

    def loss(some: Sequence[Row]) -> Metrics:
        return {"loss": -torch.cat(row_logps(policy, some, session.micro_tokens)).mean().item()}

    with Session(run, policy, rows, kind="sft", held_out=tests, measure=measure or loss) as session:
        on_start(session)
        for _ in session:
            session.log(supervised_step(policy, session, run))
    return session


def learned_rows(policy: TextPolicy, demonstrations: Sequence[Demonstration]) -> list[Row]:
    """Raises ValueError naming the demonstration that is longer than the model's context."""
    rows = []
    for number, demonstration in enumerate(demonstrations, 1):
        name = demonstration.place or f"demonstration {number}"
        try:
            found = demonstration_rows(policy, demonstration)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        for row in found:
            if policy.size([row]) > policy.context:
                raise ValueError(
                    f"{name} has {policy.size([row])} tokens, but the model has {policy.context} "
                    "positions: shorten it or leave it out"
                )
            rows.append(row)
    return rows


def supervised_step(policy: TextPolicy, session: Session, run: Run) -> Metrics:
    batch: list[Row] = session.source.take(run.tasks)
    metrics = update(
        policy,
        session.optimizer,
        batch,
        likelihood,
        token_mean,
        micro_tokens=session.micro_tokens,
        max_norm=run.max_norm,
        seed=session.seed,
    )
    metrics.pop("sampler_gap")  # nobody sampled these
    session.micro_tokens = int(metrics["micro_tokens"])
    return metrics | {"decisions": float(sum(len(row.advantage) for row in batch)), "rows": float(len(batch))}


def teacher_demonstrations(
    teacher: Sampler, tasks: Sequence[Task], samples: int = 1, seed: int = 0
) -> list[Demonstration]:
    """What a teacher answers, as demonstrations: off-policy distillation is `sft` on these."""
    groups = rollout(single_turn, tasks, {"policy": teacher}, samples, seed)
    return [
        Demonstration((*one.task.prompt, {"role": "assistant", "content": one.text}))
        for group in groups
        for one in group
        if not one.truncated
    ]
