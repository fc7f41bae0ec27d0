"""The settings of a run: how long, how fast and where to. What is learned stands in the `Recipe`."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Suppress

TRACKERS = ("tensorboard", "wandb", "trackio", "mlflow")
SCHEDULES = {
    "constant": lambda left: 1.0,
    "linear": lambda left: left,
    "cosine": lambda left: 0.5 - 0.5 * math.cos(math.pi * left),
}
LEAST = {
    "steps": 1, "tasks": 1, "micro_tokens": 1, "keep": 1, "save_every": 1,
    "patience": 1, "warmup": 0, "eval_every": 0, "weight_decay": 0, "eval_temperature": 0, "lr": 0, "grace_s": 0,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Run:
    """How long, how fast, and where to."""

    out: str | Path
    """Run directory, created if it does not exist."""
    steps: int = 100
    """Steps to take."""
    tasks: int = 16
    """Tasks (or demonstrations, or pairs) in a step."""
    lr: float | None = None
    """Learning rate. If not given: 3e-4 for models under 10 M parameters; above, 1e-6 (sft and reward models 1e-5). Ten
    times that under LoRA, and more for models under 3 B: times 3 B over their parameters, to at most 3e-4."""
    warmup: int = 0
    """Steps over which the learning rate rises."""
    schedule: str = "constant"
    """constant, or linear or cosine, which fall to zero at the last step."""
    weight_decay: float = 0.0
    """Of AdamW."""
    max_norm: float = 1.0
    """Largest norm of the gradient; inf clips nothing."""
    micro_tokens: int = 16384
    """Tokens in one forward and backward pass: changes memory, never the gradient."""
    seed: int = 0
    """Of every random draw of the run."""
    save_every: int | None = None
    """Steps between checkpoints; a twentieth of the run if not given."""
    keep: int = 2
    """Checkpoints kept."""
    eval_every: int = 0
    """Steps between evaluations of the held-out tasks; before the first step and after the last if not given."""
    eval_temperature: float | None = None
    """Sampling temperature of these evaluations, 0 is greedy; the training temperature if not given."""
    keep_best: str | None = None
    """A held-out measure, such as reward (or SET/reward): whenever it is better than before, the model is kept in
    OUT/best. A loss is better when it is less."""
    patience: int | None = None
    """Stop after so many evaluations in a row that were not better than the best before."""
    resume: bool = False
    """Continue the run in `out` exactly where its last checkpoint left it."""
    overwrite: bool = False
    """Replace the run in `out`."""
    track: tuple[str, ...] = ()
    """Experiment trackers: tensorboard, wandb, trackio, mlflow."""
    grace_s: float | None = None
    """Seconds from SIGTERM until the scheduler kills: a step that takes longer is left, and resumed from the checkpoint
    before it. If not given, the step is finished."""
    quiet: bool = False
    """Print no progress."""
    dry_run: bool = False
    """Print the plan (what is read, tokens, memory, steps) and stop."""
    settings: Annotated[dict[str, Any], Suppress] = field(default_factory=dict)
    """More settings for run.json, which a resumed run must share. The command line puts its own options here."""
    command: Annotated[tuple[str, ...], Suppress] = ()
    """The words of the command line, for `--from run.json`."""

    def __post_init__(self):
        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise ValueError(f"`{name}={value}`: it must be at least {least}")
        if not self.max_norm > 0:
            raise ValueError(f"`max_norm={self.max_norm}`: it must be above 0; inf clips nothing")
        if self.patience is not None and self.keep_best is None:
            raise ValueError(f"`patience={self.patience}`: it waits for `keep_best`, so name a measure: reward")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"`schedule={self.schedule}`: the schedules are {', '.join(SCHEDULES)}")
        for name in self.track:
            if name not in TRACKERS:
                raise ValueError(f"`track={name}`: unknown, the choices are {', '.join(TRACKERS)}")
            if importlib.util.find_spec(name) is None:
                raise ValueError(f"`track={name}` needs the extra: pip install 'posttrain[{name}]'")

    def rate(self, step: int, peak: float) -> float:
        """The learning rate of a step, counted from 0."""
        rise = min((step + 1) / self.warmup, 1.0) if self.warmup else 1.0
        left = 1 - max(step - self.warmup, 0) / max(self.steps - self.warmup, 1)
        return peak * rise * SCHEDULES[self.schedule](left)

    @property
    def save_interval(self) -> int:
        """Steps between checkpoints."""
        return self.save_every or max(self.steps // 20, 1)


@dataclass(frozen=True, slots=True)
class Output:
    """Where work that is not a training run writes, and how it is taken up again."""

    out: str | Path
    """Folder, created if it does not exist."""
    seed: int = 0
    """Of every random draw."""
    resume: bool = False
    """Continue what an interrupted run left in `out`."""
    overwrite: bool = False
    """Replace what is in `out`."""
    quiet: bool = False
    """Print no progress."""
    settings: Annotated[dict[str, Any], Suppress] = field(default_factory=dict)
    """More settings, which a resume must share. The command line puts its own options here."""
