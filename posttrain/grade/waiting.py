"""Rewards that wait: one event loop in a thread of its own, for all calls of this process.

So a client that a reward keeps between calls stays in its loop, and groups are graded side by side.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from functools import cache
from typing import Any, TypeVar

Result = TypeVar("Result")


def result_of(work: Coroutine[Any, Any, Result]) -> Result:
    """What it returns, or raises. Interrupted, it is cancelled."""
    waiting = asyncio.run_coroutine_threadsafe(work, loop_of(os.getpid()))
    try:
        return waiting.result()
    except BaseException:
        waiting.cancel()
        raise


@cache
def loop_of(process: int) -> asyncio.AbstractEventLoop:
    """The loop of a process: a fork has none of its parent's threads."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="posttrain rewards", daemon=True).start()
    return loop
