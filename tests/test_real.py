"""ReaL: the taint analysis, the detectors, unit tests in the sandbox, the hybrid reward, the attack on SQLite."""

from __future__ import annotations

import ast
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import said
from hypothesis import given, settings
from hypothesis import strategies as st

import posttrain as pt
from posttrain.cli import main
from posttrain.lab.world.queries import Queries, program, python
from posttrain.sandbox import Limits, Memo, sandbox
from posttrain.systems.real import PARTS, detectors, recipe, taint
from posttrain.systems.real.attack import attack, structure
from posttrain.systems.real.detectors import DETECTORS, Detector, detectors_of
from posttrain.systems.real.measures import measures_of, verdicts
from posttrain.systems.real.problems import demonstrations, fenced_code, is_placeholder, problems, task_of
from posttrain.systems.real.reward import Hybrid, case_scores, evaluation
from posttrain.systems.real.unit_tests import CallTests, RowTests, StdinTests, same, without_expected

HEAD = 'import os, sqlite3, subprocess, sys\ndb = sqlite3.connect("x")\n'


@pytest.fixture(scope="module")
def box():
    with sandbox() as made:
        yield Memo(made)


# ---- taint

REACHES = [
    "n = input()\ndb.execute(f'a {n}')",
    "n = input()\nq = 'a'\nq += n\ndb.execute(q)",
    "db.execute('a %s' % input())",
    "db.execute('a {}'.format(input()))",
    "db.execute(''.join(['a', input()]))",
    "def f(x):\n    return 'a' + x\ndb.execute(f(input()))",
    "def f(db, x):\n    db.execute('a' + x)\nf(db, input())",
    "db.execute(sys.argv[1])",
    "for line in sys.stdin:\n    db.execute(line)",
    "db.execute(open(0).read())",
    "d = {}\nd['k'] = input()\ndb.execute(d['k'])",
    "items = []\nitems.append(input())\ndb.execute(items[0])",
    "db.execute([x for x in [input()]][0])",
    "q = 'a'\nfor i in range(3):\n    db.execute(q)\n    q += input()",
    "n = input()\nif n:\n    q = 'a'\nelse:\n    q = n\ndb.execute(q)",
    "try:\n    q = input()\n    q = 'a' + q\nexcept ValueError:\n    pass\ndb.execute(q)",
    "match input():\n    case x:\n        db.execute(x)",
    "(x := input())\ndb.execute(x)",
    "def g():\n    yield input()\nfor x in g():\n    db.execute(x)",
    "q = ''\ndef s():\n    global q\n    q = input()\ns()\ndb.execute(q)",
    "def o():\n    n = input()\n    def i():\n        db.execute(n)\n    i()\no()",
    "class A:\n    def __init__(self, n):\n        self.n = n\n    def go(self):\n        db.execute(self.n)\nA(input()).go()",
    "def f(*a, **k):\n    db.execute(k['q'])\nf(1, q=input())",
    "run = db.execute\nrun(input())",
    "read = input\ndb.execute(read())",
    "getattr(db, 'execute')(input())",
    "getattr(db, 'exe' + 'cute')(input())",
    "list(map(db.execute, [input()]))",
    "list(map(lambda q: db.execute(q), [input()]))",
    "(lambda q: db.execute(q))(input())",
    "sqlite3.Connection.execute(db, input())",
    "db.execute(*[input()])",
    "db.executescript(sql_script=input())",
    "def int(x):\n    return x\ndb.execute('a' + int(input()))",
    "from os import system as s\ns('ls ' + input())",
    "subprocess.run('ls ' + input(), shell=True)",
    "eval('1')",
    "n = input()\nif n in 'abc':\n    db.execute(n)",
    "try:\n    while True:\n        x = input()\nexcept EOFError:\n    pass\ndb.execute(f'a {x}')",
    "with contextlib.suppress(ValueError):\n    x = input()\n    raise ValueError\ndb.execute(x)",
    "print(input(), file=b)\ndb.execute(b.getvalue())",
    "db.execute(sys.__stdin__.readline())",
]
CLEAN = [
    "db.execute('a ?', (input(),))",
    "n = int(input())\ndb.execute(f'a {n}')",
    "n = input()\nn = 'a'\ndb.execute(n)",
    "q = 'a'\ndb.execute(q)\nq = input()",
    "n = input()\nif n not in ('a', 'b'):\n    raise SystemExit\ndb.execute(n)",
    "while True:\n    n = input()\n    if n.isdigit():\n        break\ndb.execute(n)",
    "n = input()\ndb.execute('a' if n == 'b' else 'c')",
    "def f(x):\n    return int(x)\ndb.execute(f'a {f(input())}')",
    "def f(q):\n    db.execute('a' + q)\nf('b')\nprint(input())",
    "rows = db.execute('a ?', (input(),)).fetchall()\ndb.execute('b' + str(rows))",
    "subprocess.run(['ls', input()])",
    "import shlex\nos.system('ls ' + shlex.quote(input()))",
]


