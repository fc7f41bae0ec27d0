"""Rewards grade a finished group. They talk to nobody: what must be asked is asked in the episode."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from posttrain.chat import readable_content
from posttrain.core import Failure, Group, Invalid, Reward, Rollout, Score
from posttrain.deadline import CallLimit, DeadlinePassed, deadline

GRADING = CallLimit(math.inf, "the reward")  # a judge may take its time: what is slow is named, once


def each(grade: Callable[[Rollout], Any]) -> Reward:
    """Lift a grade of one rollout (a number, a `Score`, or `Invalid`) to a reward of a group."""

    def reward(group: Group) -> list[Score | Invalid]:
        return [as_score(grade(rollout)) for rollout in group]

    return reward


def as_score(value: Any) -> Score | Invalid:
    """A number as a score. Raises TypeError for anything else, ValueError for NaN and infinities."""
    if isinstance(value, Invalid):
        return value
    if not isinstance(value, Score) and not hasattr(value, "__float__"):
        raise TypeError(f"a reward must be a number, a Score or Invalid(reason), not {value!r}")
    score = value if isinstance(value, Score) else Score(float(value))
    if not math.isfinite(score.value):
        raise ValueError(
            f"a reward of {score.value}: return a finite number, or Invalid(reason) for what cannot be graded"
        )
    finer = [*score.turns, *([] if score.decisions is None else torch.as_tensor(score.decisions).tolist())]
    if not all(map(math.isfinite, finer)):
        raise ValueError("a reward of a turn or decision is not finite")
    return score


def group_scores(reward: Reward, group: Group) -> list[Score | Invalid]:
    """The group's scores, checked: one per rollout, finite. What the reward raises is raised, with the sample shown.

    It does not see rollouts that `Failure`: they are invalid. One that hangs is named.
    """
    played = [one for one in group if not isinstance(one.facts, Failure)]
    if len(played) < len(group):
        left = iter(group_scores(reward, played) if played else [])
        return [Invalid(one.facts.reason) if isinstance(one.facts, Failure) else next(left) for one in group]
    GRADING.what = f"the reward of task {group[0].task.key!r}" if group else "the reward"
    try:
        with deadline(GRADING):
            scores = list(reward(group))
        if len(scores) != len(group):
            raise ValueError(f"the reward returned {len(scores)} scores for a group of {len(group)} rollouts")
        return [as_score(score) for score in scores]
    except (KeyboardInterrupt, DeadlinePassed):
        raise
    except BaseException as raised:
        error = raised
        if not isinstance(raised, Exception):  # sys.exit() would end the run as if it were done
            error = RuntimeError(f"the reward raised {raised!r}")
        sample = group[0]
        prompt = readable_content(sample.task.prompt[-1]["content"]) if sample.task.prompt else ""
        error.add_note(
            f"raised by the reward on task {sample.task.key!r}, whose first sample is\n"
            f"  prompt  {short_repr(prompt)}\n"
            f"  truth   {short_repr(sample.task.truth)}\n"
            f"  reply   {short_repr(sample.text)}"
        )
        if error is raised:
            raise
        raise error from raised


def short_repr(value: Any, width: int = 200) -> str:
    text = repr(value)
    return text if len(text) <= width else text[:width] + " ..."


def combine_scores(parts: Sequence[Sequence[Score | Invalid]], join: Callable[[Sequence[Score]], Score]):
    """Scores of several rewards, rollout by rollout; what one of them could not grade stays invalid."""
    out: list[Score | Invalid] = []
    for scores in zip(*parts, strict=True):
        bad = next((score for score in scores if isinstance(score, Invalid)), None)
        out.append(bad or join([score for score in scores if isinstance(score, Score)]))
    return out


def waiting_like(reward: Reward, *parts: Reward) -> Reward:
    """The reward, which waits for somebody if one of its parts does: its groups are graded side by side, in threads."""
    reward.waits = any(getattr(part, "waits", False) for part in parts)  # type: ignore[attr-defined]
    return reward


def weighted(**parts: tuple[float, Reward]) -> Reward:
    """`weighted(right=(1.0, math), short=(0.1, brief))`: a weighted sum; the parts stay visible in the score."""

    def join(scores: Sequence[Score]) -> Score:
        values = {name: score.value for name, score in zip(parts, scores, strict=True)}
        inner = {f"{name}.{k}": v for name, s in zip(parts, scores, strict=True) for k, v in s.parts.items()}
        return Score(sum(weight * values[name] for name, (weight, _) in parts.items()), inner | values)

    def weighted_reward(group: Group) -> list[Score | Invalid]:
        return combine_scores([group_scores(part, group) for _, part in parts.values()], join)

    return waiting_like(weighted_reward, *(part for _, part in parts.values()))


def reshaped(reward: Reward, shape: Callable[[list[float]], list[float]]) -> Reward:
    """Replace the values of a group's valid members, [G] -> [G], keeping the raw value as a part."""

    def reshaped_reward(group: Group) -> list[Score | Invalid]:
        scores = group_scores(reward, group)
        valid = [score for score in scores if isinstance(score, Score)]
        values = iter(shape([score.value for score in valid]))
        return [
            replace(score, value=next(values), parts={**score.parts, "raw": score.value})
            if isinstance(score, Score)
            else score
            for score in scores
        ]

    return waiting_like(reshaped_reward, reward)


