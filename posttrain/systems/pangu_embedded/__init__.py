"""Pangu Embedded: distillation in rounds, a router of rewards, fast and slow thinking in one model (arXiv:2505.22375).

    distillation   what the student half knows, by the teacher's shortest right answers; checkpoints merged
    reinforcement  MARS: each source has its reward and its scale; prompts without a lesson are masked; a curriculum
    fusion         fast and slow modes, switched by hand, or as the model's own fast answers have shown it

Its latency-tolerant scheduler is posttrain's asynchronous mode (`posttrain/scale/`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from posttrain.advantage import normalised
from posttrain.cli.options import ModelOptions, RunOptions, TaskOptions
from posttrain.core import Reward, Sampler, Task
from posttrain.kl import k3, kl_to_reference
from posttrain.lab.world.sources import GRADES, Sources, Thirds, kind_of
from posttrain.lab.world.words import base
from posttrain.loss import clipped, token_mean, total
from posttrain.policy.text import TextPolicy
from posttrain.recipe import Part, Recipe, credited
from posttrain.reward import each
from posttrain.run.session import Session
from posttrain.step import train
from posttrain.stream import Source
from posttrain.systems.pangu_embedded.claims import ARMS, CLAIMS, SHOWN
from posttrain.systems.pangu_embedded.distillation import complexity
from posttrain.systems.pangu_embedded.experiments import ADAPTIVE, PARTLY
from posttrain.systems.pangu_embedded.mars import Router, with_auxiliaries
from posttrain.systems.pangu_embedded.repair import Repaired
from posttrain.systems.pangu_embedded.stages import ByComplexity, distil, fuse, grader, sources

__all__ = ["ARMS", "CLAIMS", "PARTS", "SHOWN", "full", "laptop", "recipe"]


def recipe(reward: Reward, *, kl: float = 0.0, reference: TextPolicy | None = None, samples: int = 8) -> Recipe:
    """GRPO with the zero-advantage mask: rows that teach nothing leave the loss, so that a KL term cannot rule it."""
    loss = total((1.0, clipped()), (kl, kl_to_reference(k3))) if kl else clipped()
    return Recipe(
        reward,
        advantage=normalised,
        loss=loss,
        reduce=token_mean,
        samples=samples,
        keep=credited,
        reference=reference if kl else None,
    )


PARTS: Mapping[str, Part] = {
    "masked": lambda plain, tiny: replace(plain, keep=credited),
    "unrepeated": lambda plain, tiny: replace(
        plain, reward=with_auxiliaries(plain.reward, lambda text: True, format_weight=0.0)
    ),
}


def laptop(
    adaptive: bool = True,
    run: RunOptions = RunOptions("runs/pangu-embedded", steps=40, tasks=48, lr=1e-3),
) -> Session:
    """Three sources of tasks with rewards on three scales.

    adaptive  each source's rewards are brought to its own scale (--no-adaptive: as they are)
    """
    world = Sources(run.seed)
    policy = base(world, run.seed, PARTLY)
    router = Router({kind: each(grade) for kind, grade in GRADES.items()}, kind_of, ADAPTIVE if adaptive else {})
    held_out = [task for tasks in world.tasks(held_out=True).values() for task in tasks]
    plain = Router({kind: each(grade) for kind, grade in GRADES.items()}, kind_of)
    made = replace(recipe(router), evaluation=plain)
    source: Source = Thirds(world.tasks(), run.seed)
    return train(policy, source, made, run.run(adaptive=adaptive), held_out=held_out)


def full(
    task: TaskOptions,
    model: ModelOptions,
    run: RunOptions = RunOptions("runs/pangu-embedded", steps=200, tasks=64),
    stage: Literal["distil", "reinforce", "fuse"] = "reinforce",
    teacher: str | None = None,
    also: str = "",
    kl: float = 0.0,
    samples: int = 8,
    curriculum: bool = False,
    iterations: int = 3,
    merge: float = 0.7,
    repair: bool = False,
) -> Session:
    """Your checkpoint, stage by stage: distil, then reinforce, then fuse, each with --model of the one before.

    stage       what to do
    teacher     distil, fuse: a chat server (http://...), a Hub id or a folder; the model itself if not given
    also        reinforce: more sources, as name=file=grade,...; a grade is one of --grade's, or a reward model (folder,
                Hub id or address of posttrain serve --reward-model)
    kl          reinforce: weight of the divergence from the model it starts from
    samples     reinforce: samples of a task
    curriculum  reinforce: draw tasks around medium complexity, measured first
    iterations  distil: how many, each of --steps
    merge       distil: lambda, the share of an iteration's change that is kept; 0 keeps its last checkpoint
    repair      distil, fuse: break loops of the teacher that is a local model
    """
    policy = model.policy()
    described = {"stage": stage, **task.describe(), **vars(model)}
    if stage == "reinforce":
        tasks, router = sources(task, also, grader)
        reference = policy.frozen() if kl else None
        drawn: list[Task] | Source = tasks
        if curriculum:
            drawn = ByComplexity(tasks, complexity(policy, tasks, router, seed=run.seed), run.seed)
        return train(policy, drawn, recipe(router, kl=kl, reference=reference, samples=samples), run.run(**described))
    taught = teacher_of(teacher, model, policy, repair)
    if stage == "distil":
        return distil(policy, task.tasks(), taught, task.reward(), run, described, count=iterations, merge=merge)
    return fuse(policy, task.tasks(), task.reward(), run, described, taught if teacher or repair else None)


def teacher_of(teacher: str | None, model: ModelOptions, policy: TextPolicy, repair: bool) -> Sampler:
    found = model.player(teacher, "--teacher") if teacher else policy
    return Repaired(found) if repair and isinstance(found, TextPolicy) else found
