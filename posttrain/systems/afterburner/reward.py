"""The reward of one rewrite: was the code repaired or broken, how much was gained, was the reply in the right form.

correctness   fail to pass 1, pass to pass 0.5, fail to fail -0.5, pass to fail -1
efficiency    tanh((b - c) / b), the relative gain from the original's b to the reply's c, each up to a cap
improvement   correctness + 0.5 efficiency, the latter only where the reply passes
total         0.5 improvement + 0.2 format
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import posttrain as pt
from posttrain.systems.afterburner.iterate import Dialogue, Rewrite, iterate
from posttrain.systems.afterburner.measurement import CAPS, Bench, Metric, Performance

FORMED = re.compile(r"\s*<thinking>(.*?)</thinking>\s*<solution>(.*?)</solution>\s*", re.DOTALL)
TAG = re.compile(r"</?(?:thinking|solution)>")
CORRECTNESS: Mapping[tuple[bool, bool], float] = {
    (False, True): 1.0,
    (True, True): 0.5,
    (False, False): -0.5,
    (True, False): -1.0,
}


@dataclass(frozen=True, slots=True)
class Weights:
    """The parts of the total.

    zone      relative gains smaller than this are noise of the clock and count as 0 (the release has no dead zone)
    repaired  a reply that passes where the original failed also earns the efficiency of being faster than the cap, as
              in the release; every repair earns nearly the same, so this teaches nothing
    """

    improvement: float = 0.5
    efficiency: float = 0.5
    format: float = 0.2
    zone: float = 0.1
    repaired: bool = False


def is_well_formed(text: str) -> bool:
    """Whether the whole reply is one thinking block followed by one solution block."""
    found = FORMED.fullmatch(text)
    return bool(found) and not any(TAG.search(part) for part in found.groups())


def efficiency(before: float, after: float, cap: float, zone: float = 0.0) -> float:
    """The paper's R_e: tanh of the relative gain, within +-0.762; 0 for gains smaller than the dead zone."""
    b, c = min(max(before, 0.0), cap), min(max(after, 0.0), cap)
    gain = min(max((b - c) / (b + 1e-9), -1.0), 1.0)
    return 0.0 if abs(gain) < zone else math.tanh(gain)


def score_of(
    text: str, before: Performance, after: Performance, metric: Metric, weights: Weights = Weights()
) -> pt.Score:
    """The score of one reply, with its parts: correctness, efficiency, format, and whether it passed."""
    correctness = CORRECTNESS[before.passed, after.passed]
    gained = 0.0
    if correctness > 0 and (before.passed or weights.repaired):
        gained = efficiency(before.of(metric), after.of(metric), CAPS[metric], weights.zone)
    right_form = float(is_well_formed(text))
    improvement = correctness + weights.efficiency * gained
    parts = {"correctness": correctness, "efficiency": gained, "format": right_form, "passed": float(after.passed)}
    return pt.Score(weights.improvement * improvement + weights.format * right_form, parts)


def rewriting_reward(bench: Bench, dialogue: Dialogue, weights: Weights = Weights()) -> pt.Reward:
    """The reward of a group's last replies, which are measured in one batch with the original."""

    def reward(group: pt.Group) -> list[pt.Score | pt.Invalid]:
        rewrite: Rewrite = group[0].task.truth
        codes = [dialogue.code(rollout.text) for rollout in group]
        before, *after = bench([(rewrite.exercise, code) for code in (rewrite.original, *codes)])
        return [
            before
            if isinstance(before, pt.Invalid)
            else one
            if isinstance(one, pt.Invalid)
            else score_of(rollout.text, before, one, rewrite.metric, weights)
            for rollout, one in zip(group, after, strict=True)
        ]

    return reward


def recipe(bench: Bench, dialogue: Dialogue, weights: Weights = Weights(), samples: int = 8) -> pt.Recipe:
    """GRPO as published: one round from the original, no KL, no entropy term. Held-out tasks are graded by PASS@1."""
    return pt.Recipe(
        rewriting_reward(bench, dialogue, weights),
        env=iterate(1, bench, dialogue),
        advantage=pt.normalised,
        loss=pt.clipped(),
        reduce=pt.token_mean,
        samples=samples,
        evaluation=pass_reward(bench, dialogue),
    )


def pass_reward(bench: Bench, dialogue: Dialogue) -> pt.Reward:
    """PASS@1: 1 for a last reply whose code passes."""
    plain = rewriting_reward(bench, dialogue)

    def reward(group: pt.Group) -> list[pt.Score | pt.Invalid]:
        return [one if isinstance(one, pt.Invalid) else pt.Score(one.parts["passed"]) for one in plain(group)]

    return reward
