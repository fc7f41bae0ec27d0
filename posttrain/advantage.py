"""Advantages: from a scored group to one number per decision.

Credit always leaves here per decision, even when one scalar fills a whole rollout, so that
token-level methods are not a special case further down. A group with fewer than two valid
members has no baseline, hence no credit.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import torch
from torch import Tensor

from posttrain.core import Advantage, Group, Policy, Rollout, Score
from posttrain.row import group_logps

EPSILON = 1e-6  # added to a standard deviation of rewards, in their unit


def fill_turns(rollout: Rollout, per_turn: Sequence[float]) -> Tensor:
    """[N] with one value per turn spread over that turn's decisions."""
    values = [torch.full_like(turn.reply.logp, a) for turn, a in zip(rollout.turns, per_turn, strict=True)]
    return torch.cat(values) if values else torch.zeros(0)


def spread_over_decisions(group: Group, values: Sequence[float]) -> list[Tensor]:
    """One value per rollout over all of its decisions."""
    return [fill_turns(rollout, [a] * len(rollout.turns)) for rollout, a in zip(group, values, strict=True)]


def logp_of(rollout: Rollout) -> Tensor:
    """[N] log-probabilities of a rollout's decisions, as sampled."""
    return torch.cat([torch.zeros(0), *[turn.reply.logp for turn in rollout.turns]])


def zscores(values: Sequence[float]) -> list[float]:
    """Distance from the mean in standard deviations (n - 1 in the denominator, as the released code of GRPO has it)."""
    if len(values) < 2:
        return [0.0] * len(values)
    mean, std = statistics.fmean(values), statistics.stdev(values)
    return [(value - mean) / (std + EPSILON) for value in values]


def centred(group: Group, scores: list[Score]) -> list[Tensor]:
    """Reward minus the group's mean (Dr. GRPO, arXiv:2503.20783, Sec. 3.2)."""
    mean = statistics.fmean(score.value for score in scores)
    return spread_over_decisions(group, [score.value - mean for score in scores])


def normalised(group: Group, scores: list[Score]) -> list[Tensor]:
    """Reward minus the group's mean, in the group's standard deviations (GRPO, arXiv:2402.03300, Sec. 4.1.2)."""
    return spread_over_decisions(group, zscores([score.value for score in scores]))


def leave_one_out(group: Group, scores: list[Score]) -> list[Tensor]:
    """Reward minus the mean of the *other* members (RLOO, arXiv:2402.14740, Sec. 3.2)."""
    values = [score.value for score in scores]
    if len(values) < 2:
        return spread_over_decisions(group, [0.0] * len(values))
    return spread_over_decisions(group, [value - (sum(values) - value) / (len(values) - 1) for value in values])


def raw(group: Group, scores: list[Score]) -> list[Tensor]:
    """The reward itself, without a baseline."""
    return spread_over_decisions(group, [score.value for score in scores])


GROUP_BASELINES: tuple[Advantage, ...] = (centred, normalised, leave_one_out)


def turn_rewards(rollout: Rollout, score: Score) -> tuple[float, ...]:
    """The reward of each turn; a score without any pays all of it at the last turn. Raises ValueError on a miscount."""
    if not score.turns:
        return (*[0.0] * (len(rollout.turns) - 1), score.value) if rollout.turns else ()
    if len(score.turns) != len(rollout.turns):
        raise ValueError(
            f"task {rollout.task.key!r}: the reward scored {len(score.turns)} turns of a rollout of "
            f"{len(rollout.turns)}: `Score(turns=...)` takes one number per turn of the policy"
        )
    return score.turns


def normalised_by_turn(group: Group, scores: list[Score]) -> list[Tensor]:
    """As `normalised`, but turn k of a rollout is compared with turn k of its siblings."""
    credit = [list(turn_rewards(rollout, score)) for rollout, score in zip(group, scores, strict=True)]
    for k in range(max(map(len, credit), default=0)):
        reached = [turns for turns in credit if len(turns) > k]
        for turns, a in zip(reached, zscores([turns[k] for turns in reached]), strict=True):
            turns[k] = a
    return [fill_turns(rollout, turns) for rollout, turns in zip(group, credit, strict=True)]


