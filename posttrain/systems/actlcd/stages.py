"""The gate on a checkpoint and data of the user's own: what is learnt, and decoding three ways side by side."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch

from posttrain.cli.options import ModelOptions, RunOptions, TaskOptions, one_of
from posttrain.core import Task
from posttrain.decode.decode import Decoding
from posttrain.evaluation import Evaluation, evaluate
from posttrain.policy.text import TextPolicy
from posttrain.run.directory import Directory, begun, file_hash, read_json, write_json
from posttrain.run.progress import bar
from posttrain.run.session import Session
from posttrain.run.settings import Run
from posttrain.seeding import mix
from posttrain.systems.actlcd.bcq import Bcq
from posttrain.systems.actlcd.checking import Checked, CheckOptions
from posttrain.systems.actlcd.collecting import PIECES, collected, graded_sequences, read_along
from posttrain.systems.actlcd.features import Kind
from posttrain.systems.actlcd.gate import Constant, GatePolicy, Net, stored
from posttrain.systems.actlcd.labels import Transitions, joined
from posttrain.systems.actlcd.learning import rate, trained

Stage: TypeAlias = Literal["train", "decode"]
Row: TypeAlias = dict[str, float]

PENALTIES = (1.0, 1.2)
FIXED = {"greedy": 0.0, "DoLa": 1.0}  # gates that no run changes: how often they contrast
ROWS = len(PENALTIES) * (len(FIXED) + 1)


@dataclass(frozen=True)
class GateOptions:
    """What a gate is and learns from, by --stage train."""

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
    samples: int = 4
    """Reward grader: replies to a task."""


def altered(options: Any, names: Sequence[str] = ()) -> Iterator[tuple[str, Any]]:
    """The options of a group, or those of these names, that were given another value than their own."""
    for one in fields(options):
        value = getattr(options, one.name)
        if value != one.default and (not names or one.name in names):
            yield f"--{one.name.replace('_', '-')}", value


def refuse(
    stage: Stage,
    task: TaskOptions,
    model: ModelOptions,
    learning: GateOptions,
    checking: CheckOptions,
    gate: str | None,
    held_out: str | None,
) -> None:
    """Raises ValueError for an option that would have no effect."""
    if task.image is not None:
        raise ValueError(f"--image {task.image}: a gate decodes text only, with access to the layers of the model")
    for name, value in altered(model, ("temperature", "lora", "checkpointing")):
        raise ValueError(f"{name} {value}: the model is never trained, and says its best token; leave it out")
    if stage == "decode":
        for name, value in [*altered(learning), *([("--held-out", held_out)] if held_out else [])]:
            raise ValueError(f"{name} {value} is an option of --stage train: a gate decodes as it was trained")
        if gate is None:
            raise ValueError("--stage decode needs --gate, the OUT/model of a run that trained one")
    else:
        refuse_in_training(learning, checking, gate, held_out)


def refuse_in_training(learning: GateOptions, checking: CheckOptions, gate: str | None, held_out: str | None) -> None:
    if gate is not None:
        raise ValueError(f"--gate {gate} is an option of --stage decode")
    if learning.samples < 1:
        raise ValueError(f"--samples {learning.samples}: it must be at least 1")
    if learning.reward != "grader":
        for name, value in altered(learning, ("samples",)):
            raise ValueError(f"{name} {value} is an option of --reward grader")
        for name, value in altered(checking) if held_out is None else ():
            raise ValueError(f"{name} {value}: nothing is checked without --held-out or --reward grader")


# ---- learning


def learn(
    speaker: TextPolicy,
    tasks: Sequence[Task],
    tests: Sequence[Task],
    learning: GateOptions,
    checked: Checked,
    run: Run,
) -> tuple[GatePolicy, Session]:
    """Collect into OUT-collected, or take what an interrupted run has there, and learn a gate in OUT.

    Raises ValueError, before any of it, when a task or a test is too long for the model or shows a picture.
    """
    kind = learning.features
    how = Decoding(learning.layers, norm_early=learning.norm_early, penalty=learning.penalty, temperature=0.0)
    mixed = GatePolicy(speaker, Constant(0.5), how, kind)
    mixed.check([*tasks, *tests])
    torch.manual_seed(mix(run.seed, "gate") % 2**32)
    gate = Bcq(mixed.inputs, cloned=learning.learner == "clone")
    policy = GatePolicy(speaker, gate, how, kind, temperature=0.0)
    folder = Path(f"{Path(run.out)}-collected")
    settings = {**run.settings, "seed": run.seed}
    begun(folder, "collected", "what a gate learns from", [one.name for one in folder.glob(PIECES)], settings, run)
    read = partial(read_along, mixed, seed=mix(run.seed, "read"))
    pieces: dict[str, Callable[[Sequence[Task], int], Transitions]] = {"read": lambda some, at: read(some, start=at)}
    if learning.reward == "grader":
        graded = partial(graded_sequences, mixed, checked=checked, samples=learning.samples)
        pieces["graded"] = lambda some, at: graded(some, seed=mix(run.seed, "graded"), start=at)
    found = collected(folder, tasks, pieces, quiet=run.quiet)
    data = found["read"]
    if kind == "values":
        gate.view.fit(data.features)
    if "graded" in found:
        unpaid = replace(data, reward=torch.full_like(data.reward, torch.nan))
        data = joined([unpaid, found["graded"]])
    return policy, trained(policy, gate, data, run)


def loaded_gate(folder: str, speaker: TextPolicy) -> GatePolicy:
    """A gate that a run has saved, over a language model. Raises ValueError when they do not fit."""
    about, tensors = stored(folder)
    kinds = {"Bcq": Bcq, "Net": Net}
    one_of(about["kind"], list(kinds), f"--gate {folder}: a gate of the kind")
    gate = kinds[about["kind"]](about["inputs"], about["hidden"], **about["settings"])
    policy = GatePolicy(speaker, gate, Decoding(**about["decoding"]), about["features"], temperature=0.0)
    if policy.inputs != about["inputs"]:
        raise ValueError(
            f"--gate {folder}: it reads {about['inputs']} features, and this model has {policy.inputs} with the layers "
            f"{policy.how.layers}: it was trained for {about['speaker'] or 'another model'}"
        )
    policy.load_state_dict(tensors)
    return policy


# ---- decoding


def three_ways(
    policy: GatePolicy,
    tasks: Sequence[Task],
    checked: Checked,
    *,
    seed: int = 0,
    known: Container[str] = (),
    watch: Callable[[int], object] = lambda more: None,
) -> Iterator[tuple[str, Row]]:
    """Accuracy and contrast rate of plain greedy, of DoLa, and of the gate, each at every repetition penalty.

    Rows come as they are known; those that are `known` already are left out. `watch` hears how many tasks are done.
    """
    gates = {**{name: Constant(contrast) for name, contrast in FIXED.items()}, "ActLCD": policy.gate}
    for name, gate in gates.items():
        for penalty in PENALTIES:
            row = f"{name}, penalty {penalty:g}"
            if row in known:
                continue
            how = replace(policy.how, penalty=penalty)
            player = GatePolicy(policy.speaker, gate, how, policy.kind, temperature=0.0)
            players = {"policy": player, **checked.others}
            found: Evaluation = evaluate(players, tasks, checked.reward, checked.env, seed=seed, watch=watch)
            yield (
                row,
                {
                    "accuracy": found.reward,
                    "contrast rate": rate([one for group in found.groups for one in group]),
                    "tokens": statistics.fmean(one.decisions for group in found.groups for one in group),
                    "invalid": float(found.invalid),
                },
            )


def table(found: Mapping[str, Mapping[str, float]]) -> str:
    columns = list(next(iter(found.values())))
    lines = [f"{'':22}" + "".join(f"{name:>15}" for name in columns)]
    lines += [f"{name:22}" + "".join(f"{row[c]:15.3f}" for c in columns) for name, row in found.items()]
    return "\n".join(lines)


def decoded_three_ways(
    policy: GatePolicy, tasks: Sequence[Task], checked: Checked, out: Path, *, resume: bool = False, quiet: bool = False
) -> None:
    """Prints the table of `three_ways`; each of its rows is in OUT/decoding.json as soon as it is known.

    On a resume, rows of gates that no run changes are taken from there.
    """
    path = out / "decoding.json"
    found: dict[str, Any] = {}
    if resume and path.is_file():
        found = {name: row for name, row in read_json(path).items() if name.partition(",")[0] in FIXED}
    write_json(path, found)
    try:
        with bar("decoding", ROWS * len(tasks), quiet) as done:
            done(len(found) * len(tasks))
            for name, row in three_ways(policy, tasks, checked, known=found, watch=done):
                found[name] = row
                write_json(path, found)
    except KeyboardInterrupt as stop:
        stop.add_note(f"the rows so far are in {path}; continue with the same command and --resume")
        raise
    print(table(found))
    if not any(row["accuracy"] for row in found.values()):
        print(
            "warning: not one reply was right, greedy ones included: look at what --check or --grade takes for the "
            "answer, and at --max-new",
            file=sys.stderr,
        )


def decode(
    policy: GatePolicy, tasks: Sequence[Task], checked: Checked, gate: str, run: RunOptions, **settings: Any
) -> None:
    """Decode with a gate of another run, in a directory of its own. Raises ValueError where that is the gate's."""
    out = Path(run.out)
    if Path(gate).resolve().is_relative_to(out.resolve()):
        raise ValueError(f"--out {out}: it holds the --gate, which stays as it is; give another --out")
    made = run.run(**settings, gate=gate, gate_sha256=file_hash(Path(gate) / "model.safetensors"))
    Directory(out).prepare({"kind": "decode", "run": made}, made)
    decoded_three_ways(policy, tasks, checked, out, resume=run.resume, quiet=run.quiet)
