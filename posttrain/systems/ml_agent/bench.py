"""A player that executes scripts: all that the episodes of a round ask for, side by side, and each of them once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal

import torch

import posttrain as pt
from posttrain.sandbox import Limits, Memo, Outcome, Program, Sandbox, sandbox
from posttrain.sandbox.program import check_room
from posttrain.systems.ml_agent.problem import Problem

BENCH = "bench"  # the name that episodes ask
TOO_LARGE = "The files are larger than the working folder."
MARK = "\n==== predictions ====\n"
HAND_OVER = """
import runpy
try:
    runpy.run_path({script!r}, run_name="__main__")
except SystemExit as over:
    if over.code:
        raise
print({mark!r} + open({predictions!r}).read(), end="")
"""


@dataclass(frozen=True, slots=True)
class Job:
    """A script of a workspace that is to be executed."""

    problem: Problem
    files: Mapping[str, str | bytes]
    script: str


@dataclass(frozen=True, slots=True)
class Execution:
    """What came of it. `limit`: it was ended for its time, its memory or its output, or killed."""

    ending: Literal["finished", "error", "limit"]
    output: str
    metric: float | None = None  # of the problem's own script, if it printed one


class Bench:
    """Executes jobs in a sandbox; equal ones once. `memo.ran` counts what was not held already.

    at_once  programs that run side by side
    """

    def __init__(self, box: Sandbox, at_once: int = 1) -> None:
        self.box, self.at_once, self.memo = box, at_once, Memo(box)

    def sample(self, asks: Sequence[pt.Ask]) -> list[pt.Reply]:
        """The execution of each ask's one message, a job; `Failure` where the sandbox itself fails."""
        jobs = [ask.messages[0]["content"] for ask in asks]
        keys = [(job.problem.name, job.script, tuple(sorted(job.files.items()))) for job in jobs]
        distinct = dict(zip(keys, jobs, strict=True))
        with ThreadPoolExecutor(self.at_once, "posttrain bench") as threads:
            found = dict(zip(distinct, threads.map(self.answer, distinct.values()), strict=True))
        return [pt.Reply(found[key], torch.zeros(0), None) for key in keys]

    def answer(self, job: Job) -> Execution | pt.Failure:
        try:
            return self.execute(job)
        except (RuntimeError, OSError) as error:
            return pt.Failure(f"{type(error).__name__}: {error}")

    def execute(self, job: Job) -> Execution:
        """Raises RuntimeError when the sandbox itself fails."""
        problem, scored = job.problem, bool(job.problem.scorer) and job.script == job.problem.script
        source = job.files[job.script]
        assert isinstance(source, str)
        if scored:
            source = HAND_OVER.format(script=job.script, mark=MARK, predictions=problem.predictions)
        outcome = self.outcome(source, job.files, problem.limits)
        if outcome is None:
            return Execution("limit", TOO_LARGE)
        if outcome.status != "finished":
            return Execution(*ending(outcome))
        if not scored:
            metric = problem.metric_in(outcome.stdout) if job.script == problem.script else None
            return Execution("finished", outcome.stdout, metric)
        printed, _, predictions = outcome.stdout.rpartition(MARK)
        files = {**problem.hidden, problem.predictions: predictions}
        judged = self.outcome(str(problem.hidden[problem.scorer]), files, problem.limits)
        if judged is None:
            return Execution("limit", f"{printed}\n{TOO_LARGE}")
        if judged.status != "finished":
            kind = "error" if judged.status == "error" else "limit"
            return Execution(kind, f"{printed}\nThe predictions cannot be scored: {last_line(judged.stderr)}")
        return Execution("finished", f"{printed}\n{judged.stdout}", problem.metric_in(judged.stdout))

    def outcome(self, source: str, files: Mapping[str, str | bytes], limits: Limits) -> Outcome | None:
        """None for files that no working folder of these limits holds. Raises RuntimeError, as the sandbox does."""
        try:
            check_room(files, limits.file_mib)
        except ValueError:
            return None
        return self.memo.run(Program(source, files=files), limits)


def ending(outcome: Outcome) -> tuple[Literal["error", "limit"], str]:
    if outcome.status == "error":
        return "error", f"{outcome.stdout}\n{outcome.stderr}".strip()
    return "limit", f"{outcome.stdout}\nThe script was ended by the system: {outcome.status}.".strip()


def last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2]


def open_bench(problems: Sequence[Problem], at_once: int = 1) -> Bench:
    """In a sandbox with all of their packages. Raises ValueError for a machine or a package that is not there.

    No `with`: the sandbox ends with the bench, which outlives the stage that opened it on a cluster.
    """
    packages = dict.fromkeys(name for problem in problems for name in problem.packages)
    return Bench(sandbox(packages=tuple(packages)), at_once)


def with_initial_metrics(problems: Sequence[Problem], bench: Bench) -> dict[str, Problem]:
    """The problems by name, each with its initial metric: that of its script as it is, where none is given.

    Raises ValueError naming a problem whose script does not run, or prints no metric; RuntimeError when the sandbox
    fails.
    """
    found: dict[str, Problem] = {}
    for problem in problems:
        if problem.name in found:
            raise ValueError(f"two problems have the name {problem.name!r}: give one of them a `name` in its task.json")
        if problem.initial is None:
            got = bench.execute(Job(problem, problem.files, problem.script))
            if got.metric is None:
                raise ValueError(f"{problem.name}: {problem.script} gives no metric: {got.ending}: {got.output[-500:]}")
            try:
                problem = replace(problem, initial=got.metric)
            except ValueError as error:
                raise ValueError(f"{problem.name}: {error}") from None
        found[problem.name] = problem
    return found
