"""Reinforce, distil, learn from traces, evaluate: on a checkpoint, and tables of the user's own or as published."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import posttrain as pt
from posttrain.grade.stated import whole_reply
from posttrain.long_prompts import prompt_tokens, room
from posttrain.systems.table_r1 import recipe
from posttrain.systems.table_r1.answers import KINDS, strict_format
from posttrain.systems.table_r1.questions import Long, fitted, questions
from posttrain.systems.table_r1.reward import Form, accuracy, evaluation, reward

LEAST = 0.5  # of a sentence's accuracy, to be a trace: our choice


@dataclass(frozen=True)
class TableOptions:
    """Which questions, and which of their prompts fit."""

    data: str
    """Questions about tables: WikiTableQuestions, TabFact, FeTaQA, HiTab, Table-R1's own rows, or JSONL with
    `question`, `answer` and a `table` of your own, a CSV file or rows (docs/systems/table-r1.md)."""
    limit: int | None = None
    """Use only the first so many lines."""
    split: str = "train"
    """Split of a Hugging Face dataset."""
    most_prompt: int = 4096
    """Most tokens of a prompt."""
    long: Long = "drop"
    """Of a prompt that is longer: drop the question, as published, or cut rows from the end of its table."""

    def tasks(self, policy: pt.TextPolicy, name: str | None = None, split: str | None = None) -> list[pt.Task]:
        """The tasks of `data`, or of another file; what became of prompts that do not fit is printed."""
        pt.at_least(1, most_prompt=self.most_prompt)
        file = name or self.data
        found = questions(file, None if name else self.limit, split or self.split)
        fit = fitted(found, prompt_tokens(policy), room(policy, self.most_prompt), self.long)
        if (fit.dropped or fit.cut) and pt.ranks.is_primary():
            print(f"{file}: {fit}")
        return fit.tasks

    def tests(self, policy: pt.TextPolicy, held_out: Iterable[str]) -> dict[str, list[pt.Task]]:
        return {name: self.tasks(policy, file, "test") for name, file in pt.named_files(held_out).items()}


def train(
    tables: TableOptions,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    run: pt.Run = pt.Run("runs/table-r1", steps=379, tasks=256, lr=1e-6),
    form: Form = "strict",
    samples: int = 16,
    held_out: tuple[str, ...] = (),
) -> pt.Session:
    """Table-R1-Zero: rewards of form and accuracy by kind of task, on your checkpoint. Give `max_new=1024`.

    form      reward of form: strict for instruct models, cumulative for base models
    samples   samples of a question
    held_out  questions that are only evaluated, by the looser scorer: FILE, or NAME=FILE
    """
    policy = model.policy()
    made = recipe(reward(form), samples=samples, evaluation=evaluation())
    return scale.train(policy, tables.tasks(policy), made, run, held_out=tables.tests(policy, held_out))


def distil(
    tables: TableOptions,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    output: pt.Output = pt.Output("runs/table-r1-traces"),
    teacher: str | None = None,
    teacher_samples: int = 4,
) -> Path:
    """Write OUT/traces.jsonl: a teacher's replies that are right and in form, for stage `sft`.

    Of a sentence right means an accuracy of at least 0.5.

    teacher          a chat server (http://...), Hub id or folder; the model itself if not given
    teacher_samples  its replies to a question, of which the first right one is kept
    """
    pt.at_least(1, teacher_samples=teacher_samples)
    policy = replace(model, weights=not teacher).policy()
    scale.distil(teacher, model, policy, tables.tasks(policy), right_trace, teacher_samples, output)
    return Path(output.out)


def right_trace(group: pt.Group) -> Mapping[str, Any] | pt.Invalid:
    """The first reply that is right and in form."""

    def is_trace(one: pt.Rollout) -> bool:
        text, truth = whole_reply(one), one.task.truth
        parts = accuracy(text, truth)
        return parts is not None and parts["accuracy"] >= LEAST and strict_format(text, truth.kind) == 1

    return pt.first_kept(group, is_trace)


def sft(
    shown: pt.DemonstrationOptions,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    run: pt.Run = pt.Run(
        "runs/table-r1-sft", steps=394, tasks=256, lr=1e-5, schedule="cosine", warmup=39, weight_decay=0.01
    ),
    held_out: tuple[str, ...] = (),
) -> pt.Session:
    """Table-R1-SFT: learn verified traces, of stage distil or as released (`prompt=question`, `response=answer`).

    held_out  traces whose loss is only measured: FILE, or NAME=FILE
    """
    scale.refuse_sampler()
    return pt.sft(model.policy(), shown.demonstrations(), run, held_out=shown.tests(held_out))


def evaluate(
    tables: TableOptions,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    output: pt.Output = pt.Output("runs/table-r1-evaluation"),
    samples: int = 5,
) -> Path:
    """The looser scorer, by kind of task: mean of the samples (pass@1) and best of them (pass@5), as published.

    The published temperature is 0.6: give `temperature=0.6`, and `most_prompt=14000`.

    samples  replies to a question
    """
    pt.at_least(1, samples=samples)
    policy = model.policy()
    replies, found = scale.evaluate(policy, tables.tasks(policy), evaluation(), samples, output)
    table = by_kind(found)
    replies.write(table)
    if pt.ranks.is_primary():
        for kind, row in table.items():
            best = f"best of {samples} {row['best']:.3f}"
            print(f"{kind:7} {row['questions']:5.0f} questions, mean {row['mean']:.3f}, {best}")
    return replies.folder


def by_kind(found: pt.Evaluation) -> dict[str, Mapping[str, float]]:
    out: dict[str, Mapping[str, float]] = {}
    for kind in KINDS:
        values = [v for g, v in zip(found.groups, found.values, strict=True) if g[0].task.truth.kind == kind and v]
        if values:
            mean, best = statistics.fmean(map(statistics.fmean, values)), statistics.fmean(map(max, values))
            out[kind] = {"questions": float(len(values)), "mean": mean, "best": best}
    return out


def laptop(
    start: Literal["instruct", "base"] = "instruct",
    form: Form = "strict",
    run: pt.Run = pt.Run("runs/table-r1", steps=60, tasks=32, lr=1e-3),
) -> pt.Session:
    """Four kinds of questions about tiny tables, after a teacher who is wrong on a third of them.

    start  instruct: a model that answers in form; base: one that seldom does
    form   reward of form: strict, or cumulative
    """
    from posttrain.lab.world.tables import OPERATIONS, Tables
    from posttrain.systems.table_r1 import lab

    world = Tables(run.seed, formed=1.0 if start == "instruct" else lab.UNFORMED)
    made = recipe(reward(form), samples=lab.SAMPLES, evaluation=evaluation())
    tests = {name: lab.tasks(world, 48, f"test {name}", [name]) for name in OPERATIONS}
    return pt.train(lab.start(world, run.seed), lab.tasks(world, 2000, "training"), made, run, held_out=tests)


STAGES = {"laptop": laptop, "train": train, "sft": sft, "distil": distil, "evaluate": evaluate}
