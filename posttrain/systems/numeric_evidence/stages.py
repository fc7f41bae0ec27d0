"""Reinforce, distil, learn, evaluate: on a checkpoint, and trials of the user's own or as published."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import posttrain as pt
from posttrain.grade.stated import whole_reply
from posttrain.long_prompts import fit, prompt_tokens, room
from posttrain.records import records
from posttrain.systems.numeric_evidence import recipe
from posttrain.systems.numeric_evidence.effect import NONE
from posttrain.systems.numeric_evidence.measures import as_text, measures, prediction
from posttrain.systems.numeric_evidence.record import record_of, yaml_text
from posttrain.systems.numeric_evidence.reward import (
    Density,
    conclusion_is_right,
    reward,
    score_parts,
    stated_conclusion,
)
from posttrain.systems.numeric_evidence.trials import Asked, questions

PREDICTIONS = "predictions.jsonl"


@dataclass(frozen=True)
class TrialOptions:
    """Which questions about trials, and which of their prompts fit."""

    data: str
    """Questions about trials in the published columns, or your own rows with `text` or `file`, `outcome`,
    `intervention`, `comparator`, `outcome_type` and the numbers (docs/systems/numeric-evidence.md)."""
    limit: int | None = None
    """Use only the first so many lines."""
    split: str = "train"
    """Split of a Hugging Face dataset."""
    most_prompt: int = 16384
    """Most tokens of a prompt; a question with a longer one is left out."""

    def tasks(
        self, policy: pt.TextPolicy, asked: Asked = "thought", name: str | None = None, split: str | None = None
    ) -> list[pt.Task]:
        """The tasks of `data`, or of another file; how many prompts did not fit is printed."""
        pt.at_least(1, most_prompt=self.most_prompt)
        file = name or self.data
        found = questions(file, None if name else self.limit, split or self.split)
        most = room(policy, self.most_prompt)
        fitted = fit([one.task(asked) for one in found], prompt_tokens(policy), most)
        if fitted.dropped and pt.ranks.is_primary():
            print(f"{file}: {fitted} for {most} tokens")
        return fitted.tasks

    def labelled(self, policy: pt.TextPolicy, asked: Asked = "thought") -> list[pt.Task]:
        """The tasks that have their numbers. Raises ValueError when there are none."""
        found = self.tasks(policy, asked)
        kept = [task for task in found if task.truth.record is not None]
        if not kept:
            raise ValueError(f"`data={self.data}`: not one row has numbers to learn from (intervention_events, ...)")
        return kept

    def tests(self, policy: pt.TextPolicy, held_out: Iterable[str]) -> dict[str, list[pt.Task]]:
        """Of held-out files the tasks whose numbers allow a conclusion. Raises ValueError for a file without any."""
        out = {}
        for name, file in pt.named_files(held_out).items():
            out[name] = [task for task in self.tasks(policy, name=file, split="test") if task.truth.conclusion]
            if not out[name]:
                raise ValueError(f"`held_out={file}`: not one row has all the numbers that a conclusion needs")
        return out


def train(
    trials: TrialOptions,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    run: pt.Run = pt.Run("runs/numeric-evidence", steps=700, tasks=8, lr=1e-6),
    density: Density = "dense",
    kl: float = 0.0,
    samples: int = 16,
    held_out: tuple[str, ...] = (),
) -> pt.Session:
    """GRPO on your checkpoint, rewarded by the numbers that it extracts. Give `max_new=2048`.

    density   dense: 0.8 fields + 0.1 form + 0.1 thinking; exact: 1 where all fields are right
    kl        weight of the divergence from the model it starts from; Open-R1's was 0.04
    samples   samples of a question
    held_out  questions that are only evaluated, by the conclusion of their numbers: FILE, or NAME=FILE
    """
    policy = model.policy()
    reference = policy.frozen_copy() if kl else None
    made = recipe(reward(density), samples, kl, reference, evaluation=pt.each(conclusion_is_right))
    return scale.train(policy, trials.labelled(policy), made, run, held_out=trials.tests(policy, held_out))


def distil(
    trials: TrialOptions,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    output: pt.Output = pt.Output("runs/numeric-evidence-traces"),
    teacher: str | None = None,
    teacher_samples: int = 4,
) -> Path:
    """Write OUT/traces.jsonl: a teacher's chains whose numbers are all right, in form, for stage `sft`.

    teacher          a chat server (http://...), Hub id or folder; the model itself if not given
    teacher_samples  its replies to a question, of which the first right one is kept
    """
    pt.at_least(1, teacher_samples=teacher_samples)
    policy = replace(model, weights=not teacher).policy()
    scale.distil(teacher, model, policy, trials.labelled(policy), right_trace, teacher_samples, output)
    return Path(output.out)


def right_trace(group: pt.Group) -> Mapping[str, Any] | pt.Invalid:
    """The first reply whose numbers are all right, in form and behind its thinking."""
    return pt.first_kept(group, lambda one: min(score_parts(whole_reply(one), one.task.truth).values()) == 1)


def sft(
    trials: TrialOptions,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    run: pt.Run = pt.Run("runs/numeric-evidence-sft", steps=1165, tasks=8, lr=5e-5),
    held_out: tuple[str, ...] = (),
) -> pt.Session:
    """Learn the numbers of questions at once (plain), or a teacher's chains: `data` is then traces.jsonl of distil.

    After plain fine-tuning evaluate with `no-think`: the numbers are asked for at once.

    held_out  data of which the loss is only measured: FILE, or NAME=FILE
    """
    scale.refuse_sampler()
    policy = model.policy()
    tests = {
        name: demonstrations(replace(trials, data=file, limit=None, split="test"), policy)
        for name, file in pt.named_files(held_out).items()
    }
    return pt.sft(policy, demonstrations(trials, policy), run, held_out=tests)


def demonstrations(trials: TrialOptions, policy: pt.TextPolicy) -> list[pt.Demonstration]:
    """Chains, where the first row has a `response`; else the numbers of every question."""
    _, first = next(records(trials.data, 1, trials.split))
    if "response" in first:
        return pt.read_demonstrations(trials.data, limit=trials.limit, split=trials.split)
    return [plain(task) for task in trials.labelled(policy, "numbers")]


def plain(task: pt.Task) -> pt.Demonstration:
    """The numbers at once."""
    said = f"```yaml\n{yaml_text(task.truth.record, task.truth.kind)}\n```"
    return pt.Demonstration((*task.prompt, pt.assistant(said)))


def evaluate(
    trials: TrialOptions,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    output: pt.Output = pt.Output("runs/numeric-evidence-evaluation"),
    samples: int = 1,
    textual: bool = False,
    think: bool = True,
) -> Path:
    """Extract, compute, conclude: OUT/predictions.jsonl and, of questions with numbers, OUT/measures.json.

    Greedy: `temperature=0`. Rows without numbers are extracted too, and not measured.

    samples  replies to a question; all of them count
    textual  the baseline: ask for the conclusion itself, without numbers
    think    ask for thinking before the numbers
    """
    pt.at_least(1, samples=samples)
    policy, out = model.policy(), Path(output.out)
    asked: Asked = "conclusion" if textual else "thought" if think else "numbers"
    replies, found = scale.evaluate(policy, trials.tasks(policy, asked), has_answer(textual), samples, output)
    made = [prediction(one.task.key, one.text, one.task.truth, textual) for one, _ in found.graded]
    values = measures(made, textual)
    replies.write(values)
    if pt.ranks.is_primary():
        pt.Lines(out / PREDICTIONS, resume=False).replace(one.line() for one in made)
        print(as_text(values) if values["predictions"] else f"{len(made)} predictions; no row has numbers to compare")
    return out


def has_answer(textual: bool) -> pt.Reward:
    """1 where a reply holds what was asked for, whether it is right or not: the reward that replies.jsonl keeps."""

    def grade(rollout: pt.Rollout) -> float:
        text = whole_reply(rollout)
        if textual:
            return float(stated_conclusion(text) != NONE)
        try:
            return float(bool(record_of(text, rollout.task.truth.kind)))
        except ValueError:
            return 0.0

    return pt.each(grade)


def laptop(
    density: Density = "dense",
    run: pt.Run = pt.Run("runs/numeric-evidence", steps=40, tasks=8, lr=1e-3),
) -> pt.Session:
    """Reports of three outcomes, after an annotator who misreads three fields in ten.

    density  dense: 0.8 fields + 0.1 form + 0.1 thinking; exact: 1 where all fields are right
    """
    from posttrain.systems.numeric_evidence import lab

    world = lab.world_of(run.seed)
    made = recipe(reward(density), lab.SAMPLES, evaluation=pt.each(conclusion_is_right))
    tests = lab.tasks(world, 96, "test")
    return pt.train(lab.base_model(world, run.seed), lab.tasks(world, 2000, "training"), made, run, held_out=tests)


STAGES = {"laptop": laptop, "train": train, "sft": sft, "distil": distil, "evaluate": evaluate}
