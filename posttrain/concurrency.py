"""Many pieces of work side by side in threads, each with a deadline, some of which may fail."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import TypeVar

Result = TypeVar("Result")


def future_of(work: Callable[[], Result], name: str) -> Future[Result]:
    """What the work will return, in a thread of its own. A program that ends does not wait for it."""
    found: Future[Result] = Future()

    def run() -> None:
        try:
            found.set_result(work())
        except BaseException as error:
            found.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return found


def results_as_completed(
    work: Callable[[int], Result],
    count: int,
    at_once: int,
    deadline_s: float,
    retries: int,
    passing: tuple[type[BaseException], ...],
) -> Iterator[tuple[int, Result | BaseException]]:
    """`work(i)` for every i below `count`, as they finish: what it returned, or what it raised.

    What raises one of `passing` is done again, up to `retries` times. Work that takes longer than `deadline_s` gives
    a TimeoutError at that moment; its thread cannot be ended, is not waited for, and what it returns is thrown away.
    """
    results: queue.SimpleQueue[tuple[int, int, Result | BaseException]] = queue.SimpleQueue()
    waiting = list(range(count))[::-1]
    attempts = dict.fromkeys(range(count), 0)
    ends: dict[int, float] = {}  # of the work under way

    def run(i: int, attempt: int) -> None:
        try:
            results.put((i, attempt, work(i)))
        except BaseException as error:
            results.put((i, attempt, error))

    def begin(i: int) -> None:
        ends[i] = time.monotonic() + deadline_s
        threading.Thread(target=run, args=(i, attempts[i]), name=f"episode {i}", daemon=True).start()

    while waiting or ends:
        while waiting and len(ends) < at_once:
            begin(waiting.pop())
        try:
            i, attempt, found = results.get(timeout=max(min(ends.values()) - time.monotonic(), 0.0))
        except queue.Empty:
            i = min(ends, key=lambda one: ends[one])
            attempts[i] = retries + 1
            del ends[i]
            yield i, TimeoutError(f"not finished after {deadline_s:g} s")
            continue
        if attempt != attempts[i] or i not in ends:
            continue  # it was given up
        if isinstance(found, passing) and attempt < retries:
            attempts[i] += 1
            begin(i)
            continue
        del ends[i]
        yield i, found
