"""A program that stays: the trainer calls its function again and again, and ends it when it likes.

Program and trainer speak over the connection itself. The keeper only waits until either has ended.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from typing import Any

from . import keeper, walls


def hold(request: dict[str, Any], connection: int, confine: Callable[[], None]) -> dict[str, Any]:
    """Runs the request's program in a child that calls `confine` first; its exit code, when it or the trainer ends.

    What it prints is thrown away.
    """
    woken = keeper.wake_by_children()
    walls.subreaper()
    nothing, (ready, ready_end) = os.open(os.devnull, os.O_RDWR), os.pipe()
    program = os.fork()
    if program == 0:
        keeper.become(request, [nothing, nothing, nothing, connection], ready_end, confine)
    os.close(ready_end)
    failure = b"".join(iter(lambda: os.read(ready, keeper.CHUNK), b"")).decode()
    if failure:
        keeper.kill_descendants(program)
        return {"failed": failure}
    poller = select.poll()
    poller.register(woken, select.POLLIN)
    poller.register(connection, 0)  # POLLHUP alone
    code, hung_up = None, False
    while code is None and not hung_up:
        for descriptor, _ in poller.poll():
            hung_up |= descriptor == connection or not os.read(descriptor, keeper.CHUNK)
        code = keeper.exit_code(program)
    return {"ended": keeper.kill_descendants(program, code)}