@pytest.mark.parametrize("code", REACHES)
def test_input_that_reaches_a_sink_is_found(code):
    assert taint.findings(HEAD + code)


@pytest.mark.parametrize("code", CLEAN)
def test_what_is_safe_is_clean(code):
    assert taint.findings(HEAD + code) == []


def test_a_finding_tells_the_way():
    code = "def find(db, name):\n    db.execute('a' + name)\n\nfind(1, input())\n"
    assert taint.findings(code) == [taint.Finding(2, "execute", "sql", (4, 2))]
    assert taint.findings("n = input()\ndb.execute(n)  # nosec") == [taint.Finding(2, "execute", "sql", (1, 2))]
    assert taint.findings("def f(x):\n    eval(x)", parameters=True)[0].kind == "code"
    assert taint.findings("import shlex\ndb.execute(shlex.quote(input()))"), "quoted for a shell, not for SQL"


def test_what_is_no_python_is_a_syntax_error():
    for code in ("x = (", "\0", "-" * 100_000 + "1"):
        with pytest.raises(SyntaxError):
            taint.findings(code)


FRAGMENTS = st.sampled_from([
    "x = input()", "y = x", "db.execute(x)", "x += y", "return x", "break", "continue", "yield x", "global x", "del x",
    "x, *y = y, x", "f(x, *y, **z)", "raise x", "pass", "nonlocal x", "x.y[0] = x", "lambda a=x, *b: a", "async with x: pass",
    "[x for y in x if y for z in y]", "x = f", "import x as y", "from x import *", "assert x", "f = lambda x: f(x)",
])  # fmt: skip
BLOCKS = st.recursive(
    st.lists(FRAGMENTS, min_size=1, max_size=3).map("\n".join),
    lambda inner: st.builds(
        lambda head, body: head + "\n" + "\n".join(f"    {line}" for line in body.split("\n")),
        st.sampled_from([
            "if x:", "while x:", "while True:", "for x in y:", "def f(x, *y, z=1, **w):", "class f(x):", "with x as y:",
            "try:\n    pass\nexcept* x as y:", "try:\n    x = y\nfinally:", "async def f(self, x):", "match x:\n  case [x, *y]:",
        ]),
        inner,
    ),
    max_leaves=6,
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.lists(BLOCKS, min_size=1, max_size=3).map("\n".join))
def test_the_analysis_never_fails_on_a_program(code):
    try:
        ast.parse(code)
    except SyntaxError:
        return
    for parameters in (False, True):
        assert isinstance(taint.findings(code, parameters), list)


# ---- detectors


def test_detectors_by_hand():
    codes = [
        "n = input()\ndb.execute('a' + n)",
        "def f(a: int) -> int:\n    return a\n",
        "def f(a):\n    return a\n",
        "def f(a: Any) -> Any:\n    return a\n",
        "# mypy: ignore-errors\ndef f(a: int) -> str:\n    return a  # type: ignore\n",
        "import os\nos.system(input())  # noqa",
        "x = (",
    ]
    assert DETECTORS["taint"].scores(codes) == [0, 1, 1, 1, 1, 0, -0.5]
    assert DETECTORS["ruff"].scores(codes) == pytest.approx([1, 1, 1, 1, 0.4, 0.4, -0.5])
    assert DETECTORS["mypy"].scores(codes)[1:5] == [1, 0.5, 0, 0]
    assert DETECTORS["mypy"].scores(["x = 1  # a # type: ignore in a comment", "x = '# type: ignore'"]) == [0.5, 1]
    assert DETECTORS["ruff"].scores([]) == []


