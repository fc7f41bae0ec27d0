"""A program that stays in the sandbox: what it remembers, how it ends, and what is left of it then."""

from __future__ import annotations

import signal

import pytest
from processes import comes_true, descendants
from test_sandbox import WALLED

from posttrain.sandbox import Limits, Program, RaisedError, ReturnedValue, SessionEnded, open_session
from posttrain.sandbox.backends import Zygote, lacking

COUNTER = """
import ctypes, os, sys, time

seen = []

def answer(what, *more):
    seen.append(what)
    if what == "count":
        return len(seen)
    if what == "raise":
        raise ValueError("no such thing")
    if what == "exit":
        os._exit(7)
    if what == "leave":
        sys.exit(3)
    if what == "crash":
        ctypes.string_at(0)
    if what == "fill":
        return len(bytearray(1 << 30))
    if what == "sleep":
        time.sleep(3600)
    if what == "write":
        open("/etc/passwd")
    if what == "speak":
        print("x" * 1_000_000)
    if what == "forge":
        os.write(3, b'not JSON\\n')
    return [what, *more]
"""


@pytest.fixture(scope="module", params=list(WALLED))
def box(request):
    if reason := lacking("zygote"):
        pytest.skip(f"this machine lacks {reason}")
    with Zygote(WALLED[request.param]) as held:
        yield held


@pytest.fixture
def session(box):
    with open_session(box, Program(COUNTER), "answer", Limits(memory_mib=256)) as held:
        yield held


def test_a_session_remembers_and_goes_on_after_exceptions(session):
    assert session.call("first", 1, [2.5, None], wall_s=30) == ReturnedValue(["first", 1, [2.5, None]])
    assert session.call("raise", wall_s=30) == RaisedError("ValueError", "no such thing")
    assert session.call("leave", wall_s=30) == RaisedError("SystemExit", "3")
    assert session.call("fill", wall_s=30).name == "MemoryError"
    assert session.call("speak", wall_s=30) == ReturnedValue(["speak"])
    assert session.call("count", wall_s=30) == ReturnedValue(6)


def test_arguments_and_values_may_be_long(session):
    numbers = list(range(200_000))
    assert session.call("first", numbers, wall_s=60) == ReturnedValue(["first", numbers])


@pytest.mark.parametrize(("what", "exit"), [("exit", 7), ("crash", -signal.SIGSEGV)])
def test_a_session_that_ends_says_how(session, what, exit):
    with pytest.raises(SessionEnded) as ended:
        session.call(what, wall_s=30)
    assert ended.value.exit == exit
    with pytest.raises((SessionEnded, RuntimeError, OSError)):
        session.call("count", wall_s=30)


def test_what_does_not_answer_is_killed(box, session):
    zygote = box.live_process().process.pid
    living = len(descendants(zygote))
    with pytest.raises(SessionEnded, match=r"no answer in 0\.2 s") as ended:
        session.call("sleep", wall_s=0.2)
    assert ended.value.exit is None
    assert comes_true(lambda: len(descendants(zygote)) <= living - 2)  # the program and its keeper


def test_an_answer_that_is_not_the_harness_ends_it(session):
    with pytest.raises(SessionEnded, match="not the harness'"):
        session.call("forge", wall_s=30)


def test_a_session_stays_behind_the_walls(box, session):
    if "files" in box.isolates:
        assert session.call("write", wall_s=30).name in ("FileNotFoundError", "PermissionError")


def test_a_program_that_does_not_load_says_why(box):
    with pytest.raises(ValueError, match="does not load: ZeroDivisionError: division by zero"):
        open_session(box, Program("1 / 0"), "answer")
    with pytest.raises(ValueError, match="the source defines no answer"):
        open_session(box, Program("x = 1"), "answer")
    with pytest.raises(RuntimeError, match="ended while it loaded: exit code 4"):
        open_session(box, Program("import os\nos._exit(4)"), "answer")


def test_a_session_ends_with_its_sandbox(zygote_of_its_own):
    box, session = zygote_of_its_own
    box.close()

    def has_ended() -> bool:
        try:
            session.call("count", wall_s=30)
        except RuntimeError as error:
            return "has died" in str(error)
        return False  # the kernel has not come to it yet

    assert comes_true(has_ended)


@pytest.fixture
def zygote_of_its_own():
    if reason := lacking("zygote"):
        pytest.skip(f"this machine lacks {reason}")
    with Zygote() as box, open_session(box, Program(COUNTER), "answer") as session:
        yield box, session
