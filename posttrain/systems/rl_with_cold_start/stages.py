"""The three stages on a checkpoint and data of your own: distil, sft, rl."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import posttrain as pt
from posttrain.lab.world.glyphs import is_right
from posttrain.systems.rl_with_cold_start import SYSTEM, recipe
from posttrain.systems.rl_with_cold_start.chains import ANSWERS, CHAINS, collect_chains
from posttrain.systems.rl_with_cold_start.lab import SFT_EPOCHS, STUDENT, base, chains, learn_chains, world_of

LEAST_PIXELS, MOST_PIXELS = 262_144, 1_204_224
Style = Literal["distilled", "reflection", "caption", "critic"]


def laptop(
    cold_start: bool = True, run: pt.Run = pt.Run("runs/rl-with-cold-start", steps=60, tasks=12, lr=2e-4)
) -> pt.Session:
    """Arithmetic on drawn digits: a cold start from a larger tiny teacher's chains, then GRPO.

    cold_start  learn the teacher's chains first, and not by GRPO alone
    """
    world = world_of(run.seed)
    policy = base(world, run.seed, STUDENT)
    if cold_start and not run.dry_run:
        learn_chains(policy, chains(world), SFT_EPOCHS, run.seed)
    made = recipe(pt.each(is_right), reference=policy.frozen_copy())
    held_out = world.tasks(100, "held out", held_out=True)
    return pt.train(policy, world.tasks(600, "rl"), made, run, held_out=held_out)


def reinforce(
    task: pt.TaskOptions,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    run: pt.Run = pt.Run("runs/rl-with-cold-start", steps=80, tasks=512, weight_decay=0.01),
    cold_start: bool = True,
    held_out: tuple[str, ...] = (),
) -> pt.Session:
    """GRPO on right or wrong, from the checkpoint that stage sft has written.

    Published: `temperature=0.7` and `max_new=2048`.

    cold_start  refuse a checkpoint that no cold start has written
    held_out    data of tasks that are only evaluated: FILE, or NAME=FILE
    """
    task = replace(task, system=task.system or SYSTEM)
    if cold_start:
        check_cold_start(model.model)
    policy = (model.with_pixel_limits(LEAST_PIXELS, MOST_PIXELS) if task.image else model).policy()
    made = replace(recipe(task.reward(), reference=policy.frozen_copy()), updates=4)
    return scale.train(policy, task.tasks(), made, run, held_out=task.tests(held_out))


def check_cold_start(model: str) -> None:
    """Raises ValueError for a checkpoint that no cold start has written: RL on it is the paper's RL-only arm."""
    about = Path(model).expanduser().parent / "run.json"
    kind = json.loads(about.read_text()).get("kind") if about.is_file() else None
    if kind != "sft":
        raise ValueError(
            f"`model={model}`: this is no checkpoint of stage sft, so there was no cold start; give one (RUN/model), "
            "or `cold_start=False` for reinforcement alone"
        )


# ---- the cold start


def distil(
    task: pt.TaskOptions,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    output: pt.Output = pt.Output("runs/chains"),
    teacher: str | None = None,
    style: Style = "distilled",
    candidates: int = 4,
) -> Path:
    """Ask a teacher, and write its right chains to OUT/chains.jsonl.

    Published: `temperature=0.7` and `max_new=2048`.

    teacher     who is asked in the model's place: a chat server (http://...) that takes pictures, a Hub id or a folder
    style       the teacher's own chain, wrong then right, a caption first, or draft and critique
    candidates  answers that the teacher may give to a problem
    """
    pt.at_least(1, candidates=candidates)
    task = replace(task, system=task.system or SYSTEM)
    tasks, reward, folder = task.tasks(), task.reward(), Path(output.out)
    model = model.with_pixel_limits(None, MOST_PIXELS) if task.image else model
    with scale.asking(teacher, model, None, folder, tasks) as player:
        settings = {**output.settings, "seed": output.seed}
        pt.prepare_folder(
            folder, "chains", (CHAINS, ANSWERS), settings, resume=output.resume, overwrite=output.overwrite
        )
        seed = pt.mix(output.seed, "teacher")
        kept = collect_chains(player, tasks, reward, style, candidates, seed, folder, task.system, output.quiet)
    if not kept:
        raise ValueError("not one chain of the teacher was right, so there is nothing to learn")
    print(f"{folder / CHAINS}: {kept} right chains on {len(tasks)} problems")
    return folder


def learn(
    shown: pt.DemonstrationOptions,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    run: pt.Run = pt.Run("runs/cold-start", steps=80, tasks=64, weight_decay=0.01),
    tower: bool = False,
    held_out: tuple[str, ...] = (),
) -> pt.Session:
    """Learn chains, OUT/chains.jsonl of stage distil or your own: what reinforcement starts from.

    Every stage puts the system's own message before every prompt, if `system` gives no other. Published: 3 epochs, so
    `steps` times `tasks` is three times the number of chains.

    tower     train the vision tower too
    held_out  chains whose loss is only measured: FILE, or NAME=FILE
    """
    scale.refuse_sampler()
    shown = replace(shown, system=shown.system or SYSTEM)
    found, tests = shown.demonstrations(), shown.tests(held_out)
    policy = (model.with_pixel_limits(None, MOST_PIXELS) if shown.image else model).policy()
    if not tower:
        freeze_tower(policy)
    return pt.sft(policy, found, run, held_out=tests)


def freeze_tower(policy: pt.TextPolicy) -> None:
    """Leave the vision tower as it is; what maps its features to tokens is trained (as published)."""
    for name, parameter in policy.model.named_parameters():
        if "visual." in name and "merger" not in name:
            parameter.requires_grad_(False)


STAGES = {"laptop": laptop, "rl": reinforce, "distil": distil, "sft": learn}
