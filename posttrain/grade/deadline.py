"""A deadline for a call of the user's own code."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

FREE = (signal.SIG_DFL, signal.SIG_IGN, None)
AGAIN_S = 1.0  # until the alarm rings again in code that has caught it


class DeadlinePassed(BaseException):
    """Raised in the call that has taken too long. No `except Exception` in that code keeps it."""


class CallLimit:
    """How long a call may take, and what it is called in messages."""

    def __init__(self, seconds: float, what: str):
        self.seconds, self.what = seconds, what

    @property
    def message(self) -> str:
        return f"{self.what} took more than {self.seconds:g} s"


@contextmanager
def deadline(limit: CallLimit) -> Iterator[None]:
    """Raises DeadlinePassed in the block after so many seconds, whether it computes, sleeps or waits for a socket.

    Where a signal cannot do that (outside of the main thread, when another handler of SIGALRM is installed, on Windows)
    the block goes on, and the hanging call is reported on stderr.
    """
    if limit.seconds > threading.TIMEOUT_MAX:
        yield
        return
    main = threading.current_thread() is threading.main_thread()
    if not (main and hasattr(signal, "setitimer") and signal.getsignal(signal.SIGALRM) in FREE):
        warning = f"warning: {limit.message} and has not ended"
        timer = threading.Timer(limit.seconds, print, [warning], {"file": sys.stderr})
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
        return

    def alarm(number: int, frame: FrameType | None) -> None:
        raise DeadlinePassed(limit.message)

    before = signal.signal(signal.SIGALRM, alarm)
    signal.setitimer(signal.ITIMER_REAL, limit.seconds, AGAIN_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
