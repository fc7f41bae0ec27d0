"""Reward models, Q models and predictors of a run: in this process, or once for all of its processes.

    one process                  the model is in it
    several ranks (torchrun)     the primary rank starts one process with the model; all ranks ask it
    a Ray cluster                the first learner does; learners and players ask it
    an address                   whatever runs it: posttrain serve --scorer reward-model=FOLDER

A copy on every rank or player would take their memory as many times over. The process speaks the protocol of the
server, so there is one client and one thing to test. It ends with the process that started it.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from posttrain import ranks
from posttrain.sampler.scorer import Connection, ended, is_address, without_ranks
from posttrain.serve.scorer import Kind, Model

LOADING = timedelta(days=7)  # for the other ranks: the first one's own wait has a deadline
END_S = 10.0

addresses: dict[str, str] = {}  # of the run's processes, by the order that made each
processes: dict[str, subprocess.Popen] = {}  # of those that were started here, by address
machine: list[str] = []  # on a cluster: where other machines reach this one


def reach(kind: Kind[Model], name: str, *, device: str | None = None, **options: Any) -> Model:
    """A model of this kind, wherever it is; all ranks call this together.

    name     a folder, a Hub id, or the address of a server
    device   of the model, wherever it is loaded; the best one there if not given
    options  more arguments of `kind.load`, as JSON holds them
    Raises ValueError when it cannot be loaded, or the address serves another kind; ServerError when nobody is there.
    """
    if is_address(name):
        return kind.client(Connection(name, kind.name))
    order = json.dumps([kind.where, name, device, options])
    if order not in addresses:
        if ranks.world() == 1 and not machine:
            return kind.load(name, device=device, **options)
        loading = {"device": device, **options}
        addresses[order] = ranks.run_on_primary(
            lambda: start(kind, name, loading), f"for the {kind.name} {name}", LOADING
        )
    address = addresses[order]
    return kind.client(Connection(address, kind.name, own=True, process=processes.get(address)))


def start(kind: Kind[Any], name: str, options: Mapping[str, Any]) -> str:
    """Start a process with the model; returns its address once it answers. Raises ValueError when it cannot be loaded.

    It has our import path and a session of its own: Ctrl-C is for the run, which finishes its step with it.
    """
    order = {"kind": kind.where, "name": name, "options": options, "host": hosts()[0], "parent": os.getpid()}
    environment = without_ranks() | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen(
        [sys.executable, "-m", "posttrain.serve.process", json.dumps(order)],
        stdin=subprocess.PIPE,  # it ends when this is closed
        stdout=subprocess.PIPE,
        bufsize=0,
        env=environment,
        start_new_session=True,
    )
    try:
        address = f"http://{hosts()[1]}:{port_of(process, f'the process of the {kind.name} {name}')}"
    except BaseException:
        end(process)
        raise
    processes[address] = process
    atexit.register(end, process)
    return address


def hosts() -> tuple[str, str]:
    """Where a process listens, and where the others find it: on this machine alone, unless the run has more."""
    if machine:
        return machine[0], machine[0]
    if os.environ.get("LOCAL_WORLD_SIZE") == str(ranks.world()):
        return "127.0.0.1", "127.0.0.1"
    return "0.0.0.0", os.environ["MASTER_ADDR"]


def port_of(process: subprocess.Popen, what: str) -> int:
    """Wait for a process to answer, as long as it is busy. Raises ValueError with what went wrong."""
    patience, last = ranks.PATIENCE.total_seconds(), time.monotonic()
    assert process.stdout is not None
    while (left := last + patience - time.monotonic()) > 0:
        if not select.select([process.stdout], [], [], left)[0]:
            continue
        line = process.stdout.readline()
        if not line:
            raise ValueError(f"{what} ended while loading it: {ended(process.wait())}. What it said is above")
        said = json.loads(line)
        if "error" in said:
            raise ValueError(said["error"])
        if "port" in said:
            return said["port"]
        if said["busy"]:
            last = time.monotonic()
    raise ValueError(f"{what} did nothing for {patience:g} s (POSTTRAIN_PATIENCE_S) while loading it")


def end(process: subprocess.Popen) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
