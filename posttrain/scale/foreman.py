"""Between the schedule and the crew: draws tasks, hands them to players, and collects the groups of a step.

Its memory is part of a checkpoint: groups that are finished and not yet trained stay, those under way are begun again
with the same draws. So nothing that was accepted is lost or trained twice.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from posttrain.core import Metrics
from posttrain.group import GradedGroup
from posttrain.recipe import Recipe
from posttrain.reward import group_std
from posttrain.scale.crew import Crew, LostGroup
from posttrain.scale.player import Draw, Outcome
from posttrain.scale.schedule import Job, Schedule
from posttrain.seeding import mix
from posttrain.stream import Source

REMEMBERED = ("schedule", "first", "filling", "owed", "seen", "lengths")


@dataclass(frozen=True, slots=True)
class Harvest:
    """The groups of a step: all that were graded since the last one, and those that count."""

    seen: list[GradedGroup]
    admitted: list[GradedGroup]
    metrics: Metrics


@dataclass(slots=True)
class StepGroups:
    """How far the groups of a step have come. Those of a round that do not count are replaced once all are graded."""

    attempt: int = 0
    running: int = 0  # or owed
    refused: int = 0


@dataclass(slots=True)
class Foreman:
    """Call `harvest` for the groups of a step, and `advance` when the weights of the next one are published."""

    source: Source
    recipe: Recipe
    schedule: Schedule
    crew: Crew
    seed: int
    first: int = 0  # draws of first attempts so far
    filling: dict[int, StepGroups] = field(default_factory=dict)  # by step
    owed: deque[tuple[int, int, int]] = field(default_factory=deque)  # step, attempt, place of replacements
    again: deque[Job] = field(default_factory=deque)  # to be handed to a player anew
    seen: list[GradedGroup] = field(default_factory=list)  # graded and refused since the last harvest
    lengths: dict[str, float] = field(default_factory=dict)  # mean decisions of each task's last group
    outcomes: list[Metrics] = field(default_factory=list)

    def harvest(self) -> Harvest:
        """Wait until a step may be taken. Raises what `Crew.wait` raises."""
        lost, clock = 0, time.perf_counter()
        self.feed()
        while not self.schedule.ready():
            if not self.crew.flights:
                raise RuntimeError("nothing is being played and the step is not complete: the schedule is stuck")
            for number, outcome in self.crew.wait(f"at step {self.schedule.version}"):
                if isinstance(outcome, LostGroup):
                    lost += 1
                    self.again.append(self.schedule.again(number))
                else:
                    self.land(number, outcome)
            self.feed()
        jobs = self.schedule.take()
        groups = [job.result for job in jobs]
        admitted = [one for one in groups if self.recipe.admit(one.scores)]
        metrics = {"groups_lost": float(lost), "seconds_wait": time.perf_counter() - clock}
        harvest = Harvest(self.seen + groups, admitted, self.step_metrics(jobs) | metrics)
        self.seen, self.outcomes = [], []
        return harvest

    def advance(self) -> None:
        """A step has been taken, and its weights are published."""
        late = self.schedule.advance()
        self.crew.interrupt({job.number for job in late})
        self.feed()

    def feed(self) -> None:
        """Give every idle player something to do, what is likely to take longest first."""
        ready: list[Job] = []
        while len(ready) < self.crew.free():
            if self.again:
                ready.append(self.again.popleft())
            elif self.schedule.room() and (draw := self.draw()):
                ready.append(self.schedule.begin(draw))
            else:
                break
        for job in sorted(ready, key=lambda job: -self.lengths.get(job.item.task.key, 0.0)):
            self.crew.begin(job.number, job.item)

    def draw(self) -> Draw | None:
        """The next task to be played: one that replaces a refused group, or else one more of the source."""
        if self.owed:
            return self.next_draw(*self.owed.popleft())
        schedule = self.schedule
        if self.first >= (schedule.staleness + schedule.version + 1) * schedule.batch + schedule.dropped:
            return None
        step, place = divmod(self.first, schedule.batch)
        self.first += 1
        self.filling.setdefault(step, StepGroups()).running += 1
        return self.next_draw(step, 0, place)

    def next_draw(self, step: int, attempt: int, place: int) -> Draw:
        [task] = self.source.take(1)
        return Draw(task, step, attempt, place, mix(mix(self.seed, step), attempt))

    def land(self, number: int, outcome: Outcome) -> None:
        """Take a group that was played, or have it replaced when it does not count."""
        draw, graded = self.schedule.running[number].item, outcome.graded
        fill = self.filling[draw.step]
        fill.running -= 1
        self.outcomes.append(outcome.metrics)
        self.lengths[draw.task.key] = statistics.fmean(one.decisions for one in graded.group)
        if fill.attempt + 1 < self.recipe.rounds and not self.recipe.admit(graded.scores):
            self.schedule.refuse(number)
            self.seen.append(graded)
            fill.refused += 1
        else:
            self.schedule.finish(number, graded, group_std(graded.scores))
        drawn = fill.attempt > 0 or self.first >= (draw.step + 1) * self.schedule.batch
        if fill.running or not drawn:
            return
        if fill.refused:
            fill.attempt += 1
            self.owed += [(draw.step, fill.attempt, place) for place in range(fill.refused)]
            fill.running, fill.refused = fill.refused, 0
        else:
            del self.filling[draw.step]

    def step_metrics(self, jobs: Sequence[Job]) -> Metrics:
        """How old the groups of a step are, and how the players fared since the last one."""
        ages = [self.schedule.age(job) for job in jobs]
        metrics = {f"age/{age}": count / len(ages) for age, count in sorted(Counter(ages).items())}
        metrics |= {"age_mean": statistics.fmean(ages), "age_max": float(max(ages))}
        metrics |= {
            "groups_waiting": float(len(self.schedule.waiting)),
            "groups_running": float(len(self.crew.flights)),
        }
        metrics |= {"groups_dropped": float(self.schedule.dropped), "players_replaced": float(self.crew.replaced)}
        for name in ("seconds_sample", "seconds_grade", "parity_gap"):
            found = [one[name] for one in self.outcomes if name in one]
            if found:
                metrics[name] = sum(found) if name.startswith("seconds") else max(found)
        return metrics

    # ---- what a checkpoint holds

    def state_dict(self) -> dict[str, Any]:
        return {**{name: getattr(self, name) for name in REMEMBERED}, "owed": list(self.owed)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name in REMEMBERED:
            setattr(self, name, state[name])
        self.owed = deque(state["owed"])
        self.again = deque(self.schedule.again(job.number) for job in self.schedule.unfinished_jobs())
