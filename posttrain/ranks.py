"""This process among the ranks of a learner. A process that is alone has rank 0 of 1, and everything here does nothing.

Every rank runs the same program on the same numbers; only what is expensive is dealt out, and what comes of it is
exchanged, so that all ranks go on from the same rollouts, rows and metrics. No wait is longer than `PATIENCE`, and each
names the ranks that it waited for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist
from torch.distributed import ProcessGroup

Item = TypeVar("Item")
PATIENCE = timedelta(seconds=float(os.environ.get("POSTTRAIN_PATIENCE_S", "1800")))  # the longest wait for another rank

talk: list[ProcessGroup] = []  # the group over which Python objects are exchanged, once there is one


def world() -> int:
    """How many ranks there are."""
    return dist.get_world_size() if talk else 1


def rank() -> int:
    """Which one this is, from 0."""
    return dist.get_rank() if talk else 0


def is_primary() -> bool:
    """The rank that writes files and speaks to the user."""
    return rank() == 0


@contextmanager
def process_group(device: str | None = None) -> Iterator[None]:
    """Join the other ranks that `torchrun` (or a cluster) started, if it did; leave them at the end.

    Raises TimeoutError when they do not come within `PATIENCE`.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or talk:
        yield
        return
    import torch

    cuda = torch.cuda.is_available() and (device or "cuda").startswith("cuda")
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE)
    group = dist.new_group(backend="gloo", timeout=PATIENCE)
    assert isinstance(group, ProcessGroup)
    talk.append(group)
    try:
        yield
        barrier("to leave together")
    finally:
        talk.clear()
        dist.destroy_process_group()


def barrier(why: str, patience: timedelta = PATIENCE) -> None:
    """Wait until every rank is here. Raises TimeoutError naming those that did not come."""
    if world() == 1:
        return
    try:
        dist.monitored_barrier(talk[0], timeout=patience, wait_all_ranks=True)
    except RuntimeError as error:
        raise TimeoutError(
            f"rank {rank()} waited {patience.total_seconds():.0f} s {why}: {str(error).partition(chr(10))[0]} "
            "Look at the output of the ranks that did not come; POSTTRAIN_PATIENCE_S sets how long to wait"
        ) from error


def share(items: Sequence[Item]) -> Sequence[Item]:
    """This rank's part of the items: every `world`-th."""
    return items[rank() :: world()]


def merge_shares(mine: Sequence[Item], why: str) -> list[Item]:
    """The parts of all ranks, in the order that `share` took them from."""
    if world() == 1:
        return list(mine)
    barrier(why)
    parts: list[Any] = [None] * world()
    dist.all_gather_object(parts, list(mine), group=talk[0])
    total = sum(map(len, parts))
    return [parts[i % world()][i // world()] for i in range(total)]


def all_gather(thing: Item, why: str) -> list[Item]:
    """[world] the same thing of every rank."""
    return merge_shares([thing], why)


def run_on_primary(work: Callable[[], Item], why: str, patience: timedelta = PATIENCE) -> Item:
    """What the primary rank makes of `work`, on every rank; what it raises is raised on every rank."""
    if world() == 1:
        return work()
    found: list[Any] = [None, None]
    if is_primary():
        try:
            found[0] = work()
        except Exception as error:  # raised again below, on every rank, so that no other waits for this one
            found[1] = error
    barrier(why, patience)
    dist.broadcast_object_list(found, src=0, group=talk[0])
    if found[1] is not None:
        raise found[1]
    return found[0]


def padded_share(bins: Sequence[Item]) -> list[tuple[Item, bool]]:
    """This rank's bins, as many as every other rank has; False: it only keeps step, and weighs nothing.

    A model that is spread over ranks is computed by all of them together, so none may have a pass more than another.
    """
    mine = [(one, True) for one in share(bins)]
    most = -(-len(bins) // world())
    return mine + [(one, False) for one in bins[:1]] * (most - len(mine))
