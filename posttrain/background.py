"""An iterator that runs ahead in a thread: replies are sampled while the ones that came before are looked at."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from typing import TypeVar

Item = TypeVar("Item")
PATIENCE = 0.02  # seconds that a consumer may take before the iterator goes on without it


def prefetch(items: Iterator[Item]) -> Iterator[Item]:
    """The same items in the same order. Once the consumer has been slow, the rest are made in a thread meanwhile.

    Not before: another thread finds another core's caches cold, which would cost more than a quick consumer does.
    """
    taken = 0.0
    for item in items:
        clock = time.perf_counter()
        yield item
        taken += time.perf_counter() - clock
        if taken > PATIENCE:
            yield from iterate_in_thread(items)
            return


def iterate_in_thread(items: Iterator[Item]) -> Iterator[Item]:
    """Items made in a thread of their own; what it raises is raised here.

    When the consumer stops early, the thread makes the item that it is at, and ends.
    """
    made: queue.SimpleQueue[tuple[bool, Item | BaseException | None]] = queue.SimpleQueue()
    stopped = threading.Event()

    def work() -> None:
        try:
            for item in items:
                made.put((True, item))
                if stopped.is_set():
                    return
            made.put((False, None))
        except BaseException as error:
            made.put((False, error))

    thread = threading.Thread(target=work, name="posttrain sampler", daemon=True)
    thread.start()
    try:
        while True:
            more, item = made.get()
            if not more:
                break
            yield item  # type: ignore[misc]
    finally:
        stopped.set()
    thread.join()
    if isinstance(item, BaseException):
        raise item
