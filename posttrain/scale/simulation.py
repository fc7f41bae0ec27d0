"""The schedule without a cluster: a simulation by discrete events, the same for the same seed.

It answers what staleness and which rule suit rollouts of a given length, before anybody rents the machines.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from posttrain.scale.schedule import Job, Rule, Schedule


@dataclass(frozen=True, slots=True)
class Outcome:
    """Times in the unit of the durations that were given."""

    time: float
    oldest: int  # the greatest age at which a rollout was trained
    age: float  # the mean
    lost: float  # share of the rollouts that were dropped, or broken off
    wasted: float  # share of the players' time that went into them
    trainer_idle: float  # share of the time


@dataclass(frozen=True, slots=True)
class Load:
    """What is simulated. The figures of Pangu Embedded's comparison are the defaults."""

    slots: int = 32  # rollouts played side by side
    batch: int = 64  # rollouts in a step
    train: float = 4.0  # time of a step of the trainer
    steps: int = 40
    spread: float = 0.9  # sigma of the log-normal time of a rollout, whose median is 1


def simulate(load: Load, staleness: int, rule: Rule = "block", seed: int = 0) -> Outcome:
    """Take `load.steps` steps, and say how long it took."""
    draw = np.random.default_rng(seed)
    schedule = Schedule(load.batch, staleness, rule)
    now = idle = played = wasted = 0.0
    free, until = load.slots, None  # when the trainer is done with its step
    ends: list[tuple[float, int, float]] = []  # when a job ends, its number, when it began
    took: dict[int, float] = {}  # of the jobs that wait
    ages: list[int] = []

    def begin(job: Job) -> None:
        heapq.heappush(ends, (now + float(draw.lognormal(0.0, load.spread)), job.number, now))

    while schedule.version < load.steps:
        while free and schedule.room():
            free -= 1
            begin(schedule.begin(None))
        if until is None and schedule.ready():
            for job in schedule.take():
                ages.append(schedule.age(job))
                took.pop(job.number)
            until = now + load.train
        next_end = ends[0][0] if ends else np.inf
        moment = min(next_end, np.inf if until is None else until)
        idle += (moment - now) * (until is None)
        now = moment
        if until is not None and until <= next_end:
            until = None
            late = schedule.advance()
            wasted += sum(took.pop(number) for number in list(took) if number not in schedule.waiting)
            for job in late:
                at = next(i for i, (_, number, _) in enumerate(ends) if number == job.number)
                wasted += now - ends[at][2]
                played += now - ends[at][2]
                ends[at] = ends[-1]
                ends.pop()
                heapq.heapify(ends)
                begin(schedule.again(job.number))
            continue
        _, number, began = heapq.heappop(ends)
        free += 1
        played += now - began
        if schedule.finish(number, None):
            took[number] = now - began
        else:
            wasted += now - began
    lost = schedule.dropped + schedule.interrupted
    return Outcome(
        now, max(ages), float(np.mean(ages)), lost / (lost + schedule.trained), wasted / max(played, 1e-9), idle / now
    )


def as_table(load: Load, stalenesses: Sequence[int], rules: Sequence[Rule], seeds: int = 5) -> str:
    """Markdown: a row for each rule, a column for each bound; means over seeds."""
    lines = [
        "| rule | " + " | ".join(f"s = {s}" for s in stalenesses) + " |",
        "|---" * (len(stalenesses) + 1) + "|",
    ]
    for rule in rules:
        cells = []
        for staleness in stalenesses:
            found = [simulate(load, staleness, rule, seed) for seed in range(seeds)]
            time, lost = (float(np.mean([getattr(one, name) for one in found])) for name in ("time", "lost"))
            oldest = max(one.oldest for one in found)
            cells.append(f"{time:.1f}, oldest {oldest}" + (f", {lost:.1%} lost" if lost else ""))
        lines.append(f"| {rule} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
