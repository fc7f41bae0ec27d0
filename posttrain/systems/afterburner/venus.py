"""Problems with tests and people's solutions, as Venus has them, and the dialogue about them in Markdown.

A record has `question_content`, `code_prompt` (what the solution starts with), `test_cases` (a JSON list of {input,
output}) and `solutions` (a list of {code, passed, time, memory, integral}); and one of

    test_case_runners  a program that reads a test's input and prints its output, with ==Code Submission== in it
    function           the name of a function, or of a method of class Solution; inputs are JSON lists of arguments

`test_case_evaluator`, if there is one, is Python that defines evaluate(expected, printed); else texts are compared.
"""

from __future__ import annotations

import ast
import hashlib
import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import Any

import posttrain as pt
from posttrain.records import Place, column, records, with_unique_keys
from posttrain.sandbox import Calls, RaisedError, ReturnedValue
from posttrain.systems.afterburner.iterate import Best, Rewrite
from posttrain.systems.afterburner.measurement import METRICS, Execute, Metric

PLACEHOLDER = "==Code Submission=="
FENCED = re.compile(r"```[\w+-]*[ \t]*\n(.*?)```", re.DOTALL)
PASSED = "passed"
PRELUDE = """import bisect, collections, copy, functools, heapq, io, itertools, math, re, string, sys
from bisect import bisect_left, bisect_right
from collections import Counter, OrderedDict, defaultdict, deque
from functools import cache, lru_cache, reduce
from heapq import heapify, heappop, heappush
from itertools import accumulate, combinations, permutations, product, zip_longest
from math import ceil, comb, factorial, floor, gcd, inf, sqrt
from sys import maxsize, stdin
from typing import *

"""
RUNNER = """
def run_program(text):
    before, sys.stdin, sys.stdout = (sys.stdin, sys.stdout), io.StringIO(text), io.StringIO()
    try:
        exec(PROGRAM, dict(globals(), __name__="__main__", stdin=sys.stdin))
        return sys.stdout.getvalue()
    finally:
        sys.stdin, sys.stdout = before

PROGRAM = compile(%r, "submission", "exec")
"""
METHOD = """
if hasattr(globals().get("Solution"), %r):
    def %s(*arguments):
        return Solution().%s(*arguments)
"""
UNRUN = """
compile(%r, "submission", "exec")

def unrun():
    pass
"""


@dataclass(frozen=True)
class Solution:
    """Code that somebody wrote. Its recorded numbers are of other hardware: they only order one problem's solutions."""

    code: str
    passed: bool
    recorded: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Problem:
    """What is asked, its tests, and what people wrote."""

    key: str
    place: Place
    statement: str
    starter: str
    tests: tuple[tuple[str, str], ...]  # input and expected output, as texts
    runner: str = ""  # a program with the placeholder
    function: str = ""
    evaluator: str = ""
    solutions: tuple[Solution, ...] = ()

    @property
    def name(self) -> str:
        """The key and a hash of everything that decides whether code passes: another file may have the same keys."""
        return f"{self.key} {self.digest}"

    @cached_property
    def digest(self) -> str:
        decides = json.dumps([self.runner, self.function, self.evaluator, self.tests])
        return hashlib.sha256(decides.encode()).hexdigest()[:24]

    def calls(self, code: str) -> Calls:
        if self.runner:
            program = self.runner.replace(PLACEHOLDER, code)
            return Calls(PRELUDE + RUNNER % program, "run_program", tuple((given,) for given, _ in self.tests))
        method = METHOD % ((self.function,) * 3)
        arguments = tuple(tuple(json.loads(given)) for given, _ in self.tests)
        return Calls(f"{PRELUDE}{code}\n{method}", self.function, arguments)

    def compile_only(self, code: str) -> Calls | None:
        """None for a runner: its program is compiled beforehand, and executed anew in each call."""
        return None if self.runner else Calls(PRELUDE + UNRUN % code, "unrun", ((),))

    def verdict(self, results: Sequence[ReturnedValue | RaisedError], execute: Execute) -> str:
        """`passed`, or the first test that failed. The evaluator is executed as well, but never with the submission.

        A reply that makes the evaluator exit or time out has failed that test. Raises RuntimeError for an evaluator
        that cannot be executed at all.
        """
        values = [one.value if isinstance(one, ReturnedValue) else None for one in results]
        said = [value if self.runner else json.dumps(value) for value in values]
        unlike = [i for i, (_, wanted) in enumerate(self.tests) if not same(wanted, said[i], bool(self.runner))]
        if unlike and self.evaluator:
            found = execute(self.evaluator_calls([(self.tests[i][1], said[i]) for i in unlike]))
            if not found.results and (error := execute(self.evaluator_calls([])).error):
                raise RuntimeError(f"the evaluator of problem {self.key} cannot be executed: {error}")
            unlike = [i for i, one in zip_longest(unlike, found.results) if one != ReturnedValue(True)]
        return f"test {unlike[0] + 1}" if unlike else PASSED

    def evaluator_calls(self, outputs: Sequence[tuple[str, Any]]) -> Calls:
        """The calls of the evaluator; without outputs, it is only loaded."""
        return Calls(PRELUDE + self.evaluator, "evaluate", tuple(outputs))

    def accepts(self, verdict: str) -> bool:
        return verdict == PASSED


