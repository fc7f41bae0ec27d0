"""A run on a Ray cluster: learners as actors, the ranks of one FSDP2 policy, and the players that they hire."""

from __future__ import annotations

import math
import os
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from posttrain import ranks
from posttrain.policy.abilities import agree_on_slowdown
from posttrain.run.session import Session
from posttrain.scale import apart
from posttrain.scale.asynchronous import Players
from posttrain.scale.crew import ray_module
from posttrain.scale.place import Place, Program, standing_in

INTERRUPTED = "interrupted"
LOOK_S = 5.0  # between looks at whether the learners are still there
STARTS = 5  # of a cluster on this machine, each of which Ray gives 30 s
PATIENT = {"worker_register_timeout_seconds": 600, "health_check_failure_threshold": 60}  # busy is not dead


class Learner:
    """One rank of the learner, as a Ray actor."""

    def __init__(self):
        self.stopped = threading.Event()

    def address(self) -> tuple[str, int]:
        """Where the others may find this one."""
        with socket.socket() as one:
            one.bind(("", 0))
            return ray_module().util.get_node_ip_address(), one.getsockname()[1]

    def run(self, program: Program, rank: int, world: int, address: tuple[str, int]) -> str:
        """Run the program as one rank of several; returns where its results are, or "interrupted" after `stop`."""
        apart.machine[:] = [ray_module().util.get_node_ip_address()]
        place = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": 0}
        place |= {"MASTER_ADDR": address[0], "MASTER_PORT": address[1]}
        os.environ.update({name: str(value) for name, value in place.items()})
        with ranks.process_group(), standing_in(Place(program, self.stopped.is_set)):
            agree_on_slowdown()
            try:
                result = program()
            except KeyboardInterrupt:
                return INTERRUPTED
        return str(result.directory.path.absolute() if isinstance(result, Session) else result or "")

    def stop(self) -> None:
        """Finish the step, save, and end."""
        self.stopped.set()

    def process(self) -> int:
        return os.getpid()


def run_on_cluster(
    address: str, program: Program, players: Players = Players(), learners: int = 1, gpus: float = 0.0
) -> Path | None:
    """Run a program on a Ray cluster, on as many learners as are wanted; returns the folder of its results, if any.

    Where the program trains (`ScaleOptions.train`, `train_with_players`), its rollouts are sampled by `players`, which
    run the same program to build the recipe. It must be picklable, and every process must be able to write its folder.

    address    "local" starts a cluster on this machine; "auto" or "ray://host:10001" joins one that runs
    Raises ValueError when the cluster cannot hold what was asked for, KeyboardInterrupt once Ctrl-C has ended the run.
    """
    ray = ray_module()
    start(ray, address, learners, players, gpus)
    actor = ray.remote(num_cpus=1, num_gpus=gpus, max_concurrency=2)(Learner)
    actors = [actor.remote() for _ in range(learners)]
    place = ray.get(actors[0].address.remote(), timeout=players.deadline_s)
    runs = [one.run.remote(program, rank, learners, place) for rank, one in enumerate(actors)]
    try:
        out = wait_for_all(ray, runs)
    except KeyboardInterrupt:
        for one in actors:
            one.stop.remote()
        out = wait_for_all(ray, runs)
    finally:
        for one in actors:
            ray.kill(one)
        ray.shutdown()
    if out == INTERRUPTED:
        stop = KeyboardInterrupt()
        stop.add_note("stopped and saved; continue with the same command and `resume=True`")
        raise stop
    return Path(out) if out else None


def start(ray: Any, address: str, learners: int, players: Players, gpus: float) -> None:
    """Join a cluster, or start one here that is large enough on paper: tiny models share cores."""
    wanted = learners + players.count * players.cpus
    quiet = {"log_to_driver": True, "logging_level": "ERROR"}
    if address == "local":
        cpus = max(os.cpu_count() or 1, math.ceil(wanted))
        start_here(ray, num_cpus=cpus, **quiet)
        return
    ray.init(address=address, **quiet)
    have = ray.cluster_resources()
    for name, need in (("CPU", wanted), ("GPU", learners * gpus + players.count * players.gpus)):
        if have.get(name, 0.0) < need:
            ray.shutdown()
            raise ValueError(f"the cluster at {address} has {have.get(name, 0.0):g} {name}s and the run wants {need:g}")


def start_here(ray: Any, **options: Any) -> None:
    """Start a cluster on this machine. Ray's own limit on its start does not fit a busy machine: it is tried again."""
    for attempt in range(STARTS):
        try:
            ray.init(address="local", include_dashboard=False, _system_config=PATIENT, **options)
            return
        except Exception as error:  # Ray raises no narrower one
            if "timed out during startup" not in str(error) or attempt == STARTS - 1:
                raise
            ray.shutdown()


def wait_for_all(ray: Any, runs: Sequence[Any]) -> str:
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