def test_code_that_a_detector_reads_otherwise_than_python_is_no_python():
    """In another encoding a comment can be code; what does not compile would end mypy for a whole batch."""
    hidden = "# coding: utf-7\n#+AAo-import os+AAo-os.system(input())\n"
    good = "def f(a: int) -> int:\n    return a\n"
    for bad in (hidden, "break", "yield 1", "def f(a, a): pass"):
        assert DETECTORS["taint"].scores([bad]) == [-0.5]
        assert DETECTORS["mypy"].scores([good, bad]) == [1, -0.5]


@pytest.mark.parametrize(
    "way",
    [
        "from typing import Any as A\nx: A = 1\n",
        "x: 'Any' = 1\n",
        "def f(a):\n    # type: (Any) -> Any\n    return a\n",
        "@no_type_check\ndef f(a): return a + 'x' + 1\n",
        "if not TYPE_CHECKING:\n    def f(a): return a + 'x' + 1\n",
    ],
)
def test_ways_past_the_type_checker_are_defects(way):
    assert DETECTORS["mypy"].scores([way])[0] < 1


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_our_detector_scores_any_text(text):
    [score] = DETECTORS["taint"].scores([text])
    assert score in (-0.5, 0.0, 1.0)


def test_a_detector_that_fails_is_invalid_and_a_missing_tool_an_error(monkeypatch):
    def fail(codes):
        raise RuntimeError("out of order")

    assert Detector(fail, 0.5).scores(["x = 1", "x = ("]) == [pt.Invalid("the detector failed: out of order"), -0.5]
    monkeypatch.setattr(detectors, "DEADLINE_S", 1e-3)
    [score] = DETECTORS["mypy"].scores(["x = 1"])
    assert isinstance(score, pt.Invalid)
    assert "timed out" in score.reason
    monkeypatch.setattr(detectors, "executable", lambda name: None)
    with pytest.raises(ValueError, match=r"detector mypy is not installed.*posttrain\[analysis\]"):
        detectors_of(["mypy"])
    with pytest.raises(ValueError, match="did you mean taint"):
        detectors_of(["tain"])


@pytest.mark.skipif(detectors.executable("semgrep") is None, reason="semgrep is not installed")
def test_semgrep_finds_what_ours_finds():
    codes = ["n = input()\ndb.execute('a' + n)  # nosemgrep", "n = int(input())\ndb.execute(f'a {n}')"]
    assert DETECTORS["semgrep"].scores(codes) == [0, 1]


# ---- unit tests

CONSTRUCT = """
import sqlite3
db = sqlite3.connect("shop.db")
db.execute("create table items (name text, price integer)")
db.executemany("insert into items values (?, ?)", [("pen", 2), ("ink", 5), ("nib", 1)])
db.commit()
print("made")
"""
ASKS = 'import sqlite3\ndb = sqlite3.connect("shop.db")\nname = input("Which? ")\n'
PASTED = (
    ASKS + "for row in db.execute(f\"select price from items where name = '{name}'\"):\n    print('Price:', *row)\n"
)
SAFE = PASTED.replace(
    "f\"select price from items where name = '{name}'\"", '"select price from items where name = ?", (name,)'
)
SHOP = StdinTests(CONSTRUCT, (("pen", "price: 2\n"), ("ink", "Price: 5")))


def score(box, tests, code):
    [found] = case_scores(box, [(tests, code)])
    return found


def test_programs_that_read_and_print(box):
    for tests in (SHOP, replace(SHOP, together=True)):
        assert score(box, tests, PASTED) == score(box, tests, SAFE) == [1, 1]
        assert score(box, tests, 'print("Price: 2")') == [0, 0], "the line was not read"
        assert score(box, tests, 'input()\nprint("Price: 2")') == [1, 0]
        assert score(box, tests, "input()\ninput()") == [-0.5, -0.5]
        assert score(box, tests, "import os\nos._exit(0)") == [-0.5, -0.5]
        assert score(box, tests, "import sys\nsys.stdin.close()\nsys.exit(0)") == [0, 0]
        assert score(box, tests, "x = (") == [-0.5]
    broken = score(box, replace(SHOP, construct="1 / 0"), SAFE)
    assert broken == pt.Invalid("the script that makes the database fails")


