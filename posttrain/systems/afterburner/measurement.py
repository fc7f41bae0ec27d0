"""How fast and how light code is: executed in the sandbox, and set against what people wrote.

Seconds are CPU seconds of the thread, memory is the peak of what Python allocated, in KiB; both are in these units
everywhere. (The release has milliseconds in its data, and over them a cap of 90 seconds, written as 90.) The integral
is seconds times peak; the release sums the peak so far over samples, whose number depends on the sampler's speed.

Work done while code is loaded counts too, beyond what may be noise: a table made ahead is not free.
"""

from __future__ import annotations

import hashlib
import math
import statistics
import threading
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np

import posttrain as pt
from posttrain.sandbox import CallResults, Calls, Limits, RaisedError, ReturnedValue, Sandbox, run_calls

Metric = Literal["time", "memory", "integral"]
METRICS: tuple[Metric, ...] = ("time", "memory", "integral")
TIME_CAP_S, MEMORY_CAP_KIB = 90.0, 1_048_576.0
CAPS: Mapping[Metric, float] = {
    "time": TIME_CAP_S,
    "memory": MEMORY_CAP_KIB,
    "integral": TIME_CAP_S * MEMORY_CAP_KIB,
}
LEAST_S, LEAST_KIB = 1e-6, 1.0  # the floor of a measure: gains are relative, and clocks and allocators are coarse
FREE_LOADING = 2.0  # times the seconds of a process that only compiles the code: starts alone differ by half (measured)
MEMORY_MIB = 1024  # as in Monolith, and as the cap


@dataclass(frozen=True, slots=True)
class Performance:
    """How one piece of code ran: whether it passed, CPU seconds, KiB. Failed code counts as the caps."""

    passed: bool
    seconds: float = TIME_CAP_S
    kib: float = MEMORY_CAP_KIB
    why: str = ""  # the reason that it did not pass

    def of(self, metric: Metric) -> float:
        return {"time": self.seconds, "memory": self.kib, "integral": self.seconds * self.kib}[metric]


Execute: TypeAlias = (
    "Callable[[Calls], CallResults]"  # in the sandbox, apart from the code: for a grader that comes with data
)
NO_CODE = Performance(False, why="the reply holds no code")


class Exercise(Protocol):
    """What code is measured on."""

    @property
    def name(self) -> str: ...  # exercises of one name execute the same, and share what is remembered
    def calls(self, code: str) -> Calls | None: ...  # None: the code cannot be executed
    def compile_only(self, code: str) -> Calls | None: ...  # only compiles the code; None: loading it does no work
    def verdict(
        self, results: Sequence[ReturnedValue | RaisedError], execute: Execute
    ) -> str: ...  # what is kept of the results
    def accepts(self, verdict: str) -> bool: ...  # whether the code passes; expected answers stay outside the sandbox


