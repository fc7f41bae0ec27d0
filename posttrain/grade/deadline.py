"""A deadline for a call of the user's own code."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

FREE = (signal.SIG_DFL, signal.SIG_IGN, None)


class DeadlinePassed(Exception):
    """Raised in the call that has taken too long."""


@contextmanager
def deadline(seconds: float, what: str) -> Iterator[None]:
    """Raises DeadlinePassed in the block after so many seconds, whether it computes, sleeps or waits for a socket.

    Where a signal cannot do that (outside of the main thread, under an alarm of somebody else's, on Windows) the block
    goes on, and what hangs is said on stderr.
    """
    said = f"{what} took more than {seconds:g} s"
    main = threading.current_thread() is threading.main_thread()
    if not (main and hasattr(signal, "setitimer") and signal.getsignal(signal.SIGALRM) in FREE):
        timer = threading.Timer(seconds, print, [f"warning: {said} and has not ended"], {"file": sys.stderr})
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
        return

    def alarm(number: int, frame: FrameType | None) -> None:
        raise DeadlinePassed(said)

    before = signal.signal(signal.SIGALRM, alarm)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
