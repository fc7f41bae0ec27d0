"""MM-UPT on a laptop, on text and on pictures, and on a checkpoint and questions of the user's own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeAlias

import posttrain as pt
from posttrain.grade.verify import equivalent, last_boxed
from posttrain.lab.world import glyphs, habits
from posttrain.lab.world.words import base
from posttrain.systems.mm_upt.questions import Mode, check_pictures, in_words, questions, to_write
from posttrain.systems.mm_upt.vote import majority, recipe, stated_answer

Questions: TypeAlias = Literal["no", "in-context", "direct"]

LEAST_PIXELS, MOST_PIXELS = 262_144, 1_204_224


def laptop(
    labels: bool = False, reliable: bool = True, run: pt.Run = pt.Run("runs/mm-upt", steps=40, tasks=16, lr=1e-3)
) -> pt.Session:
    """Two habits: a base model whose majority is mostly right, or mostly wrong.

    labels    learn from labels and not from the majority
    reliable  the majority is mostly right; else it is mostly wrong
    """
    from posttrain.systems.mm_upt import lab

    world = lab.two_habits(run.seed, reliable)
    policy = base(world, run.seed)
    reward = pt.each(habits.is_right) if labels else majority(habits.answer)
    made = replace(recipe(reward, reference=policy.frozen_copy()), evaluation=pt.each(habits.is_right))
    return pt.train(policy, world.training_tasks(), made, run, held_out=world.held_out_tasks())


@pt.one_process("a tiny model of a laptop's size is quickest there")
def on_pictures(
    labels: bool = False,
    own_questions: Questions = "no",
    run: pt.Run = pt.Run("runs/mm-upt-pictures", steps=40, tasks=12, lr=1e-4),
) -> pt.Session:
    """Arithmetic on drawn numbers, which a tiny model of Qwen's pattern sees.

    labels         learn from labels and not from the majority
    own_questions  have the model write the questions: in-context is given one with its answer, direct the picture alone
    """
    from posttrain.systems.mm_upt import lab

    if own_questions != "no" and labels:
        raise ValueError(f"`labels=True`: nobody labelled `own_questions={own_questions}`; leave one of them out")
    world = lab.drawn_numbers(run.seed)
    policy = base(world, run.seed, lab.PICTURE_SIZE)
    tasks = lab.picture_tasks(policy, world, None if own_questions == "no" else own_questions)
    reward = pt.each(glyphs.is_right) if labels else majority(glyphs.answer)
    made = replace(recipe(reward, reference=policy.frozen_copy()), evaluation=pt.each(glyphs.is_right))
    return pt.train(policy, tasks, made, run, held_out=world.tasks(100, "held out", held_out=True))


def learn(
    task: pt.TaskOptions,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    run: pt.Run = pt.Run("runs/mm-upt", steps=80, tasks=512, lr=1e-6, weight_decay=0.01),
    answers: Literal["math", "text"] = "math",
    own_questions: Questions = "no",
    held_out: tuple[str, ...] = (),
) -> pt.Session:
    """Your checkpoint on questions without answers.

    Ask for an answer that can be found, as published: a `prompt` of "{problem} Please reason step by step, and put your
    final answer within \\boxed{}.", `temperature=0.7` and `max_new=2048`.

    answers        how replies are compared: boxed mathematics by math-verify, or their text
    own_questions  have the model write the questions, given the pictures of `image`; in-context: given `answer` too
    held_out       data of tasks with answers that are only evaluated, by `grade`: FILE, or NAME=FILE
    """
    if task.image:  # as released
        model = model.with_pixel_limits(LEAST_PIXELS, MOST_PIXELS)
    policy = model.policy()
    reward = majority(last_boxed, equivalent) if answers == "math" else majority(stated_answer)
    made = replace(recipe(reward, reference=policy.frozen_copy()), evaluation=task.reward(), updates=4)
    tasks = replace(task, answer=task.answer if own_questions == "in-context" else None).tasks()
    if own_questions != "no":
        tasks = write_questions(policy, tasks, made, run, own_questions)
    return scale.train(policy, tasks, made, run, held_out=task.tests(held_out))


def write_questions(
    policy: pt.TextPolicy, tasks: list[pt.Task], made: pt.Recipe, run: pt.Run, mode: Mode
) -> list[pt.Task]:
    """Questions of the policy's own about the pictures of the tasks; a resumed run writes the same again.

    For the plan of a dry run, the tasks as they are.
    """
    policy.check(tasks)
    check_pictures(tasks, mode)
    if run.dry_run:
        return tasks
    pt.distribute(policy, made)
    pt.ranks.run_on_primary(lambda: pt.Directory(Path(run.out)).check(run), "for the run's directory")
    return questions(policy, tasks, to_write(mode), in_words, pt.mix(run.seed, "questions"))


STAGES = {"laptop": laptop, "train": learn, "pictures": on_pictures}
