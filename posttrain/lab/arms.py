"""Runs the arms of claims: in parallel over cores, resumable, with a progress bar and the time that is left."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain import systems
from posttrain.lab.code_hash import code_hash
from posttrain.lab.trial import FULL, QUICK
from posttrain.run.directory import write_json
from posttrain.systems import System


@dataclass(frozen=True, slots=True)
class Job:
    """One arm of a system on one seed."""

    system: str
    arm: str
    seed: int
    quick: bool


def run_job(job: Job) -> dict[str, Any]:
    """In a process of its own: the arm's measures, and the CPU seconds that it took."""
    import torch

    torch.set_num_threads(1)
    start = time.process_time()
    measures = dict(systems.system(job.system).arms[job.arm](job.seed, QUICK if job.quick else FULL))
    return {"measures": measures, "cpu_s": time.process_time() - start}


class Notebook:
    """The values of one system's arms, in one JSON file. Values of other code than today's are not taken."""

    def __init__(self, folder: Path, system: System, quick: bool):
        self.path = folder / f"{Path(system.name).stem}{'-quick' if quick else ''}.json"
        self.code = code_hash(system.file)
        known = json.loads(self.path.read_text()) if self.path.is_file() else {}
        self.stale = bool(known) and known["code"] != self.code
        kept = {} if self.stale or not known else known["values"]
        self.values: dict[str, dict[int, Any]] = {
            arm: {int(seed): value for seed, value in by_seed.items()} for arm, by_seed in kept.items()
        }

    def write(self, job: Job, value: dict[str, Any]) -> None:
        self.values.setdefault(job.arm, {})[job.seed] = value
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, {"code": self.code, "values": self.values})


def run_all(
    chosen: Sequence[System], seeds: Iterable[int], folder: Path, *, quick: bool = False, workers: int = 0
) -> dict[str, dict[str, dict[int, Any]]]:
    """Every arm of every system on every seed: system -> arm -> seed -> {"measures", "cpu_s"}.

    What the folder has already is not run again. `workers` processes at a time, as many as there are cores if 0.
    Raises what an arm raised, with its name, after the values of the others have been written.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    books = {one.name: Notebook(folder, one, quick) for one in chosen}
    console = Console(stderr=True)
    for name, book in books.items():
        if book.stale:
            console.print(f"{book.path}: made by other code of {name}; its values are run again")
    jobs = [Job(one.name, arm, seed, quick) for one in chosen for arm in one.arms for seed in seeds]
    jobs = [job for job in jobs if job.seed not in books[job.system].values.get(job.arm, {})]
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        bar = progress.add_task("claims", total=len(jobs))
        for job, value in outcomes(jobs, workers):
            books[job.system].write(job, value)
            progress.update(bar, advance=1, description=f"{job.system} {job.arm} seed {job.seed}")
    return {name: book.values for name, book in books.items()}


def outcomes(jobs: Sequence[Job], workers: int) -> Iterable[tuple[Job, dict[str, Any]]]:
    """Jobs with their values, as they finish."""
    if not jobs:
        return
    count = min(workers or os.cpu_count() or 1, len(jobs))
    failed: tuple[Job, BaseException] | None = None
    with ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting: dict[Future, Job] = {pool.submit(run_job, job): job for job in jobs}
        try:
            for done in as_completed(waiting):
                if done.cancelled():
                    continue
                error = done.exception()
                if error is None:
                    yield waiting[done], done.result()
                elif failed is None:
                    failed = waiting[done], error
                    pool.shutdown(wait=False, cancel_futures=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if failed:
        job, error = failed
        error.add_note(f"raised by the arm {job.arm!r} of {job.system}, seed {job.seed}")
        raise error
