"""Mathematical equality by math-verify, in a process that can be killed: some expressions never finish."""

from __future__ import annotations

import atexit
import json
import re
import select
import subprocess
import sys
import threading
from pathlib import Path

from posttrain.core import Group, Invalid, Rollout, Score
from posttrain.grade.stated import LONGEST, Stated, boxes_in, marked, plain_numbers, stated_answer, whole_reply
from posttrain.grade.text import truth_text

CPU_S = 10  # of the child, for one reply; on a busy machine, elapsed seconds say nothing about the work
STUCK_S = 600.0  # elapsed; for a child that sleeps
SERVER = Path(__file__).with_name("math_server.py")


def math(group: Group) -> list[Score | Invalid]:
    """1 where the answer that the reply states (`posttrain.grade.stated`) equals the truth as mathematics, else 0.

    Of a truth with a box or GSM8K's mark, what is in the box or behind the mark counts. A reply on which the comparison
    does not finish in ten CPU seconds is `Invalid`. Raises ValueError for a truth that math-verify cannot parse.
    """
    return [math_score(rollout) for rollout in group]


def math_score(rollout: Rollout) -> Score | Invalid:
    gold = gold_answer(truth_text(rollout.task, "math"))
    found = checker.check(gold, "") if gold else "unreadable"  # what nobody can read is said at once
    for candidate in candidates(stated_answer(whole_reply(rollout))) if found != "unreadable" else ():
        found = checker.check(gold, candidate)
        if found != "wrong":
            break
    if found == "unreadable":
        raise ValueError(
            f"task {rollout.task.key!r}: `grade=math` cannot parse its answer {rollout.task.truth!r}; "
            "correct it, or use `grade=exact`"
        )
    return Invalid("math-verify did not finish") if found == "timeout" else Score(float(found == "right"))


def gold_answer(truth: str) -> str:
    """The answer in a truth that may be a worked solution."""
    found = marked(truth)
    return found.text if found else truth.rpartition("####")[2].strip()


def candidates(stated: Stated | None) -> list[str]:
    """What a statement may mean, the likeliest first: all of it or what its last `=` gives, then the number in it."""
    if stated is None or not stated.text:
        return []
    text = stated.text
    left, sign, right = text.rpartition("=")
    if sign and right.strip() and not re.search(r"[a-zA-Z]", left):
        text = right.strip()
    found = [text]
    if stated.how == "announced" and "\\" not in text and (numbers := plain_numbers(text)):
        starts = not text[: numbers[0][0]].strip(" $*`(")
        if not (starts and re.match(r"\s*(?:,|and|or)\s*[-\d]", text[numbers[0][1] :])):  # a list is no number
            found.append((numbers[0] if starts else numbers[-1])[2])
    return [one for one in found if len(one) <= LONGEST]  # no answer is so long, and reading it takes seconds


def last_boxed(text: str) -> str | None:
    """The content of the last \\boxed{...} of a reply, or what follows its `####`; None without either."""
    found = marked(text)
    return (found.text or None) if found else None


def last_box(text: str) -> str | None:
    """The content of the last \\boxed{...}; None without one, and where its braces are not closed."""
    boxes = boxes_in(text)
    return (boxes[-1][2] or None) if boxes else None


def equivalent(a: str, b: str) -> bool:
    """Two answers are the same mathematics, or the same text where one of them cannot be read."""
    return a == b or checker.check(a, b) == "right"


class Checker:
    """One child process, started at the first question and again after it had to be killed."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.lock = threading.Lock()
        self.memory: dict[tuple[str, str], str] = {}

    def check(self, gold: str, answer: str) -> str:
        """right, wrong, unreadable (the gold answer) or timeout."""
        key = (gold, answer)
        with self.lock:
            if key not in self.memory:
                if len(self.memory) > 100_000:
                    self.memory.clear()
                self.memory[key] = self.ask(gold, answer)
            return self.memory[key]

    def ask(self, gold: str, answer: str) -> str:
        if self.process is None or self.process.poll() is not None:
            self.start()
        assert self.process is not None
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps([gold, answer, CPU_S]) + "\n")
            self.process.stdin.flush()
            found = self.line()
        except BaseException:  # a deadline or Ctrl-C: what the child still answers is not for the next question
            self.stop()
            raise
        if found is None:
            self.stop()
            return "timeout"
        return found

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(SERVER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a Ctrl-C is for the trainer, which still has a step to finish
        )
        if self.line() != "ready":
            raise RuntimeError("the math grader did not start; is math-verify installed?")

    def line(self) -> str | None:
        """The child's next line, or None when the child has died (as it does at its limit) or does nothing."""
        assert self.process is not None
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], STUCK_S)
        return self.process.stdout.readline().strip() or None if ready else None

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


checker = Checker()
atexit.register(checker.stop)
