"""The reward module: what one action earns, in [0, 1].

0                                                    an action that is none, or an execution that raises an error
0.5                                                  a valid action that edits nothing; limits of time and memory
sigma(alpha (m_{t+1} - m_t) / (m_best - m_init))     an edit whose script runs

An edit that changes nothing earns exactly 0.5. The fraction has no unit and no direction: where lower is better, both
differences change their sign. alpha = 5 is ours.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import posttrain as pt
from posttrain.systems.ml_agent.problem import Problem
from posttrain.systems.ml_agent.workspace import State

ALPHA = 5.0
NEUTRAL = 0.5
Kind = Literal["invalid", "error", "limit", "neutral", "edit"]


@dataclass(frozen=True, slots=True)
class Effect:
    """What one action came to. `before` and `after` are metrics; `executed` counts executions that it asked for."""

    kind: Kind
    before: float
    after: float
    executed: int = 0


@dataclass(frozen=True, slots=True)
class Course:
    """The facts of an episode. `states` are those before each action, and the last, where they were asked for."""

    problem: str
    effects: tuple[Effect, ...]
    metric: float  # the last that the script had
    states: tuple[State, ...] = ()


def span(problem: Problem) -> float:
    """m_best - m_init; the problem's scale, in its direction, where there is nothing between them."""
    return problem.best - problem.start or problem.sign * problem.scale


def step_reward(effect: Effect, problem: Problem, alpha: float = ALPHA) -> float:
    if effect.kind in ("invalid", "error"):
        return 0.0
    if effect.kind != "edit":
        return NEUTRAL
    return sigmoid(alpha * (effect.after - effect.before) / span(problem))


def sigmoid(x: float) -> float:
    return 0.5 * (1 + math.tanh(x / 2))  # which overflows nowhere


def reward(problems: Mapping[str, Problem], alpha: float = ALPHA) -> pt.Reward:
    """The sum over actions, each of which is paid at its own turn. Parts are shares of the actions, and the gain."""

    def grade(rollout: pt.Rollout) -> pt.Score:
        course: Course = rollout.facts
        problem, effects = problems[course.problem], course.effects
        turns = tuple(step_reward(effect, problem, alpha) for effect in effects)
        kinds = {kind: statistics.fmean(one.kind == kind for one in effects) for kind in ("edit", "invalid", "error")}
        executed = float(sum(one.executed for one in effects))
        parts = {**kinds, "executed": executed, "gain": problem.gain(course.metric)}
        return pt.Score(sum(turns), parts, turns)

    return pt.each(grade)


def gain(problems: Mapping[str, Problem]) -> pt.Reward:
    """For evaluation: the relative gain by the last metric that an episode's script had; no oscillation raises it."""
    return pt.each(lambda rollout: problems[rollout.facts.problem].gain(rollout.facts.metric))
