"""Problems with unit tests: rows of SafeSQL, SecCodePLT and APPS+ as they are published, or of one's own.

A record with `unittest` is one of SecCodePLT, one with `inputs` of APPS+ (`fn_name`, `inputs`, `outputs`), one with
`test_cases` of SafeSQL (`test_cases` of `input` and `output`, `construct_db`). Rows of one's own have the same columns.
The prompt never speaks of security.
"""

from __future__ import annotations

import ast
import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import posttrain as pt
from posttrain.records import Place, column, records, with_unique_keys
from posttrain.systems.real.unit_tests import CallTests, RowTests, StdinTests, UnitTests, without_expected

Kind = Literal["safesql", "seccode", "apps"]
FENCED = re.compile(r"```(?:python|py)[ \t]*\n(.*?)```", re.DOTALL)
FORM = "Reply with the whole code in one ```python block."


@dataclass(frozen=True, eq=False)
class Problem:
    """What is asked and how it is tested."""

    key: str
    kind: Kind
    prompt: str
    tests: UnitTests
    safety: UnitTests | None = None  # SecCodePLT's cases of attacks, which the reward leaves out unless asked
    function: str = ""  # that must be defined
    reference: str = ""  # good code, for supervised learning
    vulnerable: str = ""
    attacks: tuple[str, ...] = ()  # inputs that the row itself attacks with

    def __repr__(self) -> str:
        return f"{self.kind} {self.key}"

    def with_cases(self, most: int) -> Problem:
        """With at most so many of the cases, the same ones whenever it is asked: code is graded once."""
        return replace(self, tests=self.tests.with_cases(random.Random(pt.mix(0, "cases", self.key)), most))


def task_of(problem: Problem) -> pt.Task[Problem]:
    return pt.Task(problem.key, (pt.user(problem.prompt),), problem)


def fenced_code(text: str) -> str | None:
    """The last fenced block of Python; None if there is none."""
    blocks = FENCED.findall(text)
    return blocks[-1] if blocks else None


FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def is_placeholder(code: str, function: str) -> bool:
    """Nothing but comments and texts; or, if a function is named, none of that name, or one without a body.

    What cannot be parsed is none.
    """
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return not code.strip()
    if not function:
        bodies = [tree.body]
    else:
        bodies = [one.body for one in ast.walk(tree) if isinstance(one, FUNCTIONS) and one.name == function]
        if not bodies:  # it may still be a name for something else
            return not any(isinstance(one, ast.Name) and one.id == function for one in ast.walk(tree))
    return all(isinstance(one, ast.Pass) or is_constant(one) for one in bodies[-1])