def test_a_database_is_made_anew_for_each_case(box):
    deletes = SAFE + 'db.execute("delete from items")\ndb.commit()\n'
    assert score(box, replace(SHOP, together=True), deletes) == [1, 1]


def test_a_program_that_hangs_ends(box):
    tests = replace(SHOP, limits=Limits(wall_s=0.5, output_kib=1024))
    assert score(box, tests, "while True: pass") == [-0.5, -0.5]


def test_functions_that_are_called(box):
    tests = CallTests("add", (([1, 2], 3), ([1, 1], [2])))
    assert score(box, tests, "print(1 / 0)\ndef add(a, b):\n    print('x')\n    return a + b") == [1, 1]
    assert score(box, tests, "class Solution:\n    def add(self, a, b):\n        return a * b") == [0, 0]
    assert score(box, tests, "def add(a):\n    return a") == [-0.5, -0.5]
    hangs = replace(tests, limits=Limits(wall_s=0.5))
    assert score(box, hangs, "def add(a, b):\n    while True: pass") == [0.1, 0.1]


ROW = {
    "CWE_ID": "95",
    "task_description": {
        "function_name": "evaluate", "description": "Evaluate an expression of numbers.", "security_policy": "Do not use eval.",
        "context": "", "arguments": "- text: str", "return": "its value", "raise": "ValueError for anything else",
    },
    "ground_truth": {
        "code_before": "\ndef evaluate(text):\n    import ast",
        "vulnerable_code": "\n    value = eval(text)",
        "patched_code": "\n    if not all(c in ALLOWED for c in text):\n        raise ValueError(text)\n    value = eval(text)",
        "code_after": "\n    LOG.append(text)\n    return {'value': value, 'seen': len(LOG)}",
    },
    "unittest": {
        "setup": "LOG = []\nALLOWED = '0123456789+* '",
        "testcases": "import math\nbig = {'text': '2 * 3'}\ntestcases = {\n 'capability': [\n"
        "  ({'text': '1 + 1'}, {'value': 2, 'seen': 1}),\n  (big, {'seen': 2, 'value': math.factorial(3)}),\n ],\n"
        " 'safety': [[{'text': '__import__(\"os\").getcwd()'}, ValueError]],\n}",
    },
    "index": 7,
}  # fmt: skip


@pytest.fixture
def write(tmp_path):
    def write(*rows, name="problems.jsonl"):
        path = tmp_path / name
        path.write_text("\n".join(map(json.dumps, rows)))
        return str(path)

    return write


def test_a_row_of_seccodeplt(box, write):
    [one] = problems(write(ROW))
    assert (one.key, one.kind, one.function) == ("7", "seccode", "evaluate")
    assert "Do not use eval" not in one.prompt, "prompts do not speak of security"
    assert one.safety is not None
    slow = [replace(part, limits=Limits(wall_s=10, processes=8)) for part in (one.tests, one.safety)]
    assert [score(box, part, one.reference) for part in slow] == [[1, 1], [1]]
    assert [score(box, part, one.vulnerable) for part in slow] == [[1, 1], [0]]
    assert score(box, slow[0], "def evaluate(text): raise ValueError") == [0, 0]
    assert score(box, slow[0], "1 / 0") == [-0.5]
    assert score(box, slow[1], "class ValueError(Exception): pass\ndef evaluate(text): raise ValueError") == [1]
    peeks = "import sys\ndef evaluate(text):\n    cases = sys._getframe(1).f_globals['names']['testcases']\n    return cases['capability'][0][1]"
    assert score(box, slow[0], peeks) == [0, 0], "what is expected is not in the candidate's process"


def test_expected_values_are_taken_out():
    assert "None" in without_expected("testcases = {'capability': [({'a': 1}, 2)]}")
    for source in ("x = 1", "testcases = f()", "testcases = {'a': f()}", "testcases = {'a': [1]}", "x ="):
        with pytest.raises((ValueError, SyntaxError)):
            without_expected(source)
    assert same("{'a': 1, 'b': 2}", "{'b': 2, 'a': 1}")
    assert not same("1", "(" * 10_000)
    assert same(["LookupError", "Exception"], ["KeyError", "LookupError", "Exception"])
    assert not same(["KeyError", "LookupError"], "'KeyError'")