def decision_rewards(rollout: Rollout, score: Score) -> Tensor:
    """[N] the reward of each decision: as scored, or each turn's at its last decision."""
    if score.decisions is not None:
        if len(score.decisions) != rollout.decisions:
            raise ValueError(
                f"task {rollout.task.key!r}: the reward scored {len(score.decisions)} decisions of a rollout of "
                f"{rollout.decisions}: `Score(decisions=...)` takes one number per sampled decision"
            )
        return torch.as_tensor(score.decisions).float()
    paid = torch.zeros(rollout.decisions)
    last, owed = -1, 0.0
    for turn, value in zip(rollout.turns, turn_rewards(rollout, score), strict=True):
        last, owed = last + len(turn.reply.logp), owed + value
        if last >= 0:  # a turn without decisions leaves its reward to the one before
            paid[last] += owed
            owed = 0.0
    return paid


def discounted_returns(rewards: Tensor, gamma: float) -> Tensor:
    """[N] -> [N] sums of the rewards from each decision on, discounted by `gamma` per decision."""
    out, total = torch.empty_like(rewards), 0.0
    for t in range(len(rewards) - 1, -1, -1):
        total = rewards[t].item() + gamma * total
        out[t] = total
    return out


def by_decision(group: Group, scores: list[Score]) -> list[Tensor]:
    """The reward of each decision as its own credit, without a baseline: for rewards that are Q-values already."""
    return [decision_rewards(rollout, score) for rollout, score in zip(group, scores, strict=True)]


def to_go(gamma: float = 1.0) -> Advantage:
    """Returns-to-go of decision rewards: A_t = sum over k >= t of gamma^(k - t) r_k. No baseline: see `whitened`."""

    def advantage(group: Group, scores: list[Score]) -> list[Tensor]:
        return [discounted_returns(decision_rewards(r, s), gamma) for r, s in zip(group, scores, strict=True)]

    return advantage


def to_go_by_turn(gamma: float = 1.0) -> Advantage:
    """Returns-to-go of turn rewards, centred on the group: turn k against its siblings' turn k."""

    def advantage(group: Group, scores: list[Score]) -> list[Tensor]:
        earned = [
            discounted_returns(torch.tensor(turn_rewards(r, s), dtype=torch.float32), gamma)
            for r, s in zip(group, scores, strict=True)
        ]
        for k in range(max(map(len, earned), default=0)):
            reached = [turns for turns in earned if len(turns) > k]
            mean = statistics.fmean(turns[k].item() for turns in reached)
            for turns in reached:
                turns[k] -= mean
        return [fill_turns(rollout, turns.tolist()) for rollout, turns in zip(group, earned, strict=True)]

    return advantage


def best(count: int = 1, least: float = 0.0) -> Advantage:
    """1 for the `count` best rollouts that score more than `least`, 0 for the others: best-of-n, expert iteration."""

    def advantage(group: Group, scores: list[Score]) -> list[Tensor]:
        ranked = sorted(range(len(scores)), key=lambda i: -scores[i].value)[:count]
        chosen = {i for i in ranked if scores[i].value > least}
        return spread_over_decisions(group, [float(i in chosen) for i in range(len(scores))])

    return advantage


def distilled(teacher: Policy) -> Advantage:
    """On-policy distillation: every decision earns log teacher - log student, the one-sample negative reverse KL.

    `teacher` is a Policy that reads the student's tokens (the same tokenizer); the reward is not looked at.
    """

    def advantage(group: Group, scores: list[Score]) -> list[Tensor]:
        taught = group_logps(teacher, group)
        return [logp - logp_of(rollout) for rollout, logp in zip(group, taught, strict=True)]

    return advantage


def whitened(credit: list[Tensor]) -> list[Tensor]:
    """The credit of the whole step, less its mean, in its standard deviations (REINFORCE++, arXiv:2501.03262)."""
    flat = torch.cat(credit).double()
    if len(flat) < 2:
        return credit
    mean, std = flat.mean(), flat.std()
    return [((values.double() - mean) / (std + EPSILON)).float() for values in credit]