def is_constant(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


# ---- records


def problems(data: str, limit: int | None = None, split: str = "train") -> list[Problem]:
    """The problems of a file or dataset. Raises ValueError naming file, line and column."""
    return with_unique_keys((place, problem(record, place)) for place, record in records(data, limit, split))


def problem(record: Mapping[str, Any], place: Place) -> Problem:
    if "unittest" in record:
        return seccode(record, place)
    if "inputs" in record:
        return apps(record, place)
    if "test_cases" in record:
        return safesql(record, place)
    raise ValueError(
        f"{place}: no unit tests: there is none of the columns test_cases (SafeSQL), unittest (SecCodePLT) and inputs "
        f"(APPS+), only {', '.join(map(repr, record))}"
    )


def key_of(record: Mapping[str, Any], place: Place) -> str:
    found = next((record[name] for name in ("id", "index", "problem_id") if record.get(name) is not None), place.line)
    return str(found)


def structure(value: Any, name: str, place: Place, kind: type) -> Any:
    """An object or list, or the JSON of one."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{place}: the column {name!r} is not JSON: {error}") from error
    if not isinstance(value, kind):
        raise ValueError(f"{place}: the column {name!r} holds {type(value).__name__}, not a {kind.__name__}")
    return value


def text_of(value: Any) -> str:
    """Lines that are read or printed: a text, or a list of lines."""
    return "\n".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def safesql(record: Mapping[str, Any], place: Place) -> Problem:
    rows, cases = structure(column(record, "test_cases", place, "test_cases"), "test_cases", place, list), []
    for number, one in enumerate(rows, 1):
        if not isinstance(one, Mapping) or not {"input", "output"} <= set(one):
            raise ValueError(f"{place}: test case {number} has no input and output")
        if one.get("success", True):
            cases.append((text_of(one["input"]), text_of(one["output"])))
    if not cases:
        raise ValueError(f"{place}: there are no test cases, so that any code would pass")
    attacks = structure(record.get("test_attacks") or [], "test_attacks", place, list)
    given = [one.get("input") if isinstance(one, Mapping) else one for one in attacks]
    asked = str(column(record, "task_description", place, "task_description"))
    return Problem(
        key=key_of(record, place),
        kind="safesql",
        prompt=f"{asked}\n\n{FORM}",
        tests=StdinTests(str(record.get("construct_db") or ""), tuple(cases)),
        reference=str(record.get("reference") or ""),
        vulnerable=str(record.get("execute_sql") or ""),
        attacks=tuple(text_of(one) for one in given if one is not None),
    )


def apps(record: Mapping[str, Any], place: Place) -> Problem:
    inputs = structure(column(record, "inputs", place, "inputs"), "inputs", place, list)
    outputs = structure(column(record, "outputs", place, "outputs"), "outputs", place, list)
    if len(inputs) != len(outputs) or not inputs:
        raise ValueError(f"{place}: {len(inputs)} inputs and {len(outputs)} outputs")
    if wrong := next((i for i, one in enumerate(inputs, 1) if not isinstance(one, list)), None):
        raise ValueError(f"{place}: input {wrong} is not a list of arguments")
    function = str(column(record, "fn_name", place, "fn_name"))
    named = next((name for name in ("task_description", "question", "prompt") if record.get(name)), "task_description")
    asked = str(column(record, named, place, named))
    where = "as a method of a class Solution" if record.get("program_type") == "class" else "as a function"
    return Problem(
        key=key_of(record, place),
        kind="apps",
        prompt=f"{asked}\n\nWrite it {where} named {function}. {FORM}",
        tests=CallTests(function, tuple(zip(inputs, outputs, strict=True))),
        reference=str(record.get("reference") or ""),
    )


ASKED = (
    ("description", ""),
    ("context", "Context: "),
    ("arguments", "Arguments:\n"),
    ("return", "Returns: "),
    ("raise", "Raises: "),
)


def seccode(record: Mapping[str, Any], place: Place) -> Problem:
    """A row of SecCodePLT. Its security policy is left out of the prompt."""
    told, truth, tests = (
        structure(column(record, name, place, name), name, place, dict)
        for name in ("task_description", "ground_truth", "unittest")
    )
    function = str(column(told, "function_name", place, "function_name"))
    lines = [f"{lead}{told[name]}" for name, lead in ASKED if told.get(name)]
    setup, cases = str(tests.get("setup") or ""), str(column(tests, "testcases", place, "testcases"))
    try:
        ast.parse(setup)
        without_expected(cases)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{place}: unittest cannot be read: {error}") from error
    given = f"\n\nThe following is there already:\n```\n{setup.strip()}\n```" if setup.strip() else ""
    before, after = str(truth.get("code_before") or ""), str(truth.get("code_after") or "")
    return Problem(
        key=key_of(record, place),
        kind="seccode",
        prompt="\n".join([*lines, f"Write the function {function}. {FORM}"]) + given,
        tests=RowTests(setup, cases, function),
        safety=RowTests(setup, cases, function, "safety"),
        function=function,
        reference=before + str(truth.get("patched_code") or "") + after,
        vulnerable=before + str(truth.get("vulnerable_code") or "") + after,
    )


def demonstrations(found: Sequence[Problem]) -> list[pt.Demonstration]:
    """Replies with the reference code, of the problems that have one. Raises ValueError where none has."""
    kept = [
        pt.Demonstration((pt.user(one.prompt), pt.assistant(f"```python\n{one.reference.strip()}\n```")))
        for one in found
        if one.reference.strip()
    ]
    if not kept:
        raise ValueError("not one problem has reference code: the column `reference`, or SecCodePLT's `ground_truth`")
    return kept
