"""A run on a Ray cluster: learners as actors, the ranks of one FSDP2 policy, and the players that they hire."""

from __future__ import annotations

import math
import os
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.core import Task
from posttrain.run import Run
from posttrain.scale.asynchronous import Players, train_with_players
from posttrain.scale.crew import imported
from posttrain.scale.player import Build

LOOK_S = 5.0  # between looks at whether the learners are still there


@dataclass(frozen=True, slots=True)
class Work:
    """What every learner is given."""

    build: Build
    tasks: Callable[[], tuple[Sequence[Task], Sequence[Task]]]  # to train on, and held out
    run: Run
    players: Players


class Learner:
    """One rank of the learner, as a Ray actor."""

    def __init__(self):
        self.stopped = threading.Event()

    def address(self) -> tuple[str, int]:
        """Where the others may find this one."""
        with socket.socket() as one:
            one.bind(("", 0))
            return imported().util.get_node_ip_address(), one.getsockname()[1]

    def train(self, work: Work, rank: int, world: int, address: tuple[str, int]) -> str:
        """Returns the run directory, or "interrupted" after `stop`."""
        from posttrain import ranks
        from posttrain.scale import apart
        from posttrain.scale.shards import spread

        apart.machine[:] = [imported().util.get_node_ip_address()]
        place = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": 0}
        place |= {"MASTER_ADDR": address[0], "MASTER_PORT": address[1]}
        os.environ.update({name: str(value) for name, value in place.items()})
        with ranks.joined():
            tasks, held_out = work.tasks()
            policy, recipe = work.build()
            if world > 1:
                spread(policy)
            more: dict[str, Any] = {"held_out": held_out, "stopped": self.stopped.is_set}
            try:
                session = train_with_players(policy, tasks, recipe, work.run, work.build, work.players, **more)
            except KeyboardInterrupt:
                return "interrupted"
            return str(session.directory.path)

    def stop(self) -> None:
        """Finish the step, save, and end."""
        self.stopped.set()

    def process(self) -> int:
        return os.getpid()


def train_on_cluster(address: str, work: Work, learners: int = 1, gpus: float = 0.0) -> Path:
    """Train on a Ray cluster; returns the run directory, which learners must be able to write.

    address    "local" starts one on this machine; "auto" or "ray://host:10001" joins one that runs
    Raises ValueError when the cluster cannot hold what was asked for, KeyboardInterrupt once Ctrl-C has ended the run.
    """
    ray = imported()
    start(ray, address, learners, work.players, gpus)
    actor = ray.remote(num_cpus=1, num_gpus=gpus, max_concurrency=2)(Learner)
    found = [actor.remote() for _ in range(learners)]
    place = ray.get(found[0].address.remote(), timeout=300)
    runs = [one.train.remote(work, rank, learners, place) for rank, one in enumerate(found)]
    try:
        out = finished(ray, runs)
    except KeyboardInterrupt:
        for one in found:
            one.stop.remote()
        out = finished(ray, runs)
    finally:
        for one in found:
            ray.kill(one)
        ray.shutdown()
    if out == "interrupted":
        stop = KeyboardInterrupt()
        stop.add_note("stopped and saved; continue with the same command and --resume")
        raise stop
    return Path(out)


def start(ray: Any, address: str, learners: int, players: Players, gpus: float) -> None:
    """Join a cluster, or start one here that is large enough on paper: tiny models share cores."""
    wanted = learners + players.count * players.cpus
    quiet = {"log_to_driver": True, "logging_level": "ERROR"}
    if address == "local":
        cpus = max(os.cpu_count() or 1, math.ceil(wanted))
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)
        return
    ray.init(address=address, **quiet)
    have = ray.cluster_resources()
    for name, need in (("CPU", wanted), ("GPU", learners * gpus + players.count * players.gpus)):
        if have.get(name, 0.0) < need:
            ray.shutdown()
            raise ValueError(f"the cluster at {address} has {have.get(name, 0.0):g} {name}s and the run wants {need:g}")


def finished(ray: Any, runs: Sequence[Any]) -> str:
    """Wait for all learners. The first error of one of them is raised, and the others are not waited for."""
    left = list(runs)
    while left:
        done, left = ray.wait(left, num_returns=1, timeout=LOOK_S) if left else ([], [])
        for future in done:
            try:
                ray.get(future)
            except ray.exceptions.RayTaskError as error:
                raise (error.cause if isinstance(error.cause, BaseException) else error) from None
    return ray.get(runs[0])
