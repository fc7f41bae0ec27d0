"""Players as Ray actors: started, given work, watched, and replaced when they die."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from posttrain.sampler.weights import Weights
from posttrain.scale import apart
from posttrain.scale.player import Build, Draw, GroupInterrupted, Outcome, Player

DEADLINE_S = 1800.0  # the longest time in which no player finishes anything
MOST_LOSSES = 10  # players that may die without any of them finishing a group in between


@dataclass(frozen=True, slots=True)
class LostGroup:
    """What was being played is not there, and has to be begun again."""

    why: str


@dataclass(slots=True)
class Flight:
    number: int
    seat: int
    task: str
    since: float


def ray_module() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ValueError("`cluster` needs the extra: pip install 'posttrain[ray]'") from error
    return ray


class Crew:
    """`count` players, each of which plays `at_once` groups side by side.

    gpus, cpus   what each player holds of the cluster
    """

    def __init__(
        self,
        build: Build,
        count: int,
        *,
        kind: str = "policy",
        options: Mapping[str, Any] | None = None,
        at_once: int = 1,
        cpus: float = 1.0,
        gpus: float = 0.0,
        deadline_s: float = DEADLINE_S,
    ):
        self.ray = ray_module()
        actor = self.ray.remote(num_cpus=cpus, num_gpus=gpus, max_concurrency=at_once + 1)(Actor)
        self.hire = lambda: actor.remote(build, kind, dict(options or {}), at_once, apart.addresses)
        self.players = [self.hire() for _ in range(count)]
        self.at_once, self.deadline_s = at_once, deadline_s
        self.flights: dict[Any, Flight] = {}
        self.replaced = self.losses = 0
        self.version, self.weights = -1, None

    def publish(self, weights: Weights) -> None:
        """Put weights where players find them when they begin their next group."""
        self.version, self.weights = weights.version, self.ray.put(weights)

    def free(self) -> int:
        """Groups that could be begun at once."""
        return len(self.players) * self.at_once - len(self.flights)

    def begin(self, number: int, draw: Draw) -> None:
        busy = [flight.seat for flight in self.flights.values()]
        seat = min(range(len(self.players)), key=busy.count)
        future = self.players[seat].play.remote(number, draw, [self.weights], self.version)
        self.flights[future] = Flight(number, seat, draw.task.key, time.monotonic())

    def interrupt(self, numbers: set[int]) -> None:
        for flight in self.flights.values():
            if flight.number in numbers:
                self.players[flight.seat].interrupt.remote(flight.number)

    def wait(self, why: str) -> list[tuple[int, Outcome | LostGroup]]:
        """At least one group that has ended, with its number. What a group's environment or reward raised is raised.

        Raises TimeoutError saying what was waited for, when nothing ends within the deadline; RuntimeError when players
        die faster than they finish anything.
        """
        done, _ = self.ray.wait(list(self.flights), num_returns=1, timeout=self.deadline_s)
        if not done:
            now = time.monotonic()
            slow = ", ".join(
                f"task {flight.task!r} on player {flight.seat} for {now - flight.since:.0f} s"
                for flight in self.flights.values()
            )
            raise TimeoutError(f"the learner, {why}, waited {self.deadline_s:.0f} s for any group to end: {slow}")
        more, _ = self.ray.wait(list(self.flights), num_returns=len(self.flights), timeout=0)
        return [self.flight_result(future) for future in more]

    def flight_result(self, future: Any) -> tuple[int, Outcome | LostGroup]:
        flight = self.flights.pop(future)
        try:
            outcome = self.ray.get(future)
            self.losses = 0
            return flight.number, outcome
        except self.ray.exceptions.RayActorError as error:
            self.replace(flight.seat, str(error))
            return flight.number, LostGroup("its player died")
        except self.ray.exceptions.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, BaseException) else error
            if isinstance(cause, GroupInterrupted):
                return flight.number, LostGroup("it was interrupted")
            cause.add_note(f"raised on player {flight.seat}, by the group of task {flight.task!r}")
            raise cause from None

    def replace(self, seat: int, why: str) -> None:
        """A new player in the place of a dead one; flights of the dead land as lost."""
        if any(flight.seat == seat for flight in self.flights.values()):
            return  # the last of its flights to land replaces it
        self.replaced, self.losses = self.replaced + 1, self.losses + 1
        if self.losses > MOST_LOSSES:
            raise RuntimeError(f"{self.losses} players died one after another and finished nothing; the last: {why}")
        self.players[seat] = self.hire()

    def close(self) -> None:
        for player in self.players:
            self.ray.kill(player)


class Actor:
    """A `Player` as Ray calls it."""

    def __init__(self, build: Build, kind: str, options: Mapping[str, Any], at_once: int, addresses: Mapping[str, str]):
        apart.addresses.update(addresses)  # of the learner's reward models: they are not loaded here
        self.player = Player(build, kind, options, at_once)

    def play(self, number: int, draw: Draw, weights: list[Any], version: int) -> Outcome:
        return self.player.play(number, draw, lambda: ray_module().get(weights[0]), version)

    def interrupt(self, number: int) -> None:
        self.player.interrupt(number)

    def process(self) -> int:
        import os

        return os.getpid()