def same(wanted: str, said: Any, printed: bool) -> bool:
    if printed:
        return isinstance(said, str) and said.split() == wanted.split()
    return json.loads(wanted) == json.loads(said)


# ---- records


def problems(data: str, limit: int | None = None, split: str = "train") -> list[Problem]:
    """The problems of a JSONL or Parquet file or a dataset. Raises ValueError naming file, line and column."""
    return with_unique_keys((place, problem(record, place)) for place, record in records(data, limit, split))


def problem(record: Mapping[str, Any], place: Place) -> Problem:
    """The problem of one record.

    Raises ValueError naming the place for a runner without the placeholder, missing or malformed tests, and an
    evaluator that is not Python.
    """
    runner = str(record.get("test_case_runners") or "")
    if runner and PLACEHOLDER not in runner:
        raise ValueError(f"{place}: test_case_runners has no {PLACEHOLDER} in it, so the solution would not be run")
    function = "" if runner else str(column(record, "function", place, "function"))
    if function and not function.isidentifier():
        raise ValueError(f"{place}: function is {function!r}, which is no name of a function")
    return Problem(
        key=str(place.line if record.get("problem_id") is None else record["problem_id"]),
        place=place,
        statement=str(column(record, "question_content", place, "question_content")),
        starter=str(record.get("code_prompt") or ""),
        tests=tests(column(record, "test_cases", place, "test_cases"), place, runner == ""),
        runner=runner,
        function=function,
        evaluator=evaluator(str(record.get("test_case_evaluator") or ""), place),
        solutions=tuple(solution(one, place) for one in as_list(record.get("solutions") or [], "solutions", place)),
    )


def evaluator(source: str, place: Place) -> str:
    try:
        ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{place}: test_case_evaluator is no Python: {error}") from error
    return source


def check_evaluators(found: Sequence[Problem], execute: Execute) -> None:
    """Raises ValueError naming the first problem whose evaluator cannot be executed, before any work."""
    apart: dict[str, Problem] = {}
    for one in found:
        apart.setdefault(one.evaluator, one)
    for one in apart.values():
        if not one.evaluator:
            continue
        try:
            error = execute(one.evaluator_calls([])).error
        except RuntimeError as failed:
            raise ValueError(f"the sandbox failed: {failed}") from failed
        if error:
            raise ValueError(f"{one.place}: test_case_evaluator cannot be executed: {error}")