def gated(gate: Reward, reward: Reward, least: float = 0.5) -> Reward:
    """The reward where the gate scores at least `least`, zero elsewhere; the gate's value is a part."""

    def join(scores: Sequence[Score]) -> Score:
        passed, score = scores
        open_ = passed.value >= least
        return replace(score, value=score.value if open_ else 0.0, parts={**score.parts, "gate": passed.value})

    def gated_reward(group: Group) -> list[Score | Invalid]:
        return combine_scores([group_scores(gate, group), group_scores(reward, group)], join)

    return waiting_like(gated_reward, gate, reward)


def first(*rewards: Reward) -> Reward:
    """The first reward that can grade a rollout; `Invalid` hands it on to the next."""

    def first_reward(group: Group) -> list[Score | Invalid]:
        scores = group_scores(rewards[0], group)
        for reward in rewards[1:]:
            open_ = [i for i, score in enumerate(scores) if isinstance(score, Invalid)]
            if not open_:
                break
            for i, score in zip(open_, group_scores(reward, [group[i] for i in open_]), strict=True):
                scores[i] = score
        return scores

    return waiting_like(first_reward, *rewards)


class cached:  # used as a function
    """As `each`, remembering the score of a task's reply. For grades that depend on nothing but task and text."""

    def __init__(self, grade: Callable[[Rollout], Any], size: int = 100_000):
        self.grade, self.size = grade, size
        self.memory: dict[tuple[str, str], Score | Invalid] = {}

    def __call__(self, group: Group) -> list[Score | Invalid]:
        return [self.score(rollout) for rollout in group]

    def score(self, rollout: Rollout) -> Score | Invalid:
        key = (rollout.task.key, rollout.text)
        if key not in self.memory:
            if len(self.memory) >= self.size:
                self.memory.pop(next(iter(self.memory)))
            self.memory[key] = as_score(self.grade(rollout))
        return self.memory[key]


def overlong(reward: Reward, limit: int, buffer: int, penalty: float = 1.0) -> Reward:
    """Soft overlong punishment (DAPO, arXiv:2503.14476, Eq. 13), lengths in decisions.

    Nothing up to `limit - buffer`, then falling in a line to `-penalty` at `limit`.
    """

    def shortened_reward(group: Group) -> list[Score | Invalid]:
        out: list[Score | Invalid] = []
        for rollout, score in zip(group, group_scores(reward, group), strict=True):
            over = min(max(rollout.decisions - (limit - buffer), 0) / buffer, 1.0) * penalty
            if isinstance(score, Score):
                score = replace(score, value=score.value - over, parts={**score.parts, "overlong": -over})
            out.append(score)
        return out

    return waiting_like(shortened_reward, reward)


def group_std(scores: Sequence[Score | Invalid]) -> float:
    """The standard deviation of a group's valid values; zero for a group that teaches nothing."""
    values = [score.value for score in scores if isinstance(score, Score)]
    return statistics.pstdev(values) if len(values) > 1 else 0.0


def informative(scores: Sequence[Score | Invalid]) -> bool:
    """The group's members differ: DAPO's condition for a group to count (arXiv:2503.14476, Eq. 11).

    It is about being right, so a penalty of length (`overlong`) does not make a group differ.
    """
    plain = [replace(s, value=s.value - s.parts.get("overlong", 0.0)) for s in scores if isinstance(s, Score)]
    return group_std(plain) > 0