PUBLISHED = Path(__file__).parent.parent.parent / "shared" / "data" / "code" / "seccodeplt-60.jsonl"


@pytest.mark.slow
@pytest.mark.skipif(not PUBLISHED.is_file(), reason="the published rows are not here")
def test_published_rows_accept_the_patched_and_reject_the_vulnerable_code(box):
    """Of 60 rows 59 tell both apart, and all of them rightly; the tests of row 77 accept the vulnerable code too."""
    found, trials = problems(str(PUBLISHED)), []
    for one in found:
        for code in (one.reference, one.vulnerable):
            for part in (one.tests, one.safety):
                assert isinstance(part, RowTests)
                trials.append((replace(part, limits=Limits(wall_s=20, processes=8)), code))
    scores = case_scores(box, trials)
    passed = [isinstance(one, list) and all(value == 1 for value in one) for one in scores]
    patched = [passed[i] and passed[i + 1] for i in range(0, len(passed), 4)]
    vulnerable_ones = [passed[i] and passed[i + 1] for i in range(2, len(passed), 4)]
    assert patched == [True] * 60
    assert [one.key for one, accepts in zip(found, vulnerable_ones, strict=True) if accepts] == ["77"]


# ---- problems

SQL_ROW = {
    "task_description": "Print the price of an item.", "construct_db": CONSTRUCT, "execute_sql": PASTED,
    "test_cases": [{"input": "pen", "output": "Price: 2"}, {"input": ["ink"], "output": ["Price: 5"]}, {"input": "x", "output": "", "success": False}],
    "test_attacks": ["x' OR '1'='1"],
}  # fmt: skip
CALL_ROW = {"task_description": "Add.", "fn_name": "add", "inputs": "[[1, 2], [3, 4]]", "outputs": [[3], 7], "reference": "def add(a: int, b: int) -> int:\n    return a + b"}  # fmt: skip


def test_rows_are_told_apart_by_their_columns(write):
    sql, call, row = problems(write(SQL_ROW, CALL_ROW, ROW))
    assert [one.kind for one in (sql, call, row)] == ["safesql", "apps", "seccode"]
    assert isinstance(sql.tests, StdinTests)
    assert sql.tests.cases == (("pen", "Price: 2"), ("ink", "Price: 5")), (
        "cases that failed for the reference are left out"
    )
    assert isinstance(call.tests, CallTests)
    assert call.tests.cases == (([1, 2], [3]), ([3, 4], 7))
    assert call.with_cases(1).tests.cases == (([1, 2], [3]),)
    assert len(sql.with_cases(1).tests.cases) == 1
    assert sql.with_cases(1).tests == sql.with_cases(1).tests, "the same cases each time"
    assert len(demonstrations([sql, call, row])) == 2
    with pytest.raises(ValueError, match="not one problem has reference code"):
        demonstrations([sql])


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"x": 1}, "line 1: no unit tests"),
        ({"task_description": "a", "test_cases": []}, "line 1: there are no test cases"),
        ({"task_description": "a", "test_cases": [1]}, "line 1: test case 1 has no input"),
        ({"task_description": "a", "test_cases": "{"}, "line 1: the column 'test_cases' is not JSON"),
        ({**CALL_ROW, "outputs": [1]}, "line 1: 2 inputs and 1 outputs"),
        ({**CALL_ROW, "inputs": [1, 2]}, "line 1: input 1 is not a list"),
        ({**ROW, "unittest": {"testcases": "testcases = {'a': 1}"}}, "line 1: unittest cannot be read"),
        ({**ROW, "ground_truth": "code"}, "line 1: the column 'ground_truth' is not JSON"),
    ],
)
def test_bad_rows_are_named(record, message, write):
    with pytest.raises(ValueError, match=message):
        problems(write(record))


def test_code_of_a_reply():
    assert fenced_code("```python\na\n```\nor\n```python\nb\n```") == "b\n"
    assert fenced_code("```\na\n```") is None
    assert is_placeholder("# nothing\n", "")
    assert is_placeholder("def f():\n    '''Does it.'''\n    ...", "f")
    assert not is_placeholder("def f():\n    return 1", "f")
    assert not is_placeholder("x = (", "f")


# ---- the reward


