"""The arms on pictures: drawn numbers, and questions that the policy writes about them itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from posttrain.core import Message, Score, Task
from posttrain.descent import update
from posttrain.episode import rollout, single_turn, user
from posttrain.lab.world.glyphs import SIGNS, Glyphs, answer, right
from posttrain.lab.world.words import Size, base
from posttrain.loss import likelihood, token_mean
from posttrain.policy.text import TextPolicy
from posttrain.reward import each
from posttrain.row import rows_of
from posttrain.seeding import mix
from posttrain.step import train_in_memory
from posttrain.systems.mm_upt.experiments import SAMPLES, measured
from posttrain.systems.mm_upt.questions import Mode, parts_of, questions
from posttrain.systems.mm_upt.vote import majority, recipe

SIZE = Size(hidden=64, layers=2, steps=300)
STEPS, PER_STEP, RATE, PICTURES = 40, 12, 1e-4, 480
Measures = dict[str, float]
Learn = Callable[[TextPolicy, Glyphs, bool], None]


def world_of(seed: int) -> Glyphs:
    """Most questions on pictures are worked out, and mostly right; the rest are guessed, and mostly wrong at random."""
    return Glyphs(seed, captions=0.1, questions=0.2, careful=0.7, careful_right=0.9, guess_right=0.15)


def base_of(world: Glyphs, quick: bool = False) -> TextPolicy:
    return base(world, world.seed, replace(SIZE, steps=10) if quick else SIZE)


def to_write(mode: Mode) -> Callable[[Task], tuple[Message, ...]]:
    """In the world's words: `+ * = is 4 ask ?`, or `ask ?` alone."""

    def asked(task: Task) -> tuple[Message, ...]:
        pictures, question = parts_of(task)
        words = f"{question} is {task.truth} ask ?" if mode == "in-context" else "ask ?"
        return (user([*pictures, {"type": "text", "text": words}]),)

    return asked


def read(task: Task, text: str) -> str | None:
    """Two operations, other than the task's own."""
    signs = text.split()
    asked = " ".join((*signs, "="))
    return asked if len(signs) == 2 and set(signs) <= set(SIGNS) and asked != parts_of(task)[1] else None


def synthetic(policy: TextPolicy, world: Glyphs, mode: Mode, count: int = PICTURES) -> list[Task]:
    """Questions of the policy's own, of a form that can be answered, on pictures of the training part."""
    return questions(policy, world.tasks(count, "train"), to_write(mode), read, mix(world.seed, "questions"))


def voted(mode: Mode | None = None, labels: bool = False, rate: float = RATE) -> Learn:
    """GRPO by the majority, on given questions or on the policy's own, or by labels."""

    def learn(policy: TextPolicy, world: Glyphs, quick: bool) -> None:
        count = 20 if quick else PICTURES
        tasks = world.tasks(count, "train") if quick or mode is None else synthetic(policy, world, mode, count)
        made = recipe(each(right) if labels else majority(answer), reference=policy.frozen())
        steps = 1 if quick else STEPS
        train_in_memory(policy, tasks, made, steps=steps, per_step=PER_STEP, lr=rate, seed=world.seed)

    return learn


def imitated(policy: TextPolicy, world: Glyphs, quick: bool) -> None:
    """LMSI (arXiv:2210.11610): one round of samples, and supervised learning of those that agree with the majority.

    From as many pictures, samples and optimizer steps as `voted` takes.
    """
    tasks: Sequence[Task] = world.tasks(20 if quick else PICTURES, "train")
    groups = rollout(single_turn, tasks, {"policy": policy}, SAMPLES, mix(world.seed, "lmsi"))
    vote = majority(answer)
    agreed = [
        row
        for group in groups
        for one, mark in zip(group, vote(group), strict=True)
        if isinstance(mark, Score) and mark.value > 0
        for row in rows_of(policy, one, one.turns)
    ]
    rows = [replace(row, advantage=torch.ones_like(row.advantage)) for row in agreed]
    optimizer = torch.optim.AdamW(policy.parameters(), lr=RATE, weight_decay=0.0)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(world.seed))
    for piece in order.tensor_split(1 if quick else STEPS):
        if len(piece):
            update(policy, optimizer, [rows[i] for i in piece.tolist()], likelihood, token_mean)


def arm(learn: Learn | None) -> Callable[[int, bool], Measures]:
    def run(seed: int, quick: bool) -> Measures:
        world = world_of(seed)
        policy = base_of(world, quick)
        if learn:
            learn(policy, world, quick)
        tasks = world.tasks(5 if quick else 150, "test", held_out=True)
        return measured(policy, tasks, each(right), answer, mix(seed, "test"))

    return run