class Bench:
    """Measures code: the same code on the same inputs only once, so that within a run it always earns the same.

    A bench is a part of the recipe that remembers: checkpoints hold what was measured. Other runs measure afresh. With
    several ranks each measures the code that it samples, and checkpoints hold what the first one measured.

    wall_s      seconds of one process; code that takes longer has failed
    memory_mib  address space of one process; code that needs more has failed
    repeats     processes in which the calls are timed; the least time counts
    laps        times that each call is made in one process; the least time counts. Cheaper than repeats, but only for
                code that does not try to win: a submission could remember its answers from lap to lap
    at_once     processes side by side; one is least noisy
    """

    def __init__(
        self,
        box: Sandbox,
        wall_s: float = TIME_CAP_S,
        *,
        memory_mib: int = MEMORY_MIB,
        repeats: int = 3,
        laps: int = 1,
        at_once: int | None = 1,
    ):
        self.box, self.wall_s, self.memory_mib = box, wall_s, memory_mib
        self.repeats, self.laps, self.at_once = repeats, laps, at_once
        self.known: dict[str, tuple[str, float, float, str]] = {}  # verdict, seconds, KiB, why it cannot pass
        self.lock = threading.Lock()  # episodes that play side by side measure one after the other

    def __call__(self, trials: Sequence[tuple[Exercise, str | None]]) -> list[Performance | pt.Invalid]:
        """The performance of each code, in one batch; `Invalid` where the sandbox failed rather than the code."""
        with self.lock:
            broken = self.execute_new(trials)
        return [self.performance(exercise, code, broken) for exercise, code in trials]

    def execute_new(self, trials: Sequence[tuple[Exercise, str | None]]) -> pt.Invalid | None:
        """Execute what has not been measured yet. Returns how the sandbox failed, if it did."""

        wanted = {
            key(exercise, code): (exercise, calls, exercise.compile_only(code))
            for exercise, code in trials
            if code is not None
            and key(exercise, code) not in self.known
            and (calls := exercise.calls(code)) is not None
        }
        made = [
            replace(one, arguments=one.arguments * self.laps, repeats=self.repeats) for _, one, _ in wanted.values()
        ]
        unrun = {name: replace(one, repeats=self.repeats) for name, (_, _, one) in wanted.items() if one}
        try:
            found = run_calls(self.box, [*made, *unrun.values()], self.limits, self.at_once) if made else []
            births = {name: one.loading_s for name, one in zip(unrun, found[len(made) :], strict=True)}
            for (name, (exercise, calls, _)), one in zip(wanted.items(), found, strict=False):
                free = FREE_LOADING * births.get(name, math.inf)
                self.known[name] = self.record(exercise, len(calls.arguments), one, free)
        except RuntimeError as error:  # the sandbox's own, and never the code's
            return pt.Invalid(f"the sandbox failed: {error}")
        return None

    @property
    def limits(self) -> Limits:

        return Limits(wall_s=self.wall_s, memory_mib=self.memory_mib)

    def fresh(self) -> Bench:
        """A bench that measures in the same way and remembers nothing."""
        options = {"memory_mib": self.memory_mib, "repeats": self.repeats, "laps": self.laps, "at_once": self.at_once}
        return Bench(self.box, self.wall_s, **options)

    def record(self, exercise: Exercise, count: int, one: CallResults, free_s: float) -> tuple[str, float, float, str]:
        """What is remembered of an execution: the verdict, seconds, KiB, and why the code cannot pass, if it cannot.

        The first `free_s` seconds of loading are free.
        """

        bad = next((result for result in one.results if isinstance(result, RaisedError)), None)
        why = one.error or (f"{bad.name}: {bad.message}"[:200] if bad else "")
        if why or not one.peak_kib:
            return "", TIME_CAP_S, MEMORY_CAP_KIB, why or "its memory could not be measured"
        laps = [one.results[i : i + count] for i in range(0, len(one.results), count)]
        verdict = exercise.verdict(laps[0], self.execute)
        if any(exercise.verdict(lap, self.execute) != verdict for lap in laps[1:]):
            return "", TIME_CAP_S, MEMORY_CAP_KIB, "the same call came out differently"
        seconds = sum(min(one.seconds[i::count]) for i in range(count)) + max(one.loading_s - free_s, 0.0)
        return verdict, max(seconds, LEAST_S), max(*one.peak_kib, LEAST_KIB), ""

    def execute(self, calls: Calls) -> CallResults:

        return run_calls(self.box, [calls], self.limits)[0]

    def performance(self, exercise: Exercise, code: str | None, broken: pt.Invalid | None) -> Performance | pt.Invalid:
        if code is None:
            return NO_CODE
        if key(exercise, code) not in self.known:
            return broken or Performance(False, why="it cannot be executed")
        verdict, seconds, kib, why = self.known[key(exercise, code)]
        if why or not exercise.accepts(verdict):
            return Performance(False, why=why or f"a test failed{': ' * bool(verdict)}{verdict}")
        return Performance(True, seconds, kib)

    def state_dict(self) -> dict[str, Any]:
        return {"known": dict(self.known)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.known = {name: tuple(value) for name, value in state["known"].items()}


def key(exercise: Exercise, code: str) -> str:
    return f"{exercise.name} {hashlib.sha256(code.encode(errors='replace')).hexdigest()[:24]}"


# ---- against people, and against chance


def beyond(own: float, people: Sequence[float]) -> float:
    """The share of people's passed solutions that are no better than `own`: 1 - rank / number. NaN without any."""
    return 1 - bisect_left(sorted(people), own) / len(people) if people else math.nan


def resampled_mean(runs: Sequence[float], draws: int = 128, size: int = 4, seed: int = 0) -> tuple[float, float, float]:
    """The mean over measurements with the paper's interval: Student's t on the means of 128 resamples of 4.

    NaN where the measure is NaN, as BEYOND is without people's solutions. Raises ValueError for no measurements.
    """
    if not runs:
        raise ValueError("no measurement to resample")
    if any(map(math.isnan, runs)):
        return math.nan, math.nan, math.nan
    index = np.random.default_rng(seed).integers(0, len(runs), size=(draws, size))
    means = np.asarray(runs, float)[index].mean(1)
    half = 1.979 * statistics.stdev(means.tolist()) / math.sqrt(draws) if draws > 1 else math.inf  # t of 127, 97.5 %
    return float(means.mean()), float(means.mean() - half), float(means.mean() + half)
