"""Which rollouts are under way, which wait to be trained, and how old one may become: stale-synchronous parallelism.

The age of a rollout is the number of optimizer steps between the weights that sampled it and those it is trained into.
Admission alone does not bound it: with at most (s + version + 1) B rollouts begun, those that take long still become
arbitrarily old (Pangu Embedded, arXiv:2505.22375, promises the bound and does not say how it is kept). Four rules:

    block      the trainer waits for the rollouts that would become too old, and takes them first: none is lost
    drop       what finishes too old is thrown away, and another takes its place: long ones are lost more often
    interrupt  what has become too old while under way is begun again with the new weights
    capacity   admission alone: no bound; for comparison

Nothing here has a clock or a thread: the same object schedules a simulation and a cluster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Rule = Literal["block", "drop", "interrupt", "capacity"]
RULES: tuple[Rule, ...] = ("block", "drop", "interrupt", "capacity")


@dataclass(slots=True)
class Job:
    """One group to be played, and later what became of it."""

    number: int  # in order of submission
    item: Any  # what is played
    version: int  # of the weights that it was begun with
    result: Any = None
    worth: float = 0.0  # how much it is expected to teach: the spread of its rewards


@dataclass
class Schedule:
    """`batch` jobs a step, none trained more than `staleness` steps after it was begun."""

    batch: int
    staleness: int
    rule: Rule = "block"
    version: int = 0
    submitted: int = 0
    trained: int = 0
    dropped: int = 0
    interrupted: int = 0
    refused: int = 0
    running: dict[int, Job] = field(default_factory=dict)
    waiting: dict[int, Job] = field(default_factory=dict)  # finished, not yet trained

    def __post_init__(self):
        if self.staleness < 0 or self.batch < 1:
            raise ValueError(f"a batch of {self.batch} with staleness {self.staleness}: at least 1, and not negative")

    def room(self) -> int:
        """How many jobs may be begun now, if there is anybody to play them."""
        begun = self.trained + len(self.waiting) + len(self.running)
        return max((self.staleness + self.version + 1) * self.batch - begun, 0)

    def begin(self, item: Any) -> Job:
        job = Job(self.submitted, item, self.version)
        self.submitted += 1
        self.running[job.number] = job
        return job

    def again(self, number: int) -> Job:
        """A job whose player was lost, or that was interrupted: begun anew, with the weights of now."""
        job = self.running[number]
        job.version = self.version
        return job

    def finish(self, number: int, result: Any, worth: float = 0.0) -> bool:
        """A job has been played; False: it came too late.

        Raises KeyError for a job that is not under way: nothing is accepted twice.
        """
        job = self.running.pop(number)
        job.result, job.worth = result, worth
        if self.rule in ("drop", "interrupt") and self.age(job) > self.staleness:
            self.dropped += 1
            return False
        self.waiting[number] = job
        return True

    def refuse(self, number: int) -> Job:
        """A job under way whose result does not count: another is to take its place."""
        self.refused += 1
        return self.running.pop(number)

    def age(self, job: Job) -> int:
        return self.version - job.version

    def ready(self) -> bool:
        """A step may be taken: there are enough jobs, and those that it leaves can all be trained in time."""
        return len(self.waiting) >= self.batch and (self.rule != "block" or self.in_time())

    def in_time(self) -> bool:
        """Of what the next step leaves, no more has to be trained within k more steps than k steps take, for every k.

        A job begun with weights v has to be trained at version v + staleness or before.
        """
        chosen = {job.number for job in self.jobs_by_priority()[: self.batch]}
        left = [job for job in (*self.running.values(), *self.waiting.values()) if job.number not in chosen]
        return all(
            sum(self.age(job) + k >= self.staleness for job in left) <= k * self.batch
            for k in range(self.staleness + 1)
        )

    def jobs_by_priority(self) -> list[Job]:
        """The jobs that wait: the oldest first, and among those the ones that teach most."""
        return sorted(self.waiting.values(), key=lambda job: (job.version, -job.worth, job.number))

    def take(self) -> list[Job]:
        """The jobs of a step, in order of submission."""
        chosen = sorted(self.jobs_by_priority()[: self.batch], key=lambda job: job.number)
        for job in chosen:
            del self.waiting[job.number]
        self.trained += len(chosen)
        return chosen

    def advance(self) -> list[Job]:
        """There are new weights; what waits and is too old now is dropped. Returns jobs that must be begun again."""
        self.version += 1
        if self.rule in ("drop", "interrupt"):
            for job in [job for job in self.waiting.values() if self.age(job) > self.staleness]:
                del self.waiting[job.number]
                self.dropped += 1
        if self.rule != "interrupt":
            return []
        late = [job for job in self.running.values() if self.age(job) > self.staleness]
        self.interrupted += len(late)
        return late

    def unfinished_jobs(self) -> Sequence[Job]:
        """What a resumed run has to begin again, in order."""
        return sorted(self.running.values(), key=lambda job: job.number)
