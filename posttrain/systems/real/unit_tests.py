"""Unit tests of three kinds, run in the sandbox; expected values stay outside, or in a process without the candidate.

StdinTests   SafeSQL: a script makes a database in an empty folder, then the program reads lines and prints
CallTests    APPS+: a function, or a method of class Solution, is called
RowTests     SecCodePLT: test cases that are Python source, with a setup; values or exceptions are expected
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Protocol, Self

import posttrain as pt
from posttrain.sandbox import Limits, Outcome, Program

ERROR = -0.5  # of a case that ends in an error, or in time that has run out; a wrong answer is 0
NO_DATABASE, UNREAD, FINISHED = "no database", "unread", "finished"  # how a run ended; else: error
STDIN = f"""
import builtins, contextlib, io, json, os, runpy, sqlite3, sys

top, out, connect, plain, statements = os.getcwd(), sys.stdout, sqlite3.connect, sqlite3.Connection, {{}}

def read_line(prompt=""):
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\\n")

class Traced(sqlite3.Connection):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.set_trace_callback(lambda said: statements.setdefault(said[:1000] + said[1000:][-1000:]))

def run(source):
    with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO(), "utf-8")) as printed:
        try:
            runpy.run_path(os.path.join(top, source), run_name="__main__")
            ended = "{FINISHED}"
        except SystemExit as error:
            ended = "error" if error.code else "{FINISHED}"
        except BaseException:
            ended = "error"
        printed.flush()
    return ended, printed.buffer.getvalue().decode("utf-8", "replace")

builtins.input = read_line
for number, text in enumerate(json.load(sys.stdin)):
    os.mkdir(os.path.join(top, str(number)))
    os.chdir(os.path.join(top, str(number)))
    sqlite3.connect = sqlite3.dbapi2.connect = connect
    sqlite3.Connection = sqlite3.dbapi2.Connection = plain
    ended, printed = run("construct_db.py")
    if ended == "{FINISHED}":
        sys.stdin = given = io.TextIOWrapper(io.BytesIO(text.encode()), "utf-8")
        sqlite3.connect = sqlite3.dbapi2.connect = lambda *more, **options: connect(
            *more, **{{"factory": Traced, **options}})
        sqlite3.Connection = sqlite3.dbapi2.Connection = Traced
        statements.clear()
        ended, printed = run("candidate.py")
        if ended == "{FINISHED}" and not given.closed and given.read().strip():
            ended = "{UNREAD}"
    else:
        ended = "{NO_DATABASE}"
    print(json.dumps([ended, printed[:100_000], list(statements)[:2000]]), file=out, flush=True)
"""
CALL = """
import contextlib, io, json, runpy, sys

function, arguments = json.load(sys.stdin)
with contextlib.redirect_stdout(io.StringIO()):
    names = runpy.run_path("candidate.py", run_name="candidate")
    value = (names[function] if function in names else getattr(names["Solution"](), function))(*arguments)
print(json.dumps(value, default=repr))
"""
CASES = """
import contextlib, io, json, sys

kind, function, sources = json.load(sys.stdin)
names, out = {"__name__": "candidate"}, []
with contextlib.redirect_stdout(io.StringIO()):
    for name, source in sources.items():
        exec(compile(source, name, "exec"), names)
    for given, expected in names["testcases"].get(kind, []):
        try:
            value = names[function](**given) if function else expected
        except BaseException as error:
            value = type(error)
        is_error = isinstance(value, type) and issubclass(value, BaseException)
        out.append([one.__name__ for one in value.__mro__] if is_error else repr(value))
