"""Learning a gate from transitions that were collected before: in a run directory, or for experiments without one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

import posttrain as pt
from posttrain.run.session import HeldOut
from posttrain.systems.actlcd.bcq import CLONING, REFRESH, Bcq, phase_of
from posttrain.systems.actlcd.gate import Gated, GatePolicy, trace_of
from posttrain.systems.actlcd.labels import FIELDS, Transitions, concatenate, labels, sequence

KIND = "gate"  # of the run


def gate_choices(one: pt.Rollout) -> list[Gated]:
    """What the gate saw and chose, turn by turn."""
    return [trace_of(turn.reply) for turn in one.turns]


def sample_transitions(
    policy: GatePolicy,
    tasks: Sequence[pt.Task],
    env: pt.Env,
    truth: Callable[[pt.Rollout], Tensor],
    *,
    samples: int,
    seed: int,
    terminal: bool = True,
) -> Transitions:
    """Play every task `samples` times, and pay each choice by its label; `truth` gives the right tokens, [N]."""
    parts = []
    for group in pt.rollout(env, tasks, {"policy": policy}, samples, seed):
        for one in group:
            if one.decisions:
                parts.append(transitions(one, truth(one), terminal=terminal))
    return concatenate(parts)


def transitions(one: pt.Rollout, truth: Tensor, *, terminal: bool = True, score: float | None = None) -> Transitions:
    """The decisions of one rollout, over all of its turns, in order."""
    traces = gate_choices(one)
    features, taken, plain, other = (
        torch.cat([getattr(trace, name) for trace in traces]) for name in ("features", "contrast", "plain", "other")
    )
    return sequence(features, taken, labels(plain, other, truth), terminal=terminal, score=score)


def rate(rollouts: Sequence[pt.Rollout]) -> float:
    """The share of tokens at which the gate contrasted."""
    taken = [trace.contrast for one in rollouts for trace in gate_choices(one)]
    return torch.cat([torch.zeros(0), *taken]).float().mean().item() if any(map(len, taken)) else 0.0


def take_step(
    gate: Bcq,
    optimizer: Optimizer,
    data: Transitions,
    index: Tensor,
    step: int,
    steps: int,
    *,
    refresh: int = REFRESH,
    max_norm: float = 1.0,
) -> pt.Metrics:
    """One optimizer step, of cloning or of Q-learning, whichever is due."""
    phase = phase_of(step, steps, gate.cloned)
    if phase == "value" and (step - round(CLONING * steps)) % refresh == 0:
        gate.refresh()
    optimizer.zero_grad()
    loss, metrics = gate.loss(phase, data, index)
    loss.backward()
    with torch.no_grad():
        share = gate.act(data.features[index]).float().mean().item()
    return {"loss": loss.item(), **metrics, "contrast_share": share, **pt.descend(optimizer, max_norm)}


def learn_in_memory(
    gate: Bcq, data: Transitions, *, steps: int, per_step: int, lr: float, seed: int, refresh: int = REFRESH
) -> list[pt.Metrics]:
    """As `learn_gate`, without a directory: the metrics of every step."""
    optimizer = torch.optim.AdamW([p for p in gate.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)
    source = pt.ShuffledSource(range(len(data)), seed)
    index = (torch.tensor(source.take(per_step)) for _ in range(steps))
    return [take_step(gate, optimizer, data, some, step, steps, refresh=refresh) for step, some in enumerate(index)]


def gate_session(
    policy: GatePolicy, transitions: int, run: pt.Run, recipe: pt.Recipe | None = None, held_out: HeldOut = ()
) -> pt.Session:
    """The session of a run that learns from so many transitions; raises `DryRun` on a dry run."""
    return pt.Session(run, policy, range(transitions), recipe, held_out=held_out, kind=KIND)


def learn_gate(
    policy: GatePolicy,
    gate: Bcq,
    data: Transitions,
    run: pt.Run,
    *,
    refresh: int = REFRESH,
    recipe: pt.Recipe | None = None,
    held_out: HeldOut = (),
) -> pt.Session:
    """Learn the policy's gate in a run directory; `run.tasks` transitions a step, `recipe` plays what is held out."""
    device = policy.speaker.device
    data = Transitions(*(getattr(data, name).to(device) for name in FIELDS))
    with gate_session(policy, len(data), run, recipe, held_out) as session:
        for step in session:
            index = torch.tensor(session.source.take(run.tasks), device=device)
            metrics = take_step(
                gate, session.optimizer, data, index, step, run.steps, refresh=refresh, max_norm=run.max_norm
            )
            policy.version += 1
            session.log(metrics | {"decisions": float(len(index))})
    return session
