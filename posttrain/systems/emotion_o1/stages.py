"""Distil chains, learn them, reinforce, evaluate: on a checkpoint, and utterances of the user's own or as published."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import posttrain as pt
from posttrain.grade.stated import whole_reply
from posttrain.systems.emotion_o1 import Method, recipe
from posttrain.systems.emotion_o1.lengths import (
    Band,
    chain_lengths,
    fit_bands,
    read_bands,
    tokens_of,
    write_bands,
)
from posttrain.systems.emotion_o1.measures import as_table, measures_of, prediction
from posttrain.systems.emotion_o1.reply import stated
from posttrain.systems.emotion_o1.reward import Truth, Weights, evaluation, reward
from posttrain.systems.emotion_o1.utterances import labels_of, tasks_of, utterances

CHAINS, BANDS = "chains.jsonl", "bands.json"
PREDICTIONS = "predictions.jsonl"


@dataclass(frozen=True)
class UtteranceOptions:
    """Which utterances, and what is asked about them."""

    data: tuple[str, ...]
    """MELD, MUStARD, or rows of `text`, `label`, `task` and `context`: FILE, or NAME=FILE; named `sentiment`, MELD's
    sentiment is read in place of its emotion."""
    labels: tuple[str, ...] = ()
    """Labels of a task, TASK=A,B,C; the published ones, or those of the data, if not given."""
    limit: int | None = None
    """Use only the first so many lines of each file."""
    split: str = "train"
    """Split of a Hugging Face dataset."""
    context: int = 5
    """Most utterances of the dialogue that are shown before one."""

    def tasks(self) -> list[pt.Task[Truth]]:
        return self.with_tests(())[0]

    def with_tests(self, held_out: tuple[str, ...]) -> tuple[list[pt.Task[Truth]], dict[str, list[pt.Task[Truth]]]]:
        """The tasks of `data`, and those of held-out files by name, which have the labels of `data`."""
        if not self.data:
            raise ValueError("`data`: there must be at least one file")
        files, where = pt.named_files(self.data, "data"), (self.limit, self.split, self.context)
        found = [
            replace(one, key=f"{name}/{one.key}") if len(files) > 1 else one  # both may count their lines alike
            for name, file in files.items()
            for one in utterances(file, name, *where)
        ]
        labels = labels_of(found, self.labels)
        tests = {
            name: tasks_of(utterances(file, name, None, "test", self.context), labels)
            for name, file in pt.named_files(held_out).items()
        }
        return tasks_of(found, labels), tests


def train(
    utterance: UtteranceOptions,
    weights: Weights,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    run: pt.Run = pt.Run("runs/emotion-o1", steps=200, tasks=128, lr=1e-6),
    bands: str | None = None,
    method: Method = "ppo",
    samples: int | None = None,
    kl: float | None = None,
    critic_lr: float = 1e-5,
    held_out: tuple[str, ...] = (),
) -> pt.Session:
    """PPO with a critic on the reward of four terms, from the checkpoint that stage sft has written.

    bands      lengths of each task: bands.json of stage distil, or chains.jsonl; not needed with `length_weight=0`
    method     ppo, or grpo, which keeps no critic
    samples    samples of an utterance; 1 for ppo and 16 for grpo if not given
    kl         weight of the divergence from the starting model: in the reward of ppo, 0.05 if not given, in the loss of
               grpo, 0.01; 0 loads no reference
    critic_lr  learning rate of the critic
    held_out   utterances that are only evaluated, by the right label alone: FILE, or NAME=FILE
    """
    policy = model.policy()
    tasks, tests = utterance.with_tests(held_out)
    fitted = bands_for(bands, policy, tasks, weights)
    made = recipe(
        reward(fitted, tokens_of(policy), weights),
        policy,
        method=method,
        samples=samples,
        kl=kl,
        critic_lr=critic_lr,
        evaluation=evaluation(),
    )
    return scale.train(policy, tasks, made, run, held_out=tests)


def bands_for(
    file: str | None, policy: pt.TextPolicy, tasks: list[pt.Task[Truth]], weights: Weights
) -> dict[str, Band]:
    """Raises ValueError when the reward needs bands and none are given."""
    if file is None and weights.length_weight:
        raise ValueError("the reward's term of length needs `bands` of stage distil, or `length_weight=0`")
    return read_bands(file, policy, {task.truth.task for task in tasks}) if file else {}


def sft(
    shown: pt.DemonstrationOptions,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    run: pt.Run = pt.Run("runs/emotion-o1-sft", steps=200, tasks=64, lr=1e-5, schedule="cosine", warmup=20),
    held_out: tuple[str, ...] = (),
) -> pt.Session:
    """Learn the chains that stage distil has written: their prompts name the task.

    held_out  chains whose loss is only measured: FILE, or NAME=FILE
    """
    scale.refuse_sampler()
    return pt.sft(model.policy(), shown.demonstrations(), run, held_out=shown.tests(held_out))


# ---- chains of a teacher


def distil(
    utterance: UtteranceOptions,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    output: pt.Output = pt.Output("runs/emotion-o1-chains"),
    teacher: str | None = None,
    candidates: int = 4,
) -> Path:
    """Write OUT/chains.jsonl, a teacher's replies with the right label, and OUT/bands.json, their lengths by task.

    Lengths are in tokens of `model`, the one that will learn.

    teacher     a chat server (http://...), Hub id or folder; the model itself if not given
    candidates  its replies to an utterance, of which the first in form and with the right label is kept
    """
    pt.at_least(1, candidates=candidates)
    policy = replace(model, weights=not teacher).policy()  # of a model that is not asked, the tokenizer is enough
    tasks, out = utterance.tasks(), Path(output.out)
    kept = scale.distil(teacher, model, policy, tasks, right_chain, candidates, output, (CHAINS, BANDS))
    lengths, wanted = chain_lengths(kept, tokens_of(policy)), {task.truth.task for task in tasks}
    if pt.ranks.is_primary():
        print("chains: " + ", ".join(f"{task} {len(lengths.get(task, ()))}" for task in sorted(wanted)))
    bands = fit_bands(lengths, wanted, "give a stronger `teacher`, or more `candidates`")
    if pt.ranks.is_primary():
        write_bands(out / BANDS, bands, policy)
    return out


def right_chain(group: pt.Group) -> Mapping[str, Any] | pt.Invalid:
    """The first reply in form that has the right label."""

    def is_right(one: pt.Rollout) -> bool:
        said = stated(whole_reply(one), one.task.truth.labels)
        return said is not None and said.label == one.task.truth.label

    found, truth = pt.first_kept(group, is_right), group[0].task.truth
    return found if isinstance(found, pt.Invalid) else {"task": truth.task, "label": truth.label, **found}


# ---- evaluation


def evaluate(
    utterance: UtteranceOptions,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    output: pt.Output = pt.Output("runs/emotion-o1-evaluation"),
    samples: int = 1,
) -> Path:
    """A table by task, in OUT/measures.json, and every reply with what it says, in OUT/predictions.jsonl.

    Labels are read loosely, so that a model that was not taught the form is not undersold. Print the row of the
    supervised checkpoint too: gains over an untrained model are mostly those of learning the form.

    samples  replies to an utterance, each of which counts
    """
    pt.at_least(1, samples=samples)
    pt.measure.require_f1()
    policy = model.policy()
    replies, found = scale.evaluate(policy, utterance.tasks(), evaluation(), samples, output)
    tokens = tokens_of(policy)
    predictions = [prediction(one.text, one.task.key, one.task.truth, tokens) for one, _ in found.graded]
    measures = measures_of(predictions)
    replies.write(measures)
    if pt.ranks.is_primary():
        pt.Lines(replies.folder / PREDICTIONS, resume=False).replace(predictions)
        print("\n".join(as_table(measures)))
    return replies.folder


def laptop(
    weights: Weights,
    method: Method = "ppo",
    run: pt.Run = pt.Run("runs/emotion-o1", steps=30, tasks=16, lr=1e-3),
) -> pt.Session:
    """Words that carry a sign: one task needs a look-up and the other six, after a teacher who thinks as long as each.

    method  ppo with a critic, or grpo
    """
    from posttrain.lab.world.signs import Signs
    from posttrain.lab.world.words import base
    from posttrain.systems.emotion_o1 import lab

    world = Signs(run.seed)
    policy = base(world, run.seed, lab.TINY)
    paid = reward(lab.bands(world, policy), tokens_of(policy), weights)
    options = {"kl": lab.KL, "critic_lr": lab.CRITIC_RATE, "epochs": lab.EPOCHS, "evaluation": evaluation()}
    made = recipe(paid, policy, method=method, samples=lab.SAMPLES, **options)
    tests = {name: lab.tasks(world, 48, f"test {name}", kind, **more) for name, (kind, more) in lab.SETS.items()}
    return pt.train(policy, lab.tasks(world, 4000, "training"), made, run, held_out=tests)


STAGES = {"laptop": laptop, "train": train, "distil": distil, "sft": sft, "evaluate": evaluate}
