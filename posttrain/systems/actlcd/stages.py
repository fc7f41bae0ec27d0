"""ActLCD on a checkpoint and questions of the user's own: learn a gate, then decode three ways side by side."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch

import posttrain as pt
from posttrain.decode.decode import Decoding
from posttrain.lab.world.misconceptions import Misconceptions
from posttrain.run.directory import file_hash
from posttrain.systems.actlcd.bcq import Bcq
from posttrain.systems.actlcd.checking import Checker, QuestionOptions
from posttrain.systems.actlcd.collecting import PIECES, collect, graded_sequences, read_along, reference, tokens_to_read
from posttrain.systems.actlcd.comparison import show_three_ways
from posttrain.systems.actlcd.features import Kind
from posttrain.systems.actlcd.gate import Constant, GatePolicy, Net, read_gate
from posttrain.systems.actlcd.labels import Transitions, concatenate
from posttrain.systems.actlcd.learning import gate_session, learn_gate

REASON = "a gate decodes with access to the layers of its model and is too small to shard"


@dataclass(frozen=True)
class SpeakerOptions:
    """The model that a gate decodes with. It is never trained, and says its best token."""

    model: str = "tiny"
    """Hub id, folder of a Hugging Face checkpoint, or `tiny`, a small model built here."""
    template: str | None = None
    """Chat template for a tokenizer without one: chatml, plain, or a Jinja file."""
    max_new: int = 256
    """Most tokens in a reply, and of an answer that is read."""
    stop: str | None = None
    """A string that ends a reply, besides the end-of-turn token."""
    bf16: bool = False
    """Run the model in bfloat16; the gate stays float32."""
    device: str | None = None
    """cpu, cuda, cuda:1, mps; the best one here if not given."""
    threads: int | None = None
    """torch threads; one for models under 2 M parameters if not given."""

    def policy(self) -> pt.TextPolicy:
        return pt.ModelOptions(**vars(self)).policy()


@dataclass(frozen=True)
class GateOptions:
    """What a gate is, and what it learns from."""

    layers: str = "low"
    """Candidates of the contrast: low, high, or numbers separated by commas."""
    norm_early: bool = False
    """Apply the final norm to early layers too."""
    penalty: float = 1.2
    """Of repeated tokens while collecting; decoding is shown at 1.0 and 1.2."""
    features: Kind = "values"
    """values, or ids as released."""
    learner: Literal["bcq", "clone"] = "bcq"
    """bcq, or its classifier alone."""
    reward: Literal["labels", "grader"] = "labels"
    """Of a sequence: the sum over labels (published), or what the grader gives the gate's own replies."""
    samples: int | None = None
    """Reward grader: replies to a task, 4 if not given."""

    def __post_init__(self):
        pt.at_least(1, samples=self.samples)
        if not self.penalty > 0:
            raise ValueError(f"`penalty={self.penalty}`: it must be above 0; 1 is none")
        if self.samples is not None and self.reward != "grader":
            raise ValueError(f"`samples={self.samples}` is an option of `reward=grader`")

    @property
    def how(self) -> Decoding:
        return Decoding(self.layers, norm_early=self.norm_early, penalty=self.penalty)


# ---- learning


@pt.one_process(REASON)
def laptop(
    learner: Literal["bcq", "token", "clone", "grpo"] = "bcq",
    snowball: bool = False,
    run: pt.Run = pt.Run("runs/actlcd", steps=1000, tasks=256, lr=1e-3),
) -> pt.Session:
    """A small model that was told misconceptions, and a gate on its decoding, tested on other facts.

    learner   bcq, token (BCQ with rewards token by token), clone (its classifier alone), or grpo: online, without
              labels (`steps=60` `tasks=16` `lr=3e-3`)
    snowball  an answer is the subject of the next question
    """
    from posttrain.systems.actlcd import lab

    if not run.dry_run:
        pt.Directory(Path(run.out)).check(run)
    online, world = learner == "grpo", Misconceptions(run.seed)
    speaker, tasks, tests = lab.speaker(world, run.seed), lab.training(world, snowball), lab.held_out(world, snowball)
    torch.manual_seed(pt.mix(run.seed, "gate") % 2**32)
    gate = Net(lab.INPUTS, lab.HIDDEN) if online else Bcq(lab.INPUTS, lab.HIDDEN, cloned=learner == "clone")
    policy = lab.gate_policy(speaker, gate, temperature=float(online))
    if run.dry_run:
        count = lab.collected_decisions(tasks)
        return pt.train(policy, tasks, lab.ONLINE, run) if online else gate_session(policy, count, run)
    data = lab.collect(speaker, tasks, run.seed, terminal=learner != "token")
    gate.view.fit(data.features)
    if isinstance(gate, Bcq):
        session = learn_gate(policy, gate, data, run, refresh=lab.REFRESH, recipe=lab.ONLINE, held_out=tests)
    else:
        session = pt.train(policy, tasks, lab.ONLINE, run, held_out=tests)
    show_three_ways(policy, {"": tests}, Checker(lab.ONLINE.reward, lab.ONLINE.env), Path(run.out), run)
    return session


