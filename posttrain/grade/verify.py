"""Mathematical equality by math-verify, in a process that can be killed: some expressions never finish."""

from __future__ import annotations

import atexit
import json
import select
import subprocess
import sys
import threading
from pathlib import Path

from posttrain.core import Group, Invalid, Score
from posttrain.grade.text import truth_text

CPU_S = 10  # of the child, for one reply; on a busy machine, elapsed seconds say nothing about the work
STUCK_S = 600.0  # elapsed; for a child that sleeps
SERVER = Path(__file__).with_name("math_server.py")


def math(group: Group) -> list[Score | Invalid]:
    """1 where the reply's final answer equals the task's truth as mathematics, else 0.

    Of a truth or a reply that ends in `#### 42`, as GSM8K's do, what follows the mark counts. A reply on which the
    comparison does not finish in ten CPU seconds is `Invalid`. Raises ValueError for a truth that math-verify cannot
    parse.
    """
    out: list[Score | Invalid] = []
    for rollout in group:
        found = checker.check(text_after_mark(truth_text(rollout.task, "math")), text_after_mark(rollout.text))
        if found == "unreadable":
            raise ValueError(
                f"task {rollout.task.key!r}: `grade=math` cannot parse its answer {rollout.task.truth!r}; "
                "correct it, or use `grade=exact`"
            )
        out.append(Invalid("math-verify did not finish") if found == "timeout" else Score(float(found == "right")))
    return out


def text_after_mark(text: object) -> str:
    """What follows the last `####`, or all of the text."""
    return str(text).rpartition("####")[2].strip()


def last_boxed(text: str) -> str | None:
    """The content of the last \\boxed{...} of a reply, or what follows its last `####`; None without either."""
    if "\\boxed{" not in text:
        return text.rpartition("####")[2].strip() or None if "####" in text else None
    return last_box(text)


def last_box(text: str) -> str | None:
    """The content of the last \\boxed{...}; None without one, and where its braces are not closed."""
    start = text.rfind("\\boxed{")
    depth, begin = 0, start + len("\\boxed{")
    for i in range(begin - 1, len(text) if start >= 0 else 0):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return text[begin:i].strip() or None
    return None


def equivalent(a: str, b: str) -> bool:
    """Two answers are the same mathematics, or the same text where one of them cannot be read."""
    return a == b or checker.check(f"${a}$", f"\\boxed{{{b}}}") == "right"


class Checker:
    """One child process, started at the first question and again after it had to be killed."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.lock = threading.Lock()
        self.memory: dict[tuple[str, str], str] = {}

    def check(self, gold: str, reply: str) -> str:
        """right, wrong, unreadable (the gold answer) or timeout."""
        key = (gold, reply)
        with self.lock:
            if key not in self.memory:
                if len(self.memory) > 100_000:
                    self.memory.clear()
                self.memory[key] = self.ask(gold, reply)
            return self.memory[key]

    def ask(self, gold: str, reply: str) -> str:
        if self.process is None or self.process.poll() is not None:
            self.start()
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([gold, reply, CPU_S]) + "\n")
        self.process.stdin.flush()
        answer = self.line()
        if answer is None:
            self.stop()
            return "timeout"
        return answer

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
