"""Several trainings of one policy, one after another: a curriculum of phases, each a run of its own.

OUT/run.json        the settings of all phases, which a resumed curriculum must share
OUT/1-text/         the first phase, a run directory: metrics, rollouts, checkpoints, report
OUT/2-captioned/    the second, from the weights that the first ended with
OUT/metrics.jsonl   of the finished phases, end to end
OUT/model/          the trained model, in the format that others load
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from posttrain import ranks, step
from posttrain.core import Metrics, Policy, Task
from posttrain.recipe import Recipe
from posttrain.run.directory import Directory, read_metrics
from posttrain.run.lines import Lines
from posttrain.run.session import DryRun, HeldOut, Session
from posttrain.run.settings import Run
from posttrain.scale.place import place
from posttrain.stream import Source


@dataclass(frozen=True, slots=True)
class Phase:
    """One of several trainings.

    name    in letters, digits, - and _: its folder has it
    recipe  made from the policy as it is when the phase begins; a reference that is copied there is the phase's start
            (under LoRA it is the model without its adapter, in every phase)
    lr      learning rate; the run's if not given
    """

    name: str
    tasks: Sequence[Any] | Source
    recipe: Callable[[Any], Recipe]
    steps: int
    lr: float | None = None

    def __post_init__(self):
        if not re.fullmatch(r"[\w-]+", self.name):
            raise ValueError(f"a phase is named {self.name!r}: take letters, digits, - and _")
        if self.steps < 1:
            raise ValueError(f"the phase {self.name!r} has {self.steps} steps: it needs at least 1")
        if isinstance(self.tasks, Sequence) and not self.tasks:
            raise ValueError(f"the phase {self.name!r} has nothing to train on: its list of tasks is empty")


def train_phases(
    policy: Policy,
    phases: Sequence[Phase],
    run: Run,
    train: Callable[..., Session] = step.train,
    *,
    held_out: HeldOut = (),
) -> Path:
    """Train a policy phase by phase, each from the weights of the one before; returns the folder of the curriculum.

    Nothing but the weights is carried over: the optimizer, the schedule of the learning rate and the count of steps
    begin anew. Phases have their own numbers of steps, and `run.steps` is not read. `train` is `posttrain.train` or
    `ScaleOptions.train`. `held_out` is evaluated in every phase.
    With `run.resume` a finished phase only loads its last checkpoint, and the one that was interrupted goes on.
    Raises ValueError, before anything is trained, for phases without a name of their own or with tasks that the policy
    cannot take, and on a resume for settings that differ from those that the curriculum was started with.
    """
    if place.building:  # a player of a cluster, which is there for one phase
        phase = phases[place.phase]
        train(policy, phase.tasks, phase.recipe(policy), run_of(run, phase, Path(run.out)), held_out=held_out)
    check(policy, phases)
    out = Directory(Path(run.out))
    folders = [out.path / f"{number}-{phase.name}" for number, phase in enumerate(phases, 1)]
    if run.dry_run:
        raise DryRun(*planned_sessions(policy, phases, folders, run, train, held_out))
    with ExitStack() as stack:
        ranks.run_on_primary(lambda: stack.enter_context(out.locked()), "for the lock on the curriculum's directory")
        ranks.run_on_primary(lambda: prepare(out, folders, phases, run), "for the curriculum's directory")
        for number, phase in enumerate(phases):
            place.phase, policy.version = number, 0
            train(policy, phase.tasks, phase.recipe(policy), run_of(run, phase, folders[number]), held_out=held_out)
            done = folders[: number + 1]
            ranks.run_on_primary(lambda done=done: Lines(out.metrics).replace(all_metrics(done)), "for the metrics")
        out.export(policy)
    return out.path


def check(policy: Policy, phases: Sequence[Phase]) -> None:
    """Raises ValueError for phases that cannot all be trained."""
    if not phases:
        raise ValueError("a curriculum needs at least one phase")
    names = [phase.name for phase in phases]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"two phases are named {twice[0]!r}: each needs a name of its own")
    for phase in phases:
        items = phase.tasks if isinstance(phase.tasks, Sequence) else phase.tasks.items
        try:
            policy.check([item for item in items if isinstance(item, Task)])
        except ValueError as error:
            raise ValueError(f"the phase {phase.name!r}: {error}") from error


def run_of(run: Run, phase: Phase, folder: Path) -> Run:
    """The settings of one phase. Its folder was emptied already if the curriculum replaces another."""
    lr = run.lr if phase.lr is None else phase.lr
    return replace(run, out=folder, steps=phase.steps, lr=lr, overwrite=False)


def planned_sessions(
    policy: Policy,
    phases: Sequence[Phase],
    folders: Sequence[Path],
    run: Run,
    train: Callable[..., Session],
    held_out: HeldOut,
) -> Iterator[Session]:
    """The session of every phase, before its first step."""
    for phase, folder in zip(phases, folders, strict=True):
        try:
            train(policy, phase.tasks, phase.recipe(policy), run_of(run, phase, folder), held_out=held_out)
        except DryRun as planned:
            yield from planned.sessions


def prepare(out: Directory, folders: Sequence[Path], phases: Sequence[Phase], run: Run) -> None:
    """Write run.json; where another curriculum is replaced, empty the folders of its phases."""
    steps = {phase.name: {"steps": phase.steps, "lr": phase.lr} for phase in phases}
    whole = replace(run, steps=sum(phase.steps for phase in phases))
    out.prepare({"kind": "phases", "run": whole, "phases": steps, "order": [*steps]}, run)
    if run.overwrite and not run.resume:
        for folder in folders:
            Directory(folder).clear()


def all_metrics(folders: Sequence[Path]) -> list[Metrics]:
    """The metrics of some phases end to end: steps are counted on, and `phase` counts from 1."""
    found: list[Metrics] = []
    for number, folder in enumerate(folders, 1):
        start = len(found)
        found += [{**line, "step": start + line["step"], "phase": number} for line in read_metrics(folder)]
    return found