def as_list(value: Any, name: str, place: Place) -> list[Any]:
    """A list, or the JSON of one."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"{place}: {name} is not JSON: {error}") from error
    if not isinstance(value, list):
        raise ValueError(f"{place}: {name} is a {type(value).__name__}, not a list")
    return value


def tests(value: Any, place: Place, arguments: bool) -> tuple[tuple[str, str], ...]:
    out = []
    for number, case in enumerate(as_list(value, "test_cases", place), 1):
        if not isinstance(case, Mapping) or not {"input", "output"} <= set(case):
            raise ValueError(f"{place}: test case {number} has no input and output")
        given, wanted = (
            case[end] if isinstance(case[end], str) else json.dumps(case[end]) for end in ("input", "output")
        )
        if arguments:
            for end, text in (("input", given), ("output", wanted)):
                try:
                    parsed = json.loads(text)
                except json.JSONDecodeError as error:
                    raise ValueError(f"{place}: the {end} of test case {number} is not JSON: {error}") from error
                if end == "input" and not isinstance(parsed, list):
                    raise ValueError(f"{place}: the input of test case {number} is not a list of arguments")
        out.append((given, wanted))
    if not out:
        raise ValueError(f"{place}: there are no test cases, so that any code would pass")
    return tuple(out)


def solution(value: Any, place: Place) -> Solution:
    if not isinstance(value, Mapping) or not isinstance(value.get("code"), str):
        raise ValueError(f"{place}: a solution has no code")
    numbers = {metric: float(value[metric]) for metric in METRICS if value.get(metric) is not None}
    return Solution(value["code"], bool(value.get("passed", True)), numbers)


def best_first(one: Problem, metric: Metric) -> list[Solution]:
    """The solutions that passed and of which the metric was recorded, in the order of what was recorded."""
    known = [each for each in one.solutions if each.passed and metric in each.recorded]
    return sorted(known, key=lambda each: each.recorded[metric])


# ---- dialogue

WANTED: Mapping[Metric, str] = {
    "time": "time efficient",
    "memory": "memory efficient",
    "integral": "both time and memory efficient",
}
PROMPT = """You are an expert programmer. Write a Python solution of this problem that is correct and {wanted}.

## Problem
{statement}
{starter}{original}
## Reply
First think, then give the whole solution:
<thinking>
how it is repaired or improved
</thinking>
<solution>
```python
the code
```
</solution>
Repair the original solution if it did not pass; if it passed, make it more {wanted}.
Write no comments, no imports and no main function.
"""


@dataclass(frozen=True)
class InMarkdown:
    """What the policy is told of the code so far. The form of the reply is the published one."""

    feedback: bool = True
    """Tell it how the code before performed."""
    original: bool = True
    """Show it the code before."""

    def prompt(self, task: pt.Task[Rewrite], best: Best) -> tuple[pt.Message, ...]:
        one = task.truth.exercise
        assert isinstance(one, Problem)
        told, before = best.performance, ""
        if best.code is not None and self.original:
            before += f"\n## Original solution\n```python\n{best.code.strip()}\n```\n"
        if best.code is not None and self.feedback:
            numbers = f"Time: {told.seconds:.6f} s / Memory: {told.kib:.1f} KiB / Integral: {told.of('integral'):.6f}"
            before += "\n## Original performance\n"
            before += f"Passed: True / {numbers}\n" if told.passed else "Passed: False\n"
        starter = f"\n## Starter code\n```python\n{one.starter.strip()}\n```\n" if one.starter.strip() else ""
        wanted = WANTED[task.truth.metric]
        return (
            pt.user(PROMPT.format(wanted=wanted, statement=one.statement.strip(), starter=starter, original=before)),
        )

    def code(self, text: str) -> str | None:
        """The last fenced block of the last solution block; None if there is none."""
        _, opened, rest = text.rpartition("<solution>")
        inside, closed, _ = rest.partition("</solution>")
        blocks = FENCED.findall(inside)
        return blocks[-1].strip() or None if opened and closed and blocks else None


def reply_text(code: str) -> str:
    """A reply that gives somebody's code, with an empty thought: people left none."""
    return f"<thinking>\n</thinking>\n<solution>\n```python\n{code.strip()}\n```\n</solution>"


def task_of(one: Problem, metric: Metric, dialogue: InMarkdown, original: str | None = None) -> pt.Task[Rewrite]:
    """A task. Its prompt only gives the length: the environment asks with the performance in it as well."""
    truth = Rewrite(one, metric, original)
    task = pt.Task(f"{one.key}-{metric}", (), truth)
    return pt.Task(task.key, dialogue.prompt(task, Best(original)), truth)


def rewritings(found: Sequence[Problem], dialogue: InMarkdown, seed: int) -> list[pt.Task[Rewrite]]:
    """Every problem with each metric, from a random solution by people, passing or failing, if it has one."""
    out = []
    for one in found:
        for metric in METRICS:
            draw = random.Random(pt.mix(seed, "original", one.key, metric))
            out.append(task_of(one, metric, dialogue, draw.choice(one.solutions).code if one.solutions else None))
    return out