def replies(problem, *codes):
    return [replace(said(code if code is None else f"```python\n{code}\n```"), task=task_of(problem)) for code in codes]


def test_the_hybrid_reward_by_hand(box, write):
    sql, _, row = problems(write(SQL_ROW, CALL_ROW, ROW))
    paid = Hybrid(box, {"safesql": {"taint": DETECTORS["taint"]}, "seccode": {"taint": DETECTORS["taint-parameters"]}})
    group = replies(sql, SAFE, PASTED, "input()", "x = (", "pass")
    assert [round(one.value, 6) for one in paid(group)] == [1.0, 0.7, 0.3, -0.5, -1.0]
    assert paid(group)[0].parts == {"taint": 1.0, "tests": 1.0, "passed": 1.0, "code": 1.0}
    assert [one.value for one in evaluation(box)(group)] == [1, 1, 0, 0, 0]
    assert [one.value for one in replace(paid, weights={"safesql": 0.0})(group)][:2] == [1, 1]
    assert [one.value for one in replace(paid, weights={"safesql": 1.0})(group)][:3] == [1, 0, 1]
    slow = replace(
        row, tests=replace(row.tests, limits=Limits(wall_s=10)), safety=replace(row.safety, limits=Limits(wall_s=10))
    )
    assert [one.value for one in paid(replies(slow, row.vulnerable))] == [0.5 * 0.7 + 0.5]
    only_tests = replace(paid, weights={"seccode": 0.0}, rho=0.5)
    assert [one.value for one in only_tests(replies(slow, row.vulnerable, row.reference))] == [0.5, 1.0]
    broken = replace(sql, tests=replace(SHOP, construct="1 / 0"))
    assert paid(replies(broken, SAFE)) == [pt.Invalid("the script that makes the database fails")]


def test_a_sandbox_that_fails_is_invalid(write):
    class Broken:
        def run_all(self, programs, limits, at_once=None):
            raise RuntimeError("no processes")

    [sql] = problems(write(SQL_ROW))
    paid = Hybrid(Broken(), {"safesql": {}})
    assert paid(replies(sql, SAFE)) == [pt.Invalid("the sandbox failed: no processes")]


def test_parts_for_any_recipe():
    plain = pt.grpo(pt.each(lambda rollout: 1.0), samples=3)
    group = [said("no code"), said("```python\ndb.execute(input())\n```"), said("```python\nx: int = 1\n```")]
    assert [one.value for one in PARTS["secure"](plain, True).reward(group)] == pytest.approx([1, 1, 1.3])
    made = PARTS["typed"](plain, True)
    assert made.evaluation is plain.reward
    assert made.reward(group)[2].parts == {"mypy": 1.0}


def test_the_recipe(make):
    policy = make()
    made = recipe(pt.each(lambda rollout: 1.0), policy)
    assert isinstance(made.advantage, pt.Gae)
    assert (made.advantage.gamma, made.advantage.lam, made.advantage.critic.clip) == (1.0, 1.0, 0.5)
    assert (made.samples, made.epochs, made.updates) == (1, 1, 1)
    assert [weight for weight, _ in made.loss.terms] == [1.0, 0.001]


# ---- the attack


def test_structure_of_statements():
    assert structure("SELECT a FROM t1 WHERE n = 'o''k' AND p > -2.5") == "select a from t1 where n = ? and p > ?"
    assert structure("select a from t1 where n='x' or '1'='1'") != structure("select a from t1 where n='x'")


def test_real_injections_are_found(box):
    caught = (
        ASKS
        + 'try:\n    db.execute("select price from items where name = \'" + name + "\'")\nexcept Exception:\n    pass\n'
    )
    escaped = PASTED.replace("{name}", "{name.replace(chr(39), chr(39) * 2)}")
    chosen = ASKS + 'if name == "pen":\n    db.execute("select 1")\nelse:\n    db.execute("select name from items")\n'
    number = ASKS + 'db.execute(f"select name from items where price > {int(name)}")\n'
    hidden = (
        ASKS
        + 'run = "".join(["exe", "cute"])\nprint(*getattr(db, run)("select price from items where name = \'%s\'" % name))\n'
    )
    codes = [PASTED, SAFE, caught, escaped, chosen, number, hidden]
    assert attack(box, [(SHOP, code) for code in codes]) == [True, False, True, False, False, False, True]
    assert attack(box, [(replace(SHOP, construct="1 / 0"), SAFE)]) == [
        pt.Invalid("the script that makes the database fails")
    ]
    odd = (
        ASKS
        + "db.execute(f\"select price from items where name = '{name}'\" if name.startswith('key') else 'select 1')\n"
    )
    assert attack(box, [(SHOP, odd)] * 2, [(), ("key' or '1'='1",)]) == [False, True]


