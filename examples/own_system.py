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

import posttrain as pt
from posttrain.lab.world.modes import Modes, distinct_right, is_right
from posttrain.lab.world.words import base

# ---- the idea


def hard_first(plain: pt.Advantage = pt.normalised, power: float = 1.0) -> pt.Advantage:
    """`plain` advantages times (share of the group's samples that failed) ** `power`; 0 is `plain` itself.

    Raises ValueError for a negative power.
    """
    pt.at_least(0, power=power)

    def weighted(group: pt.Group, scores: list[pt.Score]) -> list[Tensor]:
        failed = statistics.fmean(score.value < pt.measure.RIGHT for score in scores)
        return [failed**power * credit for credit in plain(group, scores)]

    return weighted


def recipe(reward: pt.Reward, power: float = 1.0, samples: int = 8) -> pt.Recipe:
    """GRPO without a divergence, its advantages weighted by difficulty."""
    return pt.Recipe(
        reward, advantage=hard_first(power=power), loss=pt.clipped(), reduce=pt.sequence_mean, samples=samples
    )


PARTS: Mapping[str, pt.Part] = {
    "hard_first": lambda plain, tiny: replace(plain, advantage=hard_first(plain.advantage)),
}

# ---- at two scales


def laptop(power: float = 1.0, run: pt.Run = pt.Run("runs/hard-first", steps=100, tasks=32, lr=1e-3)) -> pt.Session:
    """Solution modes: a tiny model with a habit that is wrong for half of the questions.

    power  of the share that failed; 0 is plain GRPO
    """
    world = Modes(run.seed)
    made = recipe(pt.each(is_right), power)
    return pt.train(base(world, run.seed), world.training_tasks(), made, run, held_out=world.held_out_tasks())


def learn(
    task: pt.TaskOptions,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    run: pt.Run = pt.Run("runs/hard-first", steps=200, tasks=64, lr=1e-6),
    power: float = 1.0,
    samples: int = 8,
    held_out: tuple[str, ...] = (),
) -> pt.Session:
    """Your checkpoint on your data, on every engine.

    power     of the share that failed; 0 is plain GRPO
    samples   samples per task
    held_out  data of tasks that are only evaluated: FILE, or NAME=FILE
    """
    made = recipe(task.reward(), power, samples)
    return scale.train(model.policy(), task.tasks(), made, run, held_out=task.tests(held_out))


STAGES = {"laptop": laptop, "train": learn}
SMOKE = pt.Smoke("""
    laptop
    laptop --power 0
    train --data {questions} --max-new 6 --samples 2
""")

# ---- claims


def measures(lab: pt.Lab) -> dict[str, float]:
    hard = lab.evaluate(lab.world.hard_tasks(), pt.each(is_right), samples=16)
    return {
        "accuracy": lab.evaluate(lab.world.all_tasks(), pt.each(is_right), samples=16).reward,
        "hard accuracy": hard.reward,
        "hard pass@16": pt.measure.mean_pass_at_k(hard.values, 16),
        "distinct right": statistics.fmean(map(distinct_right, hard.groups)),
    }


def arm(power: float) -> pt.Arm:
    return pt.trial(Modes, lambda lab: recipe(pt.each(is_right), power), measures, steps=100, per_step=32, lr=1e-3)


ARMS = {"base": pt.trial(Modes, None, measures), "grpo": arm(0.0), "hard first": arm(1.0)}
CLAIMS = pt.claims("""
    training teaches the hard questions
        ours: a control
        hard accuracy: grpo > base
    hard first solves more hard questions
        paper: the idea of this example
        hard accuracy: hard first > grpo
    hard first costs no accuracy
        ours: over all questions, within 0.02
        accuracy: hard first > grpo - 0.02
""")
