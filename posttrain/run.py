"""A run: its settings, its directory, and the session that keeps both in step with the training.

OUT/run.json          every setting, versions, git revision, data hash
OUT/metrics.jsonl     one line per step
OUT/rollouts/         every prompt, reply, reward and its parts, per-token log-probability and advantage
OUT/checkpoints/      what a resume needs
OUT/model/            the trained model, in the format that others load
OUT/report.html       written at the end and by `posttrain show`
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from posttrain import ranks
from posttrain.checkpoint import Checkpoints, stateful
from posttrain.core import SMALL_MODEL, Metrics, Policy, Sampler, Stateful, Task
from posttrain.directory import Directory
from posttrain.progress import Progress, alarms
from posttrain.seeding import mix, seed_everything
from posttrain.stream import Shuffled, Source
from posttrain.track import check_trackers, trackers

if TYPE_CHECKING:
    from posttrain.policy.text import TextPolicy
    from posttrain.recipe import Recipe
    from posttrain.sampler.weights import Engine
    from posttrain.step import Played

RATES = {"train": 1e-6, "sft": 1e-5, "prefer": 1e-6, "reward-model": 1e-5}  # for pretrained models, by kind of run
SMALL_RATE, LORA_FACTOR = 3e-4, 10.0


@dataclass(frozen=True, slots=True)
class Run:
    """How long, how fast and where. What is learned stands in the `Recipe`."""

    out: str | Path
    steps: int = 100
    tasks: int = 16  # per step
    lr: float | None = None  # None: see `default_rate`
    warmup: int = 0  # steps over which the learning rate rises
    schedule: str = "constant"  # constant, linear or cosine, down to zero at the last step
    weight_decay: float = 0.0
    max_norm: float = 1.0  # of the gradient
    micro_tokens: int = 16384  # tokens in one forward and backward pass: memory, never the gradient
    seed: int = 0
    save_every: int | None = None  # steps between checkpoints; None: a twentieth of the run
    keep: int = 2  # checkpoints kept
    eval_every: int = 0  # steps between evaluations of the held-out tasks; 0: before the first step and after the last
    resume: bool = False
    overwrite: bool = False  # delete another run that is in the directory
    track: tuple[str, ...] = ()  # tensorboard, wandb, trackio, mlflow
    quiet: bool = False
    settings: dict[str, Any] = field(default_factory=dict)  # more to be written to run.json

    def __post_init__(self):
        for name in ("steps", "tasks", "micro_tokens", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"Run({name}={getattr(self, name)}): it must be at least 1")
        for name in ("warmup", "eval_every", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"Run({name}={getattr(self, name)}): it must not be negative")
        if not self.max_norm > 0:
            raise ValueError(f"Run(max_norm={self.max_norm}): it must be above 0; inf clips nothing")
        if self.save_every is not None and self.save_every < 1:
            raise ValueError(f"Run(save_every={self.save_every}): it must be at least 1")
        check_trackers(self.track)
        if self.schedule not in SCHEDULES:
            raise ValueError(f"Run(schedule={self.schedule!r}): the schedules are {', '.join(SCHEDULES)}")

    def rate(self, step: int, peak: float) -> float:
        """The learning rate of a step, counted from 0."""
        rise = min((step + 1) / self.warmup, 1.0) if self.warmup else 1.0
        left = 1 - max(step - self.warmup, 0) / max(self.steps - self.warmup, 1)
        return peak * rise * SCHEDULES[self.schedule](left)

    @property
    def saves(self) -> int:
        return self.save_every or max(self.steps // 20, 1)


SCHEDULES = {
    "constant": lambda left: 1.0,
    "linear": lambda left: left,
    "cosine": lambda left: 0.5 - 0.5 * math.cos(math.pi * left),
}


class Session:
    """A run while it happens. Iterate over it for the numbers of the steps still to do, and `log` each of them.

        with Session(run, policy, tasks, recipe) as session:
            for number in session:
                ...
                session.log(metrics, played)

    On entry it prepares the directory and, on `resume`, restores the last checkpoint: model, optimizer, source of
    tasks and whatever the recipe remembers. Ctrl-C lets the step finish, saves, and raises KeyboardInterrupt.
    """

    def __init__(
        self,
        run: Run,
        policy: Policy,
        items: Sequence[Any] | Source,
        recipe: Recipe | None = None,
        *,
        held_out: Sequence[Task] = (),
        kind: str = "train",
        settings: Mapping[str, Any] | None = None,
        memory: Mapping[str, Stateful] | None = None,
        sampler: Sampler | None = None,
        reference: Policy | None = None,
    ):
        self.memory = memory or {}  # more that checkpoints must hold
        self.sampler = sampler  # plays in the policy's place; an engine is given the policy's weights before it does
        self.reference = reference  # a frozen policy that losses compare with, where no recipe names it
        self.probe: tuple[tuple[int, ...], ...] | None = None
        self.run, self.policy, self.recipe, self.held_out = run, policy, recipe, held_out
        self.settings = settings or {}
        self.source: Source = Shuffled(items, run.seed) if isinstance(items, Sequence) else items
        parameters = list(policy.parameters())
        self.lr = run.lr if run.lr is not None else default_rate(policy, kind)
        self.optimizer = torch.optim.AdamW(parameters, lr=self.lr, weight_decay=run.weight_decay, fused=True)
        self.directory = Directory(Path(run.out))
        self.checkpoints = Checkpoints(self.directory.checkpoints, run.keep)
        self.kind, self.step = kind, 0
        self.micro_tokens = run.micro_tokens  # less once memory has run out
        self.history: list[Metrics] = []
        self.found: Metrics = {}
        self.clock, self.interrupted = time.perf_counter(), False
        policy.check([item for item in (*held_out, *getattr(self.source, "items", ())) if isinstance(item, Task)])

    @property
    def seed(self) -> int:
        """Of the step that is being taken."""
        return mix(self.run.seed, self.step)

    def remembering(self) -> dict[str, Any]:
        """Everything besides the policy and the optimizer that a checkpoint must hold."""
        return {"source": self.source, **stateful(self.recipe), **self.memory}

    def __enter__(self) -> Session:
        settings = {"kind": self.kind, "lr": self.lr, "recipe": self.recipe, "run": self.run, **self.settings}
        ranks.first(lambda: self.directory.prepare(settings, self.run), "for the run's directory")
        state = self.checkpoints.latest() if self.run.resume else None
        if state:
            self.step = self.checkpoints.restore(state, self.policy, self.optimizer, self.remembering())
        self.history = ranks.first(lambda: self.directory.truncate(self.step), "for the run's metrics")
        self.trackers = trackers(self.run.track, self.directory) if ranks.primary() else []
        self.progress = Progress(self.run if ranks.primary() else replace(self.run, quiet=True), self.step).__enter__()
        self.handler = signal.getsignal(signal.SIGINT)
        if in_main_thread():
            signal.signal(signal.SIGINT, self.interrupt)
        return self

    def interrupt(self, *_: Any) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
        self.progress.say("finishing the step, then saving; press Ctrl-C again to stop at once")

    def __iter__(self) -> Iterator[int]:
        while self.step < self.run.steps:
            for group in self.optimizer.param_groups:
                group["lr"] = self.run.rate(self.step, self.lr)
            self.found = self.synchronised()
            self.found |= self.evaluated() if self.due(self.step) else {}
            seed_everything(mix(self.run.seed, "step", self.step))  # for users' code; ours draws by counters
            self.clock = time.perf_counter()
            yield self.step
            if any(ranks.everyone(self.interrupted, "at the end of a step")):
                self.save()
                raise KeyboardInterrupt
        if self.checkpoints.step != self.step:
            self.save()

    def log(self, metrics: Metrics, played: Sequence[Played] = ()) -> None:
        """Close a step: its metrics, its rollouts, an evaluation and a checkpoint when they are due."""
        seconds = time.perf_counter() - self.clock
        line = {"step": self.step, **metrics, "lr": self.optimizer.param_groups[0]["lr"], "seconds": seconds}
        if "decisions" in metrics:
            line["decisions_per_s"] = metrics["decisions"] / seconds
        if ranks.primary():
            self.directory.write_rollouts(self.step, self.policy, played)
        self.step += 1
        if self.step == self.run.steps and self.held_out:
            self.synchronised()
            self.found |= self.evaluated()
        line |= self.found
        self.history.append(line)
        if ranks.primary():
            self.directory.append_metrics(line)
        for tracker in self.trackers:
            tracker.log(line)
        self.progress.step(line, played)
        for warning in alarms(self.history):
            self.progress.say(warning)
        if self.step % self.run.saves == 0 and self.step < self.run.steps:
            self.save()

    def due(self, step: int) -> bool:
        return bool(self.held_out) and (step % self.run.eval_every == 0 if self.run.eval_every else step == 0)

    def evaluated(self) -> Metrics:
        """The held-out tasks under the policy as it is: before the step, and once more after the last."""
        from posttrain.evaluation import evaluate

        assert self.recipe is not None
        players = {"policy": self.engine or self.policy, **self.recipe.others}
        found = evaluate(
            players,
            self.held_out,
            self.recipe.evaluation or self.recipe.reward,
            self.recipe.env,
            seed=mix(self.run.seed, "held out"),
        )
        return {"held_out/reward": found.reward, "held_out/length": found.length}

    @property
    def engine(self) -> Engine | None:
        """The sampler, if it takes the policy's weights."""
        return cast("Engine", self.sampler) if hasattr(self.sampler, "load") else None

    def synchronised(self) -> Metrics:
        """Give an engine the policy's weights, if it has others. Raises SyncError when it has not taken them."""
        engine, policy = self.engine, cast("TextPolicy", self.policy)
        if engine is None or engine.version == policy.version:
            return {}
        from posttrain.sampler.weights import probe_of, published, synchronise

        if self.probe is None:
            self.probe = probe_of(
                policy, [task for task in getattr(self.source, "items", ()) if isinstance(task, Task)]
            )
        clock = time.perf_counter()
        weights = published(policy, self.probe, engine.merged)
        metrics = ranks.first(lambda: synchronise(engine, weights), "for the engine to take the weights")
        engine.version = policy.version
        return metrics | {"seconds_sync": time.perf_counter() - clock}

    def save(self) -> None:
        self.checkpoints.save(self.step, self.policy, self.optimizer, self.remembering())

    def __exit__(self, kind: type | None, error: BaseException | None, _: Any) -> None:
        if in_main_thread():
            signal.signal(signal.SIGINT, self.handler)
        for tracker in self.trackers:
            tracker.close()
        self.progress.__exit__(None, None, None)
        if kind is None:
            self.directory.export(self.policy)
        elif issubclass(kind, KeyboardInterrupt):
            assert error is not None
            error.add_note(f"stopped after step {self.checkpoints.step}; continue with the same command and --resume")


def default_rate(policy: Policy, kind: str) -> float:
    """The learning rate of AdamW when none is given: gentle for pretrained models, ten times that under LoRA."""
    trained = sum(p.numel() for p in policy.parameters())
    model = getattr(policy, "model", None)
    whole = sum(p.numel() for p in model.parameters()) if model is not None else trained
    if whole < SMALL_MODEL:
        return SMALL_RATE
    return RATES[kind] * (LORA_FACTOR if trained < whole / 2 else 1.0)


def in_main_thread() -> bool:
    import threading

    return threading.current_thread() is threading.main_thread()
