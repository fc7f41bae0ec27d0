"""ActLCD: a gate learnt offline decides at each token whether layers are contrasted (arXiv:2505.23657).

DoLa's contrast of late and early layers surfaces truths that a model knows and does not say, and harms what it says
rightly. So contrast only where it helps: a small network looks at the layers' distributions before every token. It is
learnt from decoding with a mixed gate, by discrete BCQ, with a reward of classification paid once a sequence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch

from posttrain.decode.decode import Decoding
from posttrain.options import ModelOptions, RunOptions, TaskOptions
from posttrain.recipe import Part, Recipe
from posttrain.reward import each
from posttrain.run import Session
from posttrain.seeding import mix
from posttrain.step import train
from posttrain.systems.actlcd import checkers
from posttrain.systems.actlcd.bcq import Bcq
from posttrain.systems.actlcd.claims import ARMS, CLAIMS, SHOWN
from posttrain.systems.actlcd.experiments import HIDDEN, REFRESH, Laboratory
from posttrain.systems.actlcd.features import Kind
from posttrain.systems.actlcd.gate import Constant, GatePolicy, Net
from posttrain.systems.actlcd.labels import joined
from posttrain.systems.actlcd.learning import trained
from posttrain.systems.actlcd.stages import (
    Checked,
    checked_by,
    decoded_three_ways,
    graded_sequences,
    loaded_gate,
    read_along,
)
from posttrain.world.misconceptions import conversation, right

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
    decoded_three_ways(policy, lab.held_out(), Checked(made.reward, conversation), run.out)
    return session


def full(
    task: TaskOptions,
    model: ModelOptions,
    run: RunOptions = RunOptions("runs/actlcd", steps=2000, tasks=1024, lr=3e-4),
    stage: Literal["train", "decode"] = "train",
    gate: str | None = None,
    layers: str = "low",
    norm_early: bool = False,
    penalty: float = 1.2,
    features: Kind = "values",
    learner: Literal["bcq", "clone"] = "bcq",
    reward: Literal["labels", "grader"] = "labels",
    samples: int = 4,
    check: Literal["grade", "number", "yes-no", "packages", "judge"] = "grade",
    judge: str | None = None,
    registry: str = checkers.PYPI,
    held_out: str | None = None,
) -> Session | None:
    """Your checkpoint, which stays as it is: learn a gate for it from answers, then decode with the gate.

    The right token at each place is that of --answer's column, read token by token (teacher forcing).

    stage       train a gate, or decode --data with the --gate of such a run: greedy, DoLa and ActLCD side by side
    gate        decode: OUT/model of the run that trained it
    layers      candidates of the contrast: low, high, or numbers separated by commas
    norm_early  apply the final norm to early layers too
    penalty     of repeated tokens while collecting; decoding is shown at 1.0 and 1.2
    features    values, or ids as released
    learner     bcq, or its classifier alone
    reward      of a sequence: the sum over labels (published), or what the grader gives the gate's own replies
    samples     reward grader: replies to a task
    check       grade (by --grade), number or yes-no (after "the answer is"), packages that exist, or judge
    judge       check judge: address of a chat server
    registry    check packages: address with {name}, of PyPI if not given
    held_out    decoded before the end, in place of --data
    """
    speaker = model.policy()
    checked = checked_by(task, check, judge, registry)
    tasks = task.tasks()
    speaker.check(tasks)
    if stage == "decode":
        if gate is None:
            raise ValueError("--stage decode needs --gate, the OUT/model of a run that trained one")
        decoded_three_ways(loaded_gate(gate, speaker), tasks, checked, run.out)
        return None
    how = Decoding(layers, norm_early=norm_early, penalty=penalty, temperature=0.0)
    mixed = GatePolicy(speaker, Constant(0.5), how, features)
    data = read_along(mixed, tasks, mix(run.seed, "read"))
    torch.manual_seed(mix(run.seed, "gate") % 2**32)
    made = Bcq(mixed.inputs, cloned=learner == "clone")
    if features == "values":
        made.view.fit(data.features)
    if reward == "grader":
        unpaid = replace(data, reward=torch.full_like(data.reward, torch.nan))
        data = joined([unpaid, graded_sequences(mixed, tasks, checked, samples, mix(run.seed, "graded"))])
    options = {"layers": layers, "norm_early": norm_early, "penalty": penalty, "features": features, "reward": reward}
    described = {**options, "learner": learner, "check": check, **task.describe(), **vars(model)}
    policy = GatePolicy(speaker, made, how, features, temperature=0.0)
    session = trained(policy, made, data, run.run(**described))
    tests = task.tasks(held_out, "test") if held_out else tasks
    decoded_three_ways(policy, tests, checked, run.out)
    return session
