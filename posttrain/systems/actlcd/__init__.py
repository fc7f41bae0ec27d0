"""ActLCD: a gate learnt offline decides at each token whether layers are contrasted (arXiv:2505.23657).

DoLa's contrast of late and early layers surfaces truths that a model knows and does not say, and harms what it says
rightly. So contrast only where it helps: a small network looks at the layers' distributions before every token. It is
learnt from decoding with a mixed gate, by discrete BCQ, with a reward of classification paid once a sequence.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch

from posttrain.cli.options import ModelOptions, RunOptions, TaskOptions, hashed
from posttrain.lab.world.misconceptions import conversation, right
from posttrain.recipe import Part, Recipe
from posttrain.reward import each
from posttrain.run.directory import Directory
from posttrain.run.session import Session
from posttrain.seeding import mix
from posttrain.step import train
from posttrain.systems.actlcd.bcq import Bcq
from posttrain.systems.actlcd.checking import Checked, CheckOptions, check_truths
from posttrain.systems.actlcd.claims import ARMS, CLAIMS, SHOWN
from posttrain.systems.actlcd.collecting import reference
from posttrain.systems.actlcd.experiments import HIDDEN, REFRESH, Laboratory
from posttrain.systems.actlcd.gate import Net
from posttrain.systems.actlcd.learning import trained
from posttrain.systems.actlcd.stages import (
    GateOptions,
    Stage,
    decode,
    decoded_three_ways,
    learn,
    loaded_gate,
    refuse,
)

__all__ = ["ARMS", "CLAIMS", "PARTS", "SHOWN", "full", "laptop"]

PARTS: Mapping[str, Part] = {}


def laptop(
    learner: Literal["bcq", "clone", "grpo"] = "bcq",
    terminal: bool = True,
    snowball: bool = False,
    run: RunOptions = RunOptions("runs/actlcd", steps=1000, tasks=256, lr=1e-3),
) -> Session:
    """A small model that was told misconceptions, and a gate on its decoding, tested on other facts.

    learner   bcq, clone (its classifier alone), or grpo: online, without labels (--steps 60 --tasks 16 --lr 3e-3)
    terminal  the reward comes at the end of a sequence, as published; else token by token
    snowball  an answer is the subject of the next question
    """
    lab = Laboratory(run.seed, snowball=snowball)
    torch.manual_seed(mix(run.seed, "gate") % 2**32)
    made = Recipe(each(right), env=conversation, samples=8)
    settings = run.run(learner=learner, terminal=terminal, snowball=snowball)
    Directory(Path(run.out)).check(settings)
    data = lab.collected(terminal)
    if learner == "grpo":
        net = Net(data.features.shape[1], HIDDEN)
        net.view.fit(data.features)
        policy = lab.policy(net, temperature=1.0)
        session = train(policy, lab.training(), made, settings, held_out=lab.held_out())
    else:
        gate = Bcq(data.features.shape[1], HIDDEN, cloned=learner == "clone")
        gate.view.fit(data.features)
        policy = lab.policy(gate)
        session = trained(policy, gate, data, settings, refresh=REFRESH, recipe=made, held_out=lab.held_out())
    checked = Checked(made.reward, conversation)
    decoded_three_ways(policy, lab.held_out(), checked, Path(run.out), resume=run.resume, quiet=run.quiet)
    return session


def full(
    task: TaskOptions,
    model: ModelOptions,
    learning: GateOptions,
    checking: CheckOptions,
    run: RunOptions = RunOptions("runs/actlcd", steps=2000, tasks=1024, lr=3e-4),
    stage: Stage = "train",
    gate: str | None = None,
    held_out: str | None = None,
) -> Session | None:
    """Your checkpoint, which stays as it is: learn a gate for it from answers, then decode with the gate.

    The right token at each place is that of --answer's column, read token by token (teacher forcing). What was
    collected is kept in OUT-collected, and an interrupted run goes on from there with --resume.

    stage     train a gate, or decode --data with the --gate of such a run: greedy, DoLa and ActLCD side by side
    gate      decode: OUT/model of the run that trained it
    held_out  train: other questions, decoded in these three ways at the end
    """
    refuse(stage, task, model, learning, checking, gate, held_out)
    checked = checking.checked(task)
    tasks = task.tasks()
    described = {**vars(checking), **task.describe(), **vars(model)}
    if gate is not None:
        check_truths(checked, tasks)
        policy = loaded_gate(gate, model.policy())
        policy.check(tasks)
        decode(policy, tasks, checked, gate, run, **described)
        return None
    tests = task.held_out(held_out)
    for one in tasks:
        reference(one)
    check_truths(checked, [*(tasks if learning.reward == "grader" else []), *tests])
    tested = {"held_out": held_out, "held_out_sha256": hashed(held_out)["data_sha256"] if held_out else None}
    settings = run.run(**vars(learning), **described, **tested)
    Directory(Path(run.out)).check(settings)
    policy, session = learn(model.policy(), tasks, tests, learning, checked, settings)
    if tests:
        decoded_three_ways(policy, tests, checked, Path(run.out), resume=run.resume, quiet=run.quiet)
    return session
