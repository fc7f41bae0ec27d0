"""MM-UPT: unsupervised post-training by majority vote, on text and on pictures (arXiv:2505.22453).

GRPO with one change: nobody knows the answer, so the one that most samples agree on stands in for it. A task's truth is
never looked at. Where the majority is right more often than a sample, this approaches training with labels; where it is
wrong, the policy agrees on the wrong answer ever more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from posttrain.cli.options import ModelOptions, RunOptions, TaskOptions
from posttrain.grade.verify import equivalent, last_boxed
from posttrain.lab.world import glyphs
from posttrain.lab.world.habits import answer, right
from posttrain.lab.world.words import base
from posttrain.recipe import Part
from posttrain.reward import each
from posttrain.run.directory import Directory
from posttrain.run.session import Session
from posttrain.seeding import mix
from posttrain.step import train
from posttrain.systems.mm_upt import pictures as drawn
from posttrain.systems.mm_upt.claims import ARMS, CLAIMS
from posttrain.systems.mm_upt.experiments import world_of
from posttrain.systems.mm_upt.questions import check_pictures, in_words, questions, to_write
from posttrain.systems.mm_upt.vote import clusters, majority, recipe, semantic_entropy, settled

__all__ = ["ARMS", "CLAIMS", "PARTS", "clusters", "full", "laptop", "majority", "recipe", "semantic_entropy", "settled"]

LEAST_PIXELS, MOST_PIXELS = 262_144, 1_204_224

PARTS: Mapping[str, Part] = {
    "majority": lambda plain, tiny: replace(
        plain, reward=majority(settled), evaluation=plain.evaluation or plain.reward
    ),
}


def laptop(
    labels: bool = False,
    reliable: bool = True,
    pictures: bool = False,
    own_questions: Literal["no", "in-context", "direct"] = "no",
    run: RunOptions = RunOptions("runs/mm-upt", steps=40, tasks=16, lr=1e-3),
) -> Session:
    """Two habits: a base model whose majority is mostly right, or mostly wrong.

    reliable       the majority is mostly right (--no-reliable: mostly wrong)
    labels         by labels and not by the majority
    pictures       arithmetic on drawn numbers instead; --lr 1e-4 suits it
    own_questions  pictures: on questions that the policy has written about them itself
    """
    if own_questions != "no" and not pictures:
        raise ValueError(f"--own-questions {own_questions}: they are about pictures, so give --pictures too")
    if own_questions != "no" and labels:
        raise ValueError(
            f"--labels: nobody knows the answers to --own-questions {own_questions}; leave one of them out"
        )
    described = {"labels": labels, "reliable": reliable, "pictures": pictures, "own_questions": own_questions}
    if pictures:
        seen = drawn.world_of(run.seed)
        policy = drawn.base_of(seen)
        tasks = seen.tasks(drawn.PICTURES, "train")
        if own_questions != "no":
            tasks = drawn.synthetic(policy, seen, own_questions)
        made = recipe(each(glyphs.right) if labels else majority(glyphs.answer), reference=policy.frozen())
        made = replace(made, evaluation=each(glyphs.right))
        return train(policy, tasks, made, run.run(**described), held_out=seen.tasks(100, "held out", held_out=True))
    world = world_of(run.seed, reliable)
    policy = base(world, run.seed)
    reward = each(right) if labels else majority(answer)
    made = replace(recipe(reward, reference=policy.frozen()), evaluation=each(right))
    return train(policy, world.training(), made, run.run(**described), held_out=world.held_out())


def full(
    task: TaskOptions,
    model: ModelOptions,
    run: RunOptions = RunOptions("runs/mm-upt", steps=80, tasks=512, lr=1e-6, weight_decay=0.01),
    held_out: str | None = None,
    answers: Literal["math", "text"] = "math",
    own_questions: Literal["no", "in-context", "direct"] = "no",
) -> Session:
    """Your checkpoint on questions without answers; `--held-out` has them, and is graded by `--grade`.

    Ask for an answer that can be found, as published: --prompt "{problem} Please reason step by step, and put your
    final answer within \\boxed{}.", --temperature 0.7 --max-new 2048.

    held_out       data of tasks with answers that are only evaluated
    answers        how replies are compared: boxed mathematics by math-verify, or their text
    own_questions  have the model write the questions, given the pictures of --image; in-context: given --answer too
    """
    if task.image:  # as released
        model = model.within(LEAST_PIXELS, MOST_PIXELS)
    Directory(Path(run.out)).check(run.run())  # before the model writes questions
    policy = model.policy()
    reward = majority(last_boxed, equivalent) if answers == "math" else majority(settled)
    made = replace(recipe(reward, reference=policy.frozen()), evaluation=task.reward(), updates=4)
    tests = task.held_out(held_out)
    if own_questions == "no":
        tasks = replace(task, answer=None).tasks()
    else:
        given = replace(task, answer=task.answer if own_questions == "in-context" else None).tasks()
        policy.check(given)
        check_pictures(given, own_questions)
        tasks = questions(policy, given, to_write(own_questions), in_words, mix(run.seed, "questions"))
    described = {"answers": answers, "own_questions": own_questions, **task.describe(), **vars(model)}
    return train(policy, tasks, made, run.run(**described), held_out=tests)
