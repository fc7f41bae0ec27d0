"""Checks for parts of your own: each raises AssertionError that says what is wrong. Our own parts pass them too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from posttrain.core import Advantage, Batch, Density, Env, Group, Invalid, Loss, Policy, Reply, Reward, Task
from posttrain.episode import rollout, single_turn
from posttrain.loss import WholeStep, whole_step_parts
from posttrain.reward import group_scores
from posttrain.row import flatten, rows_of


def check_policy(policy: Policy, tasks: Sequence[Task], env: Env = single_turn, tolerance: float = 1e-4) -> None:
    """`density` of fresh samples equals what the sampler reported, in order, one row at a time or all together, and
    its gradient reaches the parameters."""
    groups = rollout(env, tasks, {"policy": policy}, samples=2, seed=1)
    rows = [row for group in groups for one in group for row in rows_of(policy, one, one.turns)]
    assert rows, "no decision was sampled"
    assert all(policy.size([row]) > 0 for row in rows), "size(rows) must be positive"
    sampled = flatten(rows).logp_sampler
    density = policy.density(rows)
    assert density.logp.shape == sampled.shape, (
        f"{len(sampled)} decisions were sampled, density has {density.logp.shape}"
    )
    assert density.entropy.shape == sampled.shape, "entropy must have one number per decision"
    gap = (density.logp.detach().cpu() - sampled).abs().max().item()
    assert gap <= tolerance, (
        f"density differs from the sampled log-probabilities by up to {gap:.2g} nats (allowed {tolerance:g}): look at "
        "the order of decisions, the temperature, and modes such as dropout"
    )
    with torch.no_grad():
        single = torch.cat([policy.density([row]).logp for row in rows])
    gap = (single - density.logp.detach()).abs().max().item()
    assert gap <= tolerance, f"a row's density depends on the rows beside it, by up to {gap:.2g} nats"
    density.logp.sum().backward()
    touched = [p for p in policy.parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    for p in policy.parameters():
        p.grad = None
    assert touched, "no parameter received a gradient through density"


def check_env(env: Env, task: Task, replies: Sequence[Any], most: int = 1000) -> Any:
    """Drive an environment by hand with scripted reply contents, used over and over; returns its facts."""
    episode = env(task)
    assert hasattr(episode, "send"), (
        f"the environment returned {type(episode).__name__}, not a generator: it must use `yield from ask(...)`"
    )
    said = 0
    try:
        asks = next(episode)
        for _ in range(most):
            assert isinstance(asks, list), (
                f"it yielded {type(asks).__name__}, not a list of asks: `yield from ask(...)`"
            )
            answers = [Reply(replies[(said + i) % len(replies)], torch.zeros(0), None) for i in range(len(asks))]
            said += len(asks)
            for ask in asks:
                assert ask.messages, "an ask has no messages"
                assert all("role" in m and ("content" in m or m.get("tool_calls")) for m in ask.messages), (
                    "a message lacks its role or content"
                )
            asks = episode.send(answers)
    except StopIteration as stop:
        return stop.value
    raise AssertionError(f"the episode did not end after {most} rounds: bound its turns")


def check_reward(reward: Reward, group: Group, *, advantage: Advantage | None = None) -> None:
    """One finite score per rollout, the same when asked again and in another order of the same samples' scores; with
    `advantage`, refined enough for it."""
    scores = group_scores(reward, group)
    again = group_scores(reward, group)
    for first, second in zip(scores, again, strict=True):
        same = first == second if isinstance(first, Invalid) else getattr(second, "value", None) == first.value
        assert same, "the reward scored the same rollout differently when asked again: it must be a pure function"
    if advantage is None:
        return
    valid = [(r, s) for r, s in zip(group, scores, strict=True) if not isinstance(s, Invalid)]
    credit = advantage([r for r, _ in valid], [s for _, s in valid])
    assert len(credit) == len(valid), f"the advantage returned {len(credit)} tensors for {len(valid)} rollouts"
    for (one, _), values in zip(valid, credit, strict=True):
        assert len(values) == one.decisions, f"{len(values)} advantages for {one.decisions} decisions"
        assert bool(torch.isfinite(values).all()), "an advantage is not finite"


def check_loss(loss: Loss, decisions: int = 24, rows: int = 4, seed: int = 0) -> None:
    """A cost per decision, finite also for extreme ratios, with a gradient, and the same whatever the micro-batch."""
    generator = torch.Generator().manual_seed(seed)
    logp = -torch.rand(decisions, generator=generator) * 3
    row = torch.arange(rows).repeat_interleave(decisions // rows)
    old = logp + 0.1 * torch.randn(decisions, generator=generator)
    advantage = torch.randn(decisions, generator=generator)
    entropy = torch.rand(decisions, generator=generator)
    whole = with_marks(loss, Batch(old, old, advantage, row, old - 0.05), Density(logp, entropy))
    cost, gradient = cost_of(loss, whole, logp, entropy)
    assert cost.shape == (decisions,), f"a loss returns a cost per decision, [{decisions}], not {list(cost.shape)}"
    assert bool(torch.isfinite(cost).all()), "a cost is not finite"
    assert gradient.abs().sum() > 0, "the cost has no gradient through the density"
    half = decisions // 2
    pieces = [
        cost_of(loss, piece(whole, part), logp[part], entropy[part])[0] for part in (slice(0, half), slice(half, None))
    ]
    torch.testing.assert_close(
        torch.cat(pieces), cost, msg="the cost of a decision depends on the micro-batch it is in"
    )
    far = Batch(old - 200, old - 200, advantage, row, old - 200)
    cost, gradient = cost_of(loss, with_marks(loss, far, Density(logp, entropy)), logp, entropy)
    assert bool(torch.isfinite(cost).all() and torch.isfinite(gradient).all()), "a far log-ratio makes it not finite"
    assert all(math.isfinite(v) for v in loss(whole, Density(logp, entropy))[1].values()), "a metric is not finite"


def cost_of(loss: Loss, batch: Batch, logp: torch.Tensor, entropy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    logp, entropy = logp.clone().requires_grad_(), entropy.clone().requires_grad_()
    cost, _ = loss(batch, Density(logp, entropy))
    grads = torch.autograd.grad(cost.sum(), [logp, entropy], allow_unused=True)
    return cost.detach(), torch.stack([g if g is not None else torch.zeros_like(logp) for g in grads])


def with_marks(loss: Loss, batch: Batch, density: Density) -> Batch:
    parts: list[WholeStep] = whole_step_parts(loss)
    marks = {part: part.mark(batch, density) for part in parts}
    return Batch(batch.logp_sampler, batch.logp_old, batch.advantage, batch.row, batch.logp_ref, marks)


def piece(batch: Batch, part: slice) -> Batch:
    row = batch.row[part]
    return Batch(
        batch.logp_sampler[part],
        batch.logp_old[part],
        batch.advantage[part],
        row - row[0],
        None if batch.logp_ref is None else batch.logp_ref[part],
        {key: values[part] for key, values in batch.marks.items()},
    )