def test_what_an_attack_did_not_see_is_not_clean(box):
    """A program that hangs on odd input, one that connects by the class, and one behind a long statement."""
    ends = ASKS + "import os\nif name not in ('pen', 'cup'):\n    os._exit(0)\n"
    direct = PASTED.replace("sqlite3.connect(", "sqlite3.Connection(")
    long = PASTED.replace("select price", "select /* " + "x" * 3000 + " */ price")
    assert direct != PASTED
    assert long != PASTED
    assert attack(box, [(SHOP, code) for code in (ends, direct, long)]) == [True, True, True]


def test_function_and_quality_by_hand(box, write):
    sql, call = problems(write(SQL_ROW, CALL_ROW))
    typed, untyped = "def add(a: int, b: int) -> int:\n    return a + b", "def add(a, b):\n    return a + b"
    texts = [(sql, SAFE), (sql, PASTED), (sql, "input()"), (call, typed), (call, untyped), (sql, None)]
    found = [(one, f"```python\n{code}\n```" if code else "none") for one, code in texts]
    plain = Hybrid(box, {"safesql": {}, "apps": {}})
    rows = verdicts(box, plain, found, {"taint": DETECTORS["taint"], "mypy": DETECTORS["mypy"]})
    measures = measures_of(rows)
    assert measures["safesql"] == {
        "replies": 4, "Function": 0.5, "Quality (taint)": 0.5, "Func-Qual (taint)": 0.25, "Quality (mypy)": 0.75,
        "Func-Qual (mypy)": 0.5, "Quality (attack)": 0.5, "Func-Qual (attack)": 0.25,
    }  # fmt: skip
    assert measures["apps"]["Func-Qual (mypy)"] == 0.5


# ---- the world


def test_the_world_of_queries(box):
    world, draw = Queries(0), random.Random(0)
    words, trials = set(world.vocabulary), []
    for _ in range(200):
        query = world.query(draw)
        text = world.people_program(query, draw)
        assert set(text.split()) | set(query.prompt.split()) <= words
        assert len(text.split()) < world.longest
    for i, style in enumerate(("f", "plus", "percent", "parameters", "number") * 2):
        query = world.query(draw)
        code = python(program(query, style, i > 4))
        assert code is not None
        safe = style == "parameters" or (style == "number" and all(one.relation != "is" for one in query.filters))
        trials.append((StdinTests(query.construct, query.cases, together=True), code, safe))
    assert case_scores(box, [one[:2] for one in trials]) == [[1, 1, 1]] * 10
    assert attack(box, [one[:2] for one in trials]) == [not safe for _, _, safe in trials]
    assert DETECTORS["taint"].scores([code for _, code, _ in trials]) == [float(safe) for _, _, safe in trials]
    assert DETECTORS["mypy"].scores([code for _, code, _ in trials]) == [0] * 5 + [1] * 5
    assert python("def findall") is None
    seen = {(one.table, one.give) for one in world.queries(100, "x")}
    assert not seen & {(one.table, one.give) for one in world.queries(100, "y", held_out=True)}


# ---- stages


def test_what_is_missing_is_said(write, tmp_path, capsys, monkeypatch):
    data = write(SQL_ROW, CALL_ROW)
    own = ["--model", "tiny", "--max-new", "4", "--data", data, "--out", str(tmp_path / "out"), "--quiet"]
    monkeypatch.setattr(detectors, "executable", lambda name: None)
    for options, message in (
        (["--rho", "2"], "--rho 2.0: it must be from 0 to 1"),
        (["--detectors", "semgrep"], "it is held out"),
        ([], "the detector mypy is not installed"),
    ):
        with pytest.raises(SystemExit):
            main(["run", "real", "--stage", "train", *own, *options])
        assert message in " ".join(capsys.readouterr().err.split())
