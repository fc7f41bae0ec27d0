"""The session of a run: keeps its directory, checkpoints and progress in step with the training.

OUT/run.json          every setting, versions, git revision, data hash
OUT/metrics.jsonl     one line per step
OUT/rollouts/         every prompt, reply, reward and its parts, per-token log-probability and advantage
OUT/checkpoints/      what a resume needs
OUT/model/            the trained model, in the format that others load
OUT/best/             the best of the run by a held-out measure, where `run.keep_best` names one
OUT/report.html       written at the end and by `posttrain show`
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch

from posttrain import ranks
from posttrain.core import SMALL_MODEL, Metrics, Policy, Sampler, Stateful, Task
from posttrain.evaluation import evaluate
from posttrain.group import ScoredRollout
from posttrain.policy.text import TextPolicy
from posttrain.recipe import Recipe
from posttrain.run.best import Best
from posttrain.run.checkpoint import Checkpoints, types_in
from posttrain.run.directory import Directory, write_json
from posttrain.run.drawing import draw_shown
from posttrain.run.memory import Watch, stateful_parts
from posttrain.run.progress import Progress, alarms
from posttrain.run.rollouts import write_rollouts
from posttrain.run.settings import Run
from posttrain.run.track import trackers
from posttrain.sampler.weights import Engine, collect_weights, probe_of, synchronise
from posttrain.scale.place import distribute
from posttrain.seeding import mix, seed_everything
from posttrain.stream import ShuffledSource, Source

HeldOut: TypeAlias = Sequence[Any] | Mapping[str, Sequence[Any]]  # one set of tasks (or rows, or pairs), or several

RATES = {"train": 1e-6, "sft": 1e-5, "prefer": 1e-6, "reward-model": 1e-5}  # for pretrained models, by kind of run
SMALL_RATE, LORA_FACTOR = 3e-4, 10.0
SAMPLED = 1000  # items whose types a checkpoint may hold, when groups of them are under way
SIGNALS = (signal.SIGINT, signal.SIGTERM)
LORA_SIZE = 3e9  # parameters, below which an adapter learns faster the smaller the model (docs/policies.md)


class Terminated(KeyboardInterrupt):
    """SIGTERM, with which Slurm and Kubernetes end a job, did what Ctrl-C does."""

    exit_code = 128 + signal.SIGTERM


class DryRun(Exception):
    """Raised in place of the first step of a run with `dry_run`; nothing has been written.

    It carries the session, or those of all phases of a curriculum.
    """

    def __init__(self, *sessions: Session):
        super().__init__("a dry run takes no step")
        self.sessions = sessions


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
        held_out: HeldOut = (),
        measure: Callable[[Sequence[Any]], Metrics] | None = None,
        kind: str = "train",
        settings: Mapping[str, Any] | None = None,
        memory: Mapping[str, Stateful] | None = None,
        sampler: Sampler | None = None,
        reference: Policy | None = None,
    ):
        self.measure = measure or self.reward_and_length  # of a held-out set
        self.memory = memory or {}  # more that checkpoints must hold
        self.sampler = sampler  # plays in the policy's place; an engine is given the policy's weights before it does
        self.reference = reference  # a frozen policy that losses compare with, where no recipe names it
        self.probe: tuple[tuple[int, ...], ...] | None = None
        self.run, self.policy, self.recipe = run, policy, recipe
        self.held_out = {"": held_out} if isinstance(held_out, Sequence) else dict(held_out)
        self.settings = settings or {}
        self.source: Source = ShuffledSource(items, run.seed) if isinstance(items, Sequence) else items
        self.directory = Directory(Path(run.out))
        self.checkpoints = Checkpoints(self.directory.checkpoints, run.keep)
        truths = [item.truth for item in self.source.items[:SAMPLED] if isinstance(item, Task)]
        self.checkpoints.known = frozenset(types_in(truths))
        self.kind, self.step = kind, 0
        if run.keep_best and not self.tests:
            raise ValueError(f"`keep_best={run.keep_best}` is measured on held-out tasks: give `held_out`")
        self.best: Best | None = None
        self.micro_tokens = run.micro_tokens  # less once memory has run out
        self.history: list[Metrics] = []
        self.found: Metrics = {}
        self.clock, self.interrupted = time.perf_counter(), False
        self.stop: type[BaseException] = KeyboardInterrupt  # what ends a run that was interrupted
        self.alarm: threading.Timer | None = None  # at the end of a SIGTERM's grace
        self.seconds_save = 0.0  # that the last checkpoint took
        self.handlers: dict[int, Any] = {}  # of signals, before ours
        policy.check([item for item in [*self.tests, *self.source.items] if isinstance(item, Task)])
        self.lr = run.lr if run.lr is not None else default_rate(policy, kind)
        if not run.dry_run:
            distribute(policy, recipe, reference)
        parameters = list(policy.parameters())
        self.optimizer = torch.optim.AdamW(parameters, lr=self.lr, weight_decay=run.weight_decay, fused=True)
        if run.dry_run:
            raise DryRun(self)

    @property
    def tests(self) -> list[Any]:
        """The held-out items of all sets."""
        return [item for items in self.held_out.values() for item in items]

    @property
    def seed(self) -> int:
        """Of the step that is being taken."""
        return mix(self.run.seed, self.step)

    def stateful_parts(self) -> dict[str, Any]:
        """Everything besides the policy and the optimizer that a checkpoint must hold."""
        return {"source": self.source, **stateful_parts(self.recipe), **self.memory}

    def __enter__(self) -> Session:
        with ExitStack() as stack:
            lock = self.directory.locked()
            ranks.run_on_primary(lambda: stack.enter_context(lock), "for the lock on the run's directory")
            self.open()
            self.held = stack.pop_all()
        return self

    def open(self) -> None:
        """Prepare the directory, restore what a resumed run left, and listen for signals."""
        settings = {"kind": self.kind, "lr": self.lr, "run": self.run, "recipe": self.recipe, **self.settings}
        ranks.run_on_primary(lambda: self.directory.prepare(settings, self.run), "for the run's directory")
        state = self.checkpoints.latest() if self.run.resume else None
        if state:
            self.step = self.checkpoints.restore(state, self.policy, self.optimizer, self.stateful_parts())
        if self.engine:
            self.engine.version = -1  # whatever it has was not sent by this session
        self.history = ranks.run_on_primary(lambda: self.directory.truncate(self.step), "for the run's metrics")
        self.best = Best(self.run.keep_best, self.history) if self.run.keep_best else None
        self.trackers = trackers(self.run.track, self.directory.path) if ranks.is_primary() else []
        self.progress = Progress(
            self.run if ranks.is_primary() else replace(self.run, quiet=True), self.step
        ).__enter__()
        self.watch = Watch(self.recipe)
        if in_main_thread():
            self.handlers = {number: signal.signal(number, self.interrupt) for number in SIGNALS}

    def interrupt(self, number: int, _: Any) -> None:
        """Ctrl-C, or a scheduler's SIGTERM: the step is finished; asked for again, it is left."""
        self.stop = Terminated if number == signal.SIGTERM else KeyboardInterrupt
        if self.interrupted:
            raise self.stop
        self.interrupted = True
        again = "" if number == signal.SIGTERM else "; press Ctrl-C again to stop at once"
        if number == signal.SIGTERM and self.run.grace_s is not None:
            left = max(self.run.grace_s - 2 * self.seconds_save, 0.001)
            self.alarm = threading.Timer(left, os.kill, (os.getpid(), signal.SIGTERM))
            self.alarm.daemon = True
            self.alarm.start()
            again = f", or leaving it after {left:.0f} s"
        self.progress.say(f"finishing the step, then saving{again}")

    def quiet_alarm(self) -> None:
        """The step is over, or left: nobody is waited for any more."""
        if self.alarm:
            self.alarm.cancel()

    def __iter__(self) -> Iterator[int]:
        while self.step < self.run.steps:
            for group in self.optimizer.param_groups:
                group["lr"] = self.run.rate(self.step, self.lr)
            self.found = self.synchronise_engine()
            self.found |= self.evaluate_held_out() if self.evaluation_due(self.step) else {}
            if self.exhausted:
                self.run_out()
                return
            seed_everything(mix(self.run.seed, "step", self.step))  # for users' code; ours draws by counters
            self.clock = time.perf_counter()
            yield self.step
            if any(ranks.all_gather(self.interrupted, "at the end of a step")):
                self.quiet_alarm()
                self.save()
                raise self.stop
        if self.checkpoints.step != self.step:
            self.save()

    def log(self, metrics: Metrics, played: Sequence[ScoredRollout] = ()) -> None:
        """Close a step: its metrics, its rollouts, an evaluation and a checkpoint when they are due."""
        seconds = time.perf_counter() - self.clock
        line = {"step": self.step, **metrics, "lr": self.optimizer.param_groups[0]["lr"], "seconds": seconds}
        if "decisions" in metrics:
            line["decisions_per_s"] = metrics["decisions"] / seconds
        if ranks.is_primary():
            draw = (self.recipe.draw if self.recipe else None) or draw_shown
            write_rollouts(self.directory.rollouts, self.step, self.policy, played, draw)
        self.step += 1
        if self.step == self.run.steps and self.tests:
            self.synchronise_engine()
            self.found |= self.evaluate_held_out()
        line |= self.found
        self.history.append(line)
        if ranks.is_primary():
            self.directory.append_metrics(line)
        for tracker in self.trackers:
            tracker.log(line)
        self.progress.step(line, played)
        for warning in alarms(self.history):
            self.progress.say(warning)
        if self.step % self.run.save_interval == 0 and self.step < self.run.steps:
            self.save()

    @property
    def exhausted(self) -> bool:
        """The last `patience` evaluations were not better than one before."""
        return self.best is not None and self.run.patience is not None and self.best.since >= self.run.patience

    def run_out(self) -> None:
        """End a run that no longer gets better."""
        assert self.best is not None
        self.progress.say(
            f"stopped before step {self.step + 1}: {self.best.name} was {self.best.value:.4g} and not better in "
            f"{self.best.since} evaluations; {self.directory.best} has that model"
        )
        if self.checkpoints.step != self.step:
            self.save()

    def evaluation_due(self, step: int) -> bool:
        return bool(self.tests) and (step % self.run.eval_every == 0 if self.run.eval_every else step == 0)

    def evaluate_held_out(self) -> Metrics:
        """What is measured of each held-out set under the current policy, by the set's name."""
        seed_everything(mix(self.run.seed, "held out"))  # for users' code
        found = {
            f"held_out/{name}/{key}" if name else f"held_out/{key}": value
            for name, items in self.held_out.items()
            for key, value in self.measure(items).items()
        }
        if self.best is not None and self.best.add(found):
            self.directory.export(self.policy, self.directory.best)
            about = {"measure": self.best.name, "value": self.best.value, "step": self.step}
            ranks.run_on_primary(lambda: write_json(self.directory.about_best, about), "for the best model's name")
        return found

    def reward_and_length(self, tasks: Sequence[Task]) -> Metrics:
        """The means over held-out tasks."""
        assert self.recipe is not None
        players = {"policy": self.engine or self.policy, **self.recipe.others}
        reward = self.recipe.evaluation or self.recipe.reward
        options: dict[str, Any] = {"seed": mix(self.run.seed, "held out"), "temperature": self.run.eval_temperature}
        found = evaluate(players, tasks, reward, self.recipe.env, **options)
        return {"reward": found.reward, "length": found.length}

    @property
    def engine(self) -> Engine | None:
        """The sampler, if it takes the policy's weights."""
        return self.sampler if isinstance(self.sampler, Engine) else None

    def synchronise_engine(self) -> Metrics:
        """Give an engine the policy's weights, if it has others. Raises SyncError when it has not taken them."""
        engine, policy = self.engine, cast("TextPolicy", self.policy)
        if engine is None or engine.version == policy.version:
            return {}
        if self.probe is None:
            self.probe = probe_of(policy, [task for task in self.source.items if isinstance(task, Task)])
        clock = time.perf_counter()
        weights = collect_weights(policy, self.probe, engine.merged)
        metrics = ranks.run_on_primary(lambda: synchronise(engine, weights), "for the engine to take the weights")
        engine.version = policy.version
        return metrics | {"seconds_sync": time.perf_counter() - clock}

    def save(self) -> None:
        for warning in self.watch.warnings():
            self.progress.say(f"warning: {warning}")
        clock = time.perf_counter()
        self.checkpoints.save(self.step, self.policy, self.optimizer, self.stateful_parts())
        self.seconds_save = time.perf_counter() - clock

    def __exit__(self, kind: type | None, error: BaseException | None, _: Any) -> None:
        try:
            self.quiet_alarm()
            if in_main_thread():
                for number, handler in self.handlers.items():
                    signal.signal(number, handler)
            for tracker in self.trackers:
                tracker.close()
            self.progress.__exit__(None, None, None)
            if kind is None:
                self.directory.export(self.policy)
            elif issubclass(kind, SystemExit):  # it would end the run as if it were done
                raise RuntimeError(f"a part of the recipe raised {error!r}") from error
            elif issubclass(kind, KeyboardInterrupt):
                assert error is not None
                error.add_note(
                    f"stopped after step {self.checkpoints.step}; continue with the same command and `resume=True`"
                )
        finally:
            self.held.close()


def default_rate(policy: Policy, kind: str) -> float:
    """The learning rate of AdamW when none is given: gentle for pretrained models, ten times that or more with LoRA."""
    trained = sum(p.numel() for p in policy.parameters())
    model = getattr(policy, "model", None)
    whole = sum(p.numel() for p in model.parameters()) if model is not None else trained
    if whole < SMALL_MODEL:
        return SMALL_RATE
    if trained >= whole / 2:
        return RATES[kind]
    return min(RATES[kind] * LORA_FACTOR * max(LORA_SIZE / whole, 1.0), SMALL_RATE)


def in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
