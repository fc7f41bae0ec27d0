"""RL with Cold Start: chains of thought distilled and filtered, learned first, then reinforced (arXiv:2505.22334).

    distil   a larger teacher answers; chains whose last answer is right are kept (rejection sampling)
    sft      the student learns them
    rl       GRPO on right or wrong, from there

Reflection ("wait, let me check") stands in replies before any reinforcement, and is no sign of a right answer:
`reflection.gap` says so.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from posttrain.cli.options import ModelOptions, RunOptions, TaskOptions
from posttrain.core import Reward
from posttrain.data import Demonstration, read_demonstrations
from posttrain.lab.world.glyphs import right
from posttrain.loss import clipped, token_mean
from posttrain.method import grpo
from posttrain.policy.text import TextPolicy
from posttrain.recipe import Part, Recipe, with_surrogate
from posttrain.reward import each
from posttrain.run.directory import Directory, begun
from posttrain.run.session import Session
from posttrain.seeding import mix
from posttrain.step import train
from posttrain.systems.rl_with_cold_start.chains import ANSWERS, CHAINS, collected
from posttrain.systems.rl_with_cold_start.claims import ARMS, CLAIMS
from posttrain.systems.rl_with_cold_start.experiments import SFT_EPOCHS, base_of, chains, learned, world_of
from posttrain.systems.rl_with_cold_start.stages import (
    aligned,
    check_options,
    check_started,
    cold_started,
    teacher_name,
)

__all__ = ["ARMS", "CLAIMS", "PARTS", "full", "laptop", "recipe"]

SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."  # in both stages
LEAST_PIXELS, MOST_PIXELS = 262_144, 1_204_224


def recipe(reward: Reward, *, kl: float = 0.01, reference: TextPolicy | None = None, samples: int = 10) -> Recipe:
    """GRPO as in EasyR1: clip 0.2/0.3, dual clip 3, token mean, a k3 term of 0.01. No reward for a format."""
    made = grpo(reward, samples=samples, kl=kl, reference=reference, low=0.2, high=0.3, dual=3.0)
    return replace(made, reduce=token_mean)


PARTS: Mapping[str, Part] = {
    "dual_clip": lambda plain, tiny: with_surrogate(plain, clipped(0.2, 0.3, dual=3.0), reduce=token_mean),
}


def laptop(
    cold_start: bool = True,
    run: RunOptions = RunOptions("runs/rl-with-cold-start", steps=60, tasks=12, lr=2e-4),
) -> Session:
    """Arithmetic on drawn digits: a cold start from a larger tiny teacher's chains, then GRPO.

    cold_start  learn the teacher's chains first (--no-cold-start: GRPO alone)
    """
    world = world_of(run.seed)
    policy = base_of(world)
    if cold_start:
        learned(policy, chains(world), SFT_EPOCHS, run.seed)
    made = recipe(each(right), reference=policy.frozen())
    held_out = world.tasks(100, "held out", held_out=True)
    return train(policy, world.tasks(600, "rl"), made, run.run(cold_start=cold_start), held_out=held_out)


def full(
    task: TaskOptions,
    model: ModelOptions,
    run: RunOptions = RunOptions("runs/rl-with-cold-start", steps=80, tasks=512, weight_decay=0.01),
    stage: Literal["distil", "sft", "rl"] = "rl",
    teacher: str | None = None,
    style: Literal["distilled", "reflection", "caption", "critic"] = "distilled",
    candidates: int = 4,
    response: str = "response",
    tower: bool = False,
    cold_start: bool = True,
    held_out: str | None = None,
) -> Session:
    """Your checkpoint, stage by stage: distil (or sft), then rl with --model RUN/model of the one before.

    Published: --temperature 0.7 --max-new 2048; SFT of 3 epochs, --tasks 64. All stages put the same system message.

    stage       distil: ask a teacher, keep its right chains, learn them. sft: learn chains of --data. rl: reinforce
    teacher     distil: a chat server (http://...) that takes pictures, a Hub id or a folder; the model if not given
    style       distil: of the teacher's chains: its own, wrong then right, a caption first, or draft and critique
    candidates  distil: answers that the teacher may give to a problem
    response    sft: column of the chain
    tower       distil, sft: train the vision tower too
    cold_start  rl: refuse a checkpoint that no cold start has written (--no-cold-start: reinforcement alone)
    held_out    rl: data of tasks that are only evaluated
    """
    own = {"teacher": teacher, "style": style, "candidates": candidates, "response": response, "tower": tower}
    usual = {name: option.default for name, option in inspect.signature(full).parameters.items()}
    check_options(stage, {**own, "cold_start": cold_start, "held_out": held_out}, usual)
    task = replace(task, system=task.system or SYSTEM)
    if task.image:
        model = model.within(LEAST_PIXELS if stage == "rl" else None, MOST_PIXELS)
    if stage == "rl" and cold_start:
        check_started(model.model)
    described = {"stage": stage, "style": style, "teacher": teacher_name(teacher), **task.describe(), **vars(model)}
    plan = run.run(**described)
    Directory(Path(run.out)).check(plan)
    policy = model.policy()
    if stage == "rl":
        made = replace(recipe(task.reward(), reference=policy.frozen()), updates=4)
        tests = task.held_out(held_out)
        return train(policy, task.tasks(), made, run.run(cold_start=cold_start, **described), held_out=tests)
    if stage == "sft":
        where = {"image": task.image, "system": task.system, "limit": task.limit, "split": task.split}
        found = read_demonstrations(task.data, task.prompt, response, **where)
    else:
        tasks, reward, folder = task.tasks(), task.reward(), Path(f"{Path(run.out)}-chains")
        policy.check(tasks)
        settings = {**described, "candidates": candidates, "seed": run.seed}
        begun(folder, "chains", "chains of a teacher", (CHAINS, ANSWERS), settings, plan)
        asked = model.player(teacher, "--teacher") if teacher else policy
        seed = mix(run.seed, "teacher")
        path = collected(asked, tasks, reward, style, candidates, seed, folder, task.system, run.quiet)
        found = chains_of(path, task)
    aligned(policy, tower)
    return cold_started(policy, found, run, {**described, "candidates": candidates, "tower": tower})


def chains_of(path: Path, task: TaskOptions) -> list[Demonstration]:
    """The chains that were kept; none, where none was."""
    if not path.stat().st_size:
        return []
    return read_demonstrations(path, image="images" if task.image else None, system=task.system)
