"""A deadline for a call of the user's own code, which is named before it is ended."""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

FREE = (signal.SIG_DFL, signal.SIG_IGN, None)
NAMED_S = 10.0  # until a call that hangs is named
AGAIN_S = 1.0  # until the alarm rings again in code that has caught it


class CallLimit:
    """How long a call may take, and what it is called in messages; `inf` ends none, and names those that hang."""

    def __init__(self, seconds: float, what: str):
        self.seconds, self.what = seconds, what
        self.named = False  # once is enough

    @property
    def message(self) -> str:
        return f"{self.what} took more than {self.seconds:g} s"

    def say(self) -> None:
        """Name a call that hangs, on stderr."""
        if not self.named:
            self.named = True
            end = f", and is ended after {self.seconds:g} s" if math.isfinite(self.seconds) else ""
            print(f"warning: {self.what} has been busy for {NAMED_S:g} s{end}", file=sys.stderr)


class DeadlinePassed(BaseException):
    """Raised in the call that has taken too long. No `except Exception` in that code keeps it."""

    def __init__(self, limit: CallLimit):
        super().__init__(limit.message)
        self.limit = limit


class Alarms:
    """The calls under way in the main thread, the outermost first, and the one timer that rings for all of them."""

    def __init__(self) -> None:
        self.calls: list[tuple[CallLimit, float]] = []  # with the moment at which each began
        self.before: Any = None  # who handled the signal before

    def set(self) -> None:
        """Have the timer ring for whichever call is next to be named or ended."""
        moments = [
            began + (min(NAMED_S, limit.seconds) if not limit.named else limit.seconds) for limit, began in self.calls
        ]
        first = min(moments, default=math.inf)
        left = max(first - time.monotonic(), 1e-6) if math.isfinite(first) else 0.0
        signal.setitimer(signal.ITIMER_REAL, left, AGAIN_S)

    def ring(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        for limit, began in self.calls:
            if now >= began + limit.seconds:
                raise DeadlinePassed(limit)
        due = [limit for limit, began in self.calls if now >= began + NAMED_S]
        if due:
            due[-1].say()  # the innermost says most
        for limit in due:
            limit.named = True
        self.set()


alarms = Alarms()


@contextmanager
def deadline(limit: CallLimit) -> Iterator[None]:
    """Raises DeadlinePassed in the block after so many seconds, whether it computes, sleeps or waits for a socket.

    Before that the call is named on stderr. Deadlines may stand within one another. Where a signal cannot do that
    (outside of the main thread, when another handler of SIGALRM is installed, on Windows) the block goes on, and the
    hanging call is reported on stderr.
    """
    free = signal.getsignal(signal.SIGALRM) in (*FREE, alarms.ring) if hasattr(signal, "setitimer") else False
    if threading.current_thread() is not threading.main_thread() or not free:
        with named_by_thread(limit):
            yield
        return
    if not alarms.calls:
        alarms.before = signal.signal(signal.SIGALRM, alarms.ring)
    alarms.calls.append((limit, time.monotonic()))
    alarms.set()
    try:
        yield
    finally:
        alarms.calls.pop()
        if alarms.calls:
            alarms.set()
        else:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, alarms.before or signal.SIG_DFL)


@contextmanager
def named_by_thread(limit: CallLimit) -> Iterator[None]:
    """Report a call that hangs, and once more when it should have ended."""

    def late() -> None:
        print(f"warning: {limit.message} and has not ended", file=sys.stderr)

    moments = [(NAMED_S, limit.say)] if limit.seconds > NAMED_S else []
    moments += [(limit.seconds, late)] if limit.seconds <= threading.TIMEOUT_MAX else []
    timers = [threading.Timer(seconds, say) for seconds, say in moments]
    for timer in timers:
        timer.daemon = True
        timer.start()
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()