@pt.one_process(REASON)
def learn(
    questions: QuestionOptions,
    model: SpeakerOptions,
    learning: GateOptions,
    run: pt.Run = pt.Run("runs/actlcd", steps=2000, tasks=1024, lr=3e-4),
    held_out: tuple[str, ...] = (),
) -> pt.Session:
    """Learn a gate for your checkpoint, which stays as it is, from answers.

    The right token at each place is that of the column `answer`, read token by token (teacher forcing). What was
    collected is kept in OUT-collected, and an interrupted run goes on from there with `resume=True`.

    held_out  other questions with the same columns, decoded in three ways at the end (greedy, DoLa and ActLCD): FILE,
              or NAME=FILE
    """
    graded = learning.reward == "grader"
    if not graded and not held_out:
        refuse_grading(questions, model)
    checker, tasks, tests = questions.checker(), questions.columns.tasks(), questions.columns.tests(held_out)
    for task in tasks:
        reference(task)
    checker.check_truths(itertools.chain(tasks if graded else (), *tests.values()))
    if not run.dry_run:
        pt.Directory(Path(run.out)).check(run)
    speaker = model.policy()
    mixed = GatePolicy(speaker, Constant(0.5), learning.how, learning.features)
    mixed.check([*tasks, *itertools.chain(*tests.values())])
    torch.manual_seed(pt.mix(run.seed, "gate") % 2**32)
    gate = Bcq(mixed.inputs, cloned=learning.learner == "clone")
    policy = GatePolicy(speaker, gate, learning.how, learning.features, temperature=0.0)
    made = pt.Recipe(checker.reward, checker.env, others=checker.others)
    if run.dry_run:
        return gate_session(policy, tokens_to_read(mixed, tasks), run, held_out=tests)
    data, paid = collect_transitions(mixed, tasks, learning, checker, run)
    if learning.features == "values":
        gate.view.fit(data.features)
    session = learn_gate(policy, gate, paid, run, recipe=made, held_out=tests)
    if tests:
        show_three_ways(policy, tests, checker, Path(run.out), run)
    return session


def refuse_grading(questions: QuestionOptions, model: SpeakerOptions) -> None:
    """Raises ValueError for an option of replies and their grades, where answers are only read."""
    for group, name in ((questions, "grade"), (questions, "judge"), (questions, "registry"), (model, "stop")):
        value = getattr(group, name)
        if value != getattr(type(group), name):
            raise ValueError(f"`{name}={value}`: nothing is graded without `held_out` or `reward=grader`")


def collect_transitions(
    mixed: GatePolicy, tasks: Sequence[pt.Task], learning: GateOptions, checker: Checker, run: pt.Run
) -> tuple[Transitions, Transitions]:
    """The transitions of reading answers, and all that a gate learns from.

    They are collected into OUT-collected, or taken from there on a resume. Where a grader pays, answers that were read
    teach the classifier only.
    """
    folder = Path(f"{Path(run.out)}-collected")
    pieces, settings = [one.name for one in folder.glob(PIECES)], {**run.settings, "seed": run.seed}
    pt.prepare_folder(folder, "collected", pieces, settings, resume=run.resume, overwrite=run.overwrite)
    read = partial(read_along, mixed, seed=pt.mix(run.seed, "read"))
    kinds: dict[str, Callable[[Sequence[pt.Task], int], Transitions]] = {"read": lambda some, at: read(some, start=at)}
    if learning.reward == "grader":
        graded = partial(graded_sequences, mixed, checker=checker, samples=learning.samples or 4)
        kinds["graded"] = lambda some, at: graded(some, seed=pt.mix(run.seed, "graded"), start=at)
    found = collect(folder, tasks, kinds, quiet=run.quiet)
    data = found["read"]
    if "graded" not in found:
        return data, data
    unpaid = replace(data, reward=torch.full_like(data.reward, torch.nan))
    return data, concatenate([unpaid, found["graded"]])


# ---- decoding


@pt.one_process(REASON)
def decode(
    gate: str,
    questions: QuestionOptions,
    model: SpeakerOptions,
    output: pt.Output = pt.Output("runs/actlcd-decoding"),
) -> Path:
    """Decode questions in three ways side by side: greedy, DoLa, and with a gate that was learnt (ActLCD).

    gate  OUT/model of the run that learnt it
    """
    out = Path(output.out)
    checker, tasks = questions.checker(), questions.columns.tasks()
    checker.check_truths(tasks)
    if Path(gate).resolve().is_relative_to(out.resolve()):
        raise ValueError(f"`out={out}`: it holds the `gate`, which stays as it is; give another `out`")
    read_gate(gate)
    policy = load_gate(gate, model.policy())
    policy.check(tasks)
    settings = {**output.settings, "gate_sha256": file_hash(Path(gate) / "model.safetensors")}
    pt.Directory(out).prepare({"kind": "decode", "run": replace(output, settings=settings)}, output)
    show_three_ways(policy, {"": tasks}, checker, out, output)
    return out


def load_gate(folder: str, speaker: pt.TextPolicy) -> GatePolicy:
    """A gate that a run has saved, over a language model. Raises ValueError when they do not fit."""
    about, tensors = read_gate(folder)
    kinds = {"Bcq": Bcq, "Net": Net}
    if about["kind"] not in kinds:
        raise ValueError(f"`gate={folder}`: a gate of the kind {about['kind']}, and not {' or '.join(kinds)}")
    gate = kinds[about["kind"]](about["inputs"], about["hidden"], **about["settings"])
    policy = GatePolicy(speaker, gate, Decoding(**about["decoding"]), about["features"], temperature=0.0)
    if policy.inputs != about["inputs"]:
        raise ValueError(
            f"`gate={folder}`: it reads {about['inputs']} features, and this model has {policy.inputs} with the layers "
            f"{policy.how.layers}: it was trained for {about['speaker'] or 'another model'}"
        )
    policy.load_state_dict(tensors)
    return policy


STAGES = {"laptop": laptop, "train": learn, "decode": decode}
