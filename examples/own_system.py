"""Hard questions first: a system of your own in one file, with stages, parts and claims (docs/your-paper.md).

The idea: a group's advantages are scaled by the share of its samples that failed, so that questions which are seldom
solved weigh more than those which are nearly always solved.

    posttrain run examples/own_system.py
    posttrain run examples/own_system.py --scale full --model smollm2 --data questions.jsonl --held-out test.jsonl
    posttrain claims examples/own_system.py --seeds 5
    posttrain train --data questions.jsonl --with examples/own_system.py:hard_first --out runs/hard
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from posttrain.advantage import normalised
from posttrain.cli.options import ModelOptions, ScaleOptions, TaskOptions, at_least
from posttrain.core import Advantage, Group, Reward, Score
from posttrain.lab.claim import claims
from posttrain.lab.trial import Arm, Lab, Smoke, trial
from posttrain.lab.world.modes import Modes, distinct_right, is_right
from posttrain.lab.world.words import base
from posttrain.loss import clipped, sequence_mean
from posttrain.measure import RIGHT, mean_pass_at_k
from posttrain.recipe import Part, Recipe
from posttrain.reward import each
from posttrain.run.session import Session
from posttrain.run.settings import Run
from posttrain.step import train

# ---- the idea


def hard_first(plain: Advantage = normalised, power: float = 1.0) -> Advantage:
    """`plain` advantages times (share of the group's samples that failed) ** `power`; 0 is `plain` itself.

    Raises ValueError for a negative power.
    """
    at_least(0, power=power)

    def weighted(group: Group, scores: list[Score]) -> list[Tensor]:
        failed = statistics.fmean(score.value < RIGHT for score in scores)
        return [failed**power * credit for credit in plain(group, scores)]

    return weighted


def recipe(reward: Reward, power: float = 1.0, samples: int = 8) -> Recipe:
    """GRPO without a divergence, its advantages weighted by difficulty."""
    return Recipe(reward, advantage=hard_first(power=power), loss=clipped(), reduce=sequence_mean, samples=samples)


PARTS: Mapping[str, Part] = {
    "hard_first": lambda plain, tiny: replace(plain, advantage=hard_first(plain.advantage)),
}

# ---- at two scales


def laptop(power: float = 1.0, run: Run = Run("runs/hard-first", steps=100, tasks=32, lr=1e-3)) -> Session:
    """Solution modes: a tiny model with a habit that is wrong for half of the questions.

    power  of the share that failed; 0 is plain GRPO
    """
    world = Modes(run.seed)
    made = recipe(each(is_right), power)
    return train(base(world, run.seed), world.training_tasks(), made, run, held_out=world.held_out_tasks())


def learn(
    task: TaskOptions,
    model: ModelOptions,
    scale: ScaleOptions,
    run: Run = Run("runs/hard-first", steps=200, tasks=64, lr=1e-6),
    power: float = 1.0,
    samples: int = 8,
    held_out: tuple[str, ...] = (),
) -> Session:
    """Your checkpoint on your data, on every engine.

    power     of the share that failed; 0 is plain GRPO
    samples   samples per task
    held_out  data of tasks that are only evaluated: FILE, or NAME=FILE
    """
    made = recipe(task.reward(), power, samples)
    return scale.train(model.policy(), task.tasks(), made, run, held_out=task.tests(held_out))


STAGES = {"laptop": laptop, "train": learn}
SMOKE = Smoke({"laptop": ["", "--power 0"], "train": ["--data {questions} --max-new 6 --samples 2"]})

# ---- claims


def measures(lab: Lab) -> dict[str, float]:
    hard = lab.evaluate(lab.world.hard_tasks(), each(is_right), samples=16)
    return {
        "accuracy": lab.evaluate(lab.world.all_tasks(), each(is_right), samples=16).reward,
        "hard accuracy": hard.reward,
        "hard pass@16": mean_pass_at_k(hard.values, 16),
        "distinct right": statistics.fmean(map(distinct_right, hard.groups)),
    }


def arm(power: float) -> Arm:
    return trial(Modes, lambda lab: recipe(each(is_right), power), measures, steps=100, per_step=32, lr=1e-3)


ARMS = {"base": trial(Modes, None, measures), "grpo": arm(0.0), "hard first": arm(1.0)}
CLAIMS = claims("""
    training teaches the hard questions
        ours: a control
        hard accuracy: grpo > base
    hard first solves more hard questions
        paper: the idea of this example
        hard accuracy: hard first > grpo
    hard first costs no accuracy
        paper: over all questions
        accuracy: hard first > grpo - 0.02
""")