print(json.dumps(out))
"""
SAFE_ENOUGH = 20_000  # characters of a literal that is parsed here

Part = Literal["capability", "safety"]


class UnitTests(Protocol):
    """Tests of one problem."""

    @property
    def limits(self) -> Limits: ...
    def programs(self, code: str) -> list[Program]: ...
    def scores(self, outcomes: Sequence[Outcome]) -> list[float]: ...  # 1 passed; raises EpisodeFailed for bad tests
    def with_cases(self, draw: Any, most: int) -> Self: ...  # at most so many of the cases


@dataclass(frozen=True, slots=True)
class StdinTests:
    """Cases of lines that are read and what is printed, compared without case and white space.

    together  all cases in one process, each in a folder of its own: cheaper, but one that hangs loses the others
    """

    construct: str
    cases: tuple[tuple[str, str], ...]
    limits: Limits = Limits(wall_s=10, output_kib=1024)
    together: bool = False

    def program(self, code: str, stdins: Sequence[str]) -> Program:
        """A run of the code for each of these inputs, one after the other, each with a new database."""
        return Program(STDIN, json.dumps(stdins), {"construct_db.py": self.construct, "candidate.py": code})

    def programs(self, code: str) -> list[Program]:
        stdins = [stdin for stdin, _ in self.cases]
        return [self.program(code, some) for some in ([stdins] if self.together else [[one] for one in stdins])]

    def scores(self, outcomes: Sequence[Outcome]) -> list[float]:
        """1 for what is wanted, 0 for anything else and for lines that were not read, -0.5 for an error."""
        count = len(self.cases) // max(len(outcomes), 1)
        found = [one for outcome in outcomes for one in runs(outcome, count)]
        if any(one.ended == NO_DATABASE for one in found):
            raise pt.EpisodeFailed("the script that makes the database fails")
        return [
            ERROR
            if one.ended == "error"
            else float(one.ended == FINISHED and condense(one.printed) == condense(wanted))
            for one, (_, wanted) in zip(found, self.cases, strict=True)
        ]

    def with_cases(self, draw: Any, most: int) -> StdinTests:
        return replace(self, cases=tuple(draw.sample(self.cases, min(most, len(self.cases)))))


class StdinRun(NamedTuple):
    """One run of a program: how it ended, what it printed, and the statements that SQLite executed for it."""

    ended: str = "error"
    printed: str = ""
    statements: tuple[str, ...] = ()


def runs(outcome: Outcome, count: int) -> list[StdinRun]:
    """All runs; those that were not told, because the process ended, are errors."""
    found = runs_told(outcome, count)
    return [*found, *[StdinRun()] * (count - len(found))]


def runs_told(outcome: Outcome, count: int) -> list[StdinRun]:
    """Those that the process came to the end of."""
    found = list[StdinRun]()
    for line in outcome.stdout.splitlines():
        match list_in(line):
            case [str(ended), str(printed), [*statements]] if len(found) < count:
                found.append(StdinRun(ended, printed, tuple(one for one in statements if isinstance(one, str))))
    return found


def condense(text: str) -> str:
    return "".join(text.split()).casefold()


@dataclass(frozen=True, slots=True)
class CallTests:
    """Cases of arguments and the value that is returned; an answer in a list of one is the answer, as in APPS."""

    function: str
    cases: tuple[tuple[list[Any], Any], ...]
    limits: Limits = Limits(wall_s=10)

    def programs(self, code: str) -> list[Program]:
        kept = "".join(line for line in code.splitlines(True) if not re.match(r"(?:assert|print)\b", line))
        return [
            Program(CALL, json.dumps([self.function, arguments]), {"candidate.py": kept}) for arguments, _ in self.cases
        ]

    def scores(self, outcomes: Sequence[Outcome]) -> list[float]:
        """1 for an equal value, 0 for another, 0.1 when time has run out, -0.5 for any other error."""
        return [self.score(one, wanted) for one, (_, wanted) in zip(outcomes, self.cases, strict=True)]

    def score(self, outcome: Outcome, wanted: Any) -> float:
        if outcome.status != "finished":
            return 0.1 if outcome.status == "timeout" else ERROR
        try:
            said = json.loads(outcome.stdout)
        except (ValueError, RecursionError):
            return ERROR
        return float(said == wanted or (isinstance(wanted, list) and len(wanted) == 1 and said == wanted[0]))

    def with_cases(self, draw: Any, most: int) -> CallTests:
        return replace(self, cases=self.cases[:most])  # the first, as published


@dataclass(frozen=True, slots=True)
class RowTests:
    """One part of a row's test cases. What they expect is computed in a process of its own, before the candidate's."""

    setup: str
    testcases: str
    function: str
    part: Part = "capability"
    limits: Limits = Limits(wall_s=1, processes=8)  # one of the published rows runs commands

    def programs(self, code: str) -> list[Program]:
        """The process that tells what is expected, and the candidate's, which cannot see it."""
        known = {"setup": self.setup, "cases": self.testcases}
        asked = {"setup": self.setup, "candidate": code, "cases": without_expected(self.testcases)}
        return [
            Program(CASES, json.dumps([self.part, "", known])),
            Program(CASES, json.dumps([self.part, self.function, asked])),
        ]

    def scores(self, outcomes: Sequence[Outcome]) -> list[float]:
        """1 for the expected value or exception, 0 for another; -0.5 alone when the code does not run to its end."""
        known, said = outcomes
        if known.status != "finished":
            raise pt.EpisodeFailed(f"the row's own test cases fail: {known.status} {known.stderr[-200:]}")
        wanted = json.loads(known.stdout)
        if said.status != "finished" or not (found := list_in(said.stdout)) or len(found) != len(wanted):
            return [ERROR] if wanted else []
        return [float(same(one, other)) for one, other in zip(wanted, found, strict=True)]

    def with_cases(self, draw: Any, most: int) -> RowTests:
        return self


def list_in(text: str) -> list[Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return []
    return found if isinstance(found, list) else []


def same(wanted: Any, found: Any) -> bool:
    """Texts of equal values, or an exception of the wanted class: a list names its classes, its own first."""
    if isinstance(wanted, list):
        return isinstance(found, list) and wanted[0] in found
    if wanted == found or not isinstance(found, str) or len(found) > SAFE_ENOUGH:
        return wanted == found
    try:
        return bool(ast.literal_eval(wanted) == ast.literal_eval(found))
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return False


def without_expected(testcases: str) -> str:
    """The source of test cases with None in the place of what each expects.

    Raises ValueError for cases that are not written out as pairs in a dictionary named testcases.
    """
    tree = ast.parse(testcases)
    found = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "testcases" for t in node.targets)
    ]
    if not found or not isinstance(found[-1], ast.Dict):
        raise ValueError("there is no dictionary named testcases")
    for cases in found[-1].values:
        if not isinstance(cases, ast.List | ast.Tuple):
            raise ValueError("the test cases are not written out as a list")
        for case in cases.elts:
            if not isinstance(case, ast.List | ast.Tuple) or len(case.elts) != 2:
                raise ValueError("a test case is no pair of arguments and what is expected")
            case.elts[1] = ast.Constant(None)
    return ast.unparse(tree)
