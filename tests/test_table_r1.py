"""Table-R1: forms, answers, both scorers, the readers of published formats, tables that are too long, its stages."""

from __future__ import annotations

import json
import random
import re

import pytest
from conftest import broken_rows, refusal, said
from hypothesis import given, settings
from hypothesis import strategies as st

import posttrain as pt
from posttrain.cli import main
from posttrain.lab.world.tables import OPERATIONS, Tables, reply
from posttrain.records import Place
from posttrain.systems.table_r1 import recipe
from posttrain.systems.table_r1.answers import (
    KINDS,
    cumulative_format,
    items_of,
    loosely_stated,
    number_or_text,
    same_items,
    stated,
    strict_format,
)
from posttrain.systems.table_r1.lab import KIND, task
from posttrain.systems.table_r1.questions import fitted, question, questions
from posttrain.systems.table_r1.reward import Truth, evaluation, reward
from posttrain.systems.table_r1.stages import right_trace
from posttrain.systems.table_r1.tables import Table, cell

pytest.importorskip("sacrebleu")
pytest.importorskip("rouge_score")


def whole(answer: str, thought: str = "so") -> str:
    return f'<think>{thought}</think>\n<answer>\n```json\n{{"answer": {answer}}}\n```\n</answer>'


LIST = whole('["3", "Oslo"]')


@pytest.mark.parametrize(
    ("text", "kind", "strict", "cumulative"),
    [
        (LIST, "TQA", 1, 1.0),
        (f"  {LIST}\n", "TQA", 1, 1.0),
        (whole("[3]"), "TQA", 0, 0.8),  # numbers earn accuracy, and no point of form
        (whole('"3"'), "TQA", 0, 0.8),
        (whole('"entailed"'), "TFV", 1, 1.0),
        (whole('"Entailed"'), "TFV", 0, 0.8),
        (whole('"It is so."'), "FF-TQA", 1, 1.0),
        (LIST.replace("```json", "```"), "TQA", 0, 0.5),
        ('<think>so</think> <answer>{"answer": ["3"]}</answer>', "TQA", 0, 0.5),
        (whole('["3"]', thought="<think>twice"), "TQA", 0, 0.3),
        ("so " + LIST, "TQA", 0, 0.0),
        ('{"answer": ["3"]}', "TQA", 0, 0.0),
        ("", "TQA", 0, 0.0),
    ],
)
def test_the_two_rewards_of_form(text, kind, strict, cumulative):
    assert strict_format(text, kind) == strict
    assert cumulative_format(text, kind) == pytest.approx(cumulative)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (LIST, ["3", "Oslo"]),
        ('{"answer": ["no"]} <answer>```json\n{"answer": ["yes"]}\n```</answer>', ["yes"]),
        ('{"answer": ["bare"]} ```json\n{"answer": ["fenced"]}\n```', ["fenced"]),
        ('It is {"answer": 7}.', 7),
        ('It is { "answer": "a } b" }.', "a } b"),  # the released pattern would end at the first brace
        ('"answer": ["unbraced"]', None),
        ('{"answer": ["open"', None),
        ("none", None),
    ],
)
def test_an_answer_is_found_wherever_it_stands(text, answer):
    assert stated(text) == answer


def test_the_looser_scorer_reads_what_the_strict_one_does_not():
    assert loosely_stated('The "answer": ["unbraced"] is') == ["unbraced"]
    truth = Truth("TQA", ("0.12", "const_7", "Oslo"))
    text = whole('["12%", "7", "OSLO"]')
    assert grade(evaluation(), text, truth).value == 1
    assert grade(reward(), text, truth).parts["accuracy"] == 0
    truth = Truth("FF-TQA", ("no word of it", "It is so."))
    assert grade(evaluation(), whole('"It is so."'), truth).value == pytest.approx(1.0)
    assert grade(reward(), whole('"It is so."'), truth).parts["accuracy"] < 0.2, (
        "the first reference counts in training"
    )


def grade(by, text, truth):
    return by([said(text, truth)])[0]


@pytest.mark.parametrize(
    ("given", "wanted", "same"),
    [
        (["3", "Oslo"], ("Oslo", "3"), True),
        (["1,000"], ("1000",), True),
        ([3.004], ("3",), True),
        ([3.02], ("3",), False),
        (["oslo"], ("Oslo",), False),
        (["3"], ("3", "3"), False),
        (["3", "3"], ("3",), False),
        (["a", "a"], ("a", "b"), False),
    ],
)
def test_short_answers_are_matched_as_many_as_there_are(given, wanted, same):
    assert same_items(items_of(given), [number_or_text(one) for one in wanted]) == same


@pytest.mark.parametrize("answer", ["[]", "[[1]]", "[null]", "[true]", json.dumps(["a"] * 101)])
def test_what_is_no_short_answer_earns_nothing_at_all(answer):
    score = grade(reward("cumulative"), whole(answer), Truth("TQA", ("a",)))
    assert (score.value, score.parts["format"]) == (0.0, 0.0)


def test_rewards_by_kind():
    assert grade(reward(), LIST, Truth("TQA", ("Oslo", "3"))).value == 2
    assert grade(reward(), LIST, Truth("TQA", ("Rome",))).value == 1
    assert grade(reward(), '{"answer": ["3"]}', Truth("TQA", ("3",))).value == 1
    assert grade(reward(), whole('"refuted"'), Truth("TFV", ("refuted",))).value == 2
    sentence = grade(reward(), whole('"It is so."'), Truth("FF-TQA", ("It is so.",)))
    assert sentence.value == pytest.approx(2.0)
    assert sentence.parts["bleu"] == pytest.approx(100.0)
    assert grade(reward(), "It is so.", Truth("FF-TQA", ("It is so.",))).value == pytest.approx(1.0), "as released"


@given(st.text(max_size=300) | st.text(alphabet='<>/{}[]"answer`json think:,0.1e\n', max_size=300))
def test_no_text_however_broken_is_more_than_a_score(text):
    for kind in KINDS:
        assert strict_format(text, kind) in (0, 1)
        assert cumulative_format(text, kind) in (0.0, 0.3, 0.5, 0.8, 1.0)
        truth = Truth(kind, ("entailed",))
        for by, most in ((reward(), 2), (reward("cumulative"), 2), (evaluation(), 1)):
            assert 0 <= grade(by, text, truth).value <= most


def test_a_long_reply_keeps_nobody_busy():
    for text in ('{"answer": ' * 20_000, "```json " * 20_000, "<answer>" * 20_000, "[" * 50_000, "{" * 50_000):
        assert grade(reward(), text, Truth("TQA", ("a",))).value == 0
        evaluation()([said(text, Truth("TQA", ("a",)))])


# ---- questions and tables


@pytest.fixture
def write(tmp_path):
    def file(*records):
        path = tmp_path / "questions.jsonl"
        path.write_text("\n".join(map(json.dumps, records)))
        return path

    return file


TABLE = [["City", "People"], ["Oslo", "709,000"], ["Rome"]]


def test_the_published_formats_and_one_s_own(write, tmp_path):
    (tmp_path / "cities.csv").write_text("City;People\nOslo;709,000\n")
    (tmp_path / "tables").mkdir()
    hitab = {"texts": [["", "people", "people"], ["", "2020", "2021"], ["Oslo", "1", "2"]], "top_header_rows_num": 2}
    (tmp_path / "tables" / "7.json").write_text(json.dumps({**hitab, "title": "Cities"}))
    path = write(
        {"id": "nt-1", "question": "who?", "answers": ["Oslo", "Rome"], "header": TABLE[0], "rows": TABLE[1:]},
        {"statement": "s", "label": 0, "caption": "c", "header": TABLE[0], "rows": TABLE[1:]},
        {"feta_id": 9, "question": "who?", "answer": "It is Oslo.", "table_array": TABLE, "table_page_title": "Page"},
        {"id": "h", "question": "how many?", "answer": [2], "table_id": "7"},
        {"id": "own", "question": "how many?", "answer": 709000, "table": "cities.csv"},
        {
            "prompt": [{"role": "user", "content": "all of it"}],
            "reward_model": {"ground_truth": ["a"]},
            "extra_info": {"id": "z", "task_type": "TQA"},
        },
    )
    found = questions(path)
    assert [one.kind for one in found] == ["TQA", "TFV", "FF-TQA", "TQA", "TQA", "TQA"]
    assert [one.key for one in found] == ["nt-1", "2", "9", "h", "own", "z"]
    assert [one.answers for one in found[:5]] == [("Oslo", "Rome"), ("refuted",), ("It is Oslo.",), ("2",), ("709000",)]
    assert found[0].table.rows == (("Oslo", "709,000"), ("Rome", "")), "a short row is filled"
    assert found[3].table.header == ("", "people / 2020", "people / 2021")
    assert found[4].table == Table(("City", "People"), (("Oslo", "709,000"),))
    assert "Page" in found[2].task().prompt[0]["content"]
    assert found[5].task().prompt[0]["content"] == "all of it"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"question": "q", "answer": "a"}, "line 1: there is no table"),
        ({"answer": "a", "table": TABLE}, "line 1: there is no question"),
        ({"question": "q", "answer": None, "table": TABLE}, "line 1: the answer None is neither"),
        ({"question": "q", "answer": [], "table": TABLE}, r"line 1: the answer \[\] is neither"),
        ({"statement": "s", "label": 2, "header": ["a"], "rows": []}, "line 1: the label 2 is neither"),
        ({"question": "q", "answer": "a", "table": [["a"], ["b", "c"]]}, "row 1 of the table has 2 cells under 1 col"),
        ({"question": "q", "answer": "a", "table": [["a"], "b"]}, "row 1 of the table is str, not a list"),
        ({"question": "q", "answer": "a", "table": [[]]}, "the table has no header"),
        ({"question": "q", "answer": "a", "table": "no.csv"}, "there is no table .*no.csv"),
        ({"question": "q", "answer": "a", "table_id": "no"}, "there is no table .*no.json"),
        ({"question": "q", "answer": "a", "table": TABLE, "kind": "QA"}, "the kind 'QA' is none of TQA"),
        ({"prompt": [], "reward_model": {}}, "names `extra_info.task_type`"),
    ],
)
def test_bad_rows_are_named(record, message, write):
    with pytest.raises(ValueError, match=message):
        questions(write(record))


@given(st.lists(st.lists(st.text(max_size=6), min_size=1, max_size=3), min_size=1, max_size=4))
def test_a_cell_stays_in_its_cell(rows):
    table = Table(tuple(map(cell, rows[0])), tuple(tuple(map(cell, row)) for row in rows[1:]))
    lines = table.markdown().split("\n")
    assert len(lines) == 1 + len(rows)


def test_prompts_that_are_too_long_are_dropped_or_cut_and_counted(write):
    long = [["a"], *([str(i)] for i in range(50))]
    found = questions(
        write({"question": "q", "answer": "a", "table": long}, {"question": "q", "answer": "a", "table": TABLE})
    )

    def length(task):
        return len(task.prompt[0]["content"])

    most = length(found[1].task()) + 100
    dropped = fitted(found, length, most)
    assert (len(dropped.tasks), dropped.dropped, dropped.cut) == (1, ["1"], [])
    assert "1 dropped" in str(dropped)
    cut = fitted(found, length, most, "cut")
    assert (len(cut.tasks), cut.dropped, cut.cut) == (2, [], ["1"])
    text = cut.tasks[0].prompt[0]["content"]
    assert "more rows are not shown)" in text
    shown = sum(line.startswith("| ") for line in text.splitlines()) - 1
    assert f"({50 - shown} more rows are not shown)" in text
    assert length(cut.tasks[0]) <= most < length(found[0].task(found[0].table.first_rows(shown + 1)))
    with pytest.raises(ValueError, match="not one of 2 prompts fits in 10 tokens"):
        fitted(found, length, 10)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"table": 3}, "the table is int"),
        ({"table": []}, "the table is list, or empty"),
        ({"header": None, "rows": []}, "the header of the table is NoneType"),
        ({"header": "a,b", "rows": []}, "the header of the table is str"),
        ({"table": "x" * 300}, "there is no table"),
        ({"header": ["a"], "rows": 3}, "the rows of the table is int"),
        ({"table_array": 3}, "the table is int"),
        ({"table": [["a"]], "answer": float("nan")}, "is no number"),
        ({"table": [["a"]], "answer": "yes", "kind": "TFV"}, "the verdict 'yes'"),
        ({"table": [["a"]], "answers": ["x"] * 101}, "101 answers"),
        ({"reward_model": {"ground_truth": ["a"]}, "extra_info": {"task_type": "TQA"}}, "its messages in `prompt`"),
    ],
)
def test_tables_that_are_none_are_named(write, record, message):
    with pytest.raises(ValueError, match=f"questions.jsonl, line 1: .*{re.escape(message)}"):
        questions(write({"question": "q", "answer": "a", **record}))


def test_a_table_of_objects_and_csv_in_the_row(write):
    rows = [{"a": 1, "b": 2}, {"a": 3}]
    assert questions(write({"question": "q", "answer": "x", "table": rows}))[0].table == Table(
        ("a", "b"), (("1", "2"), ("3", ""))
    )
    semicolons = questions(write({"question": "q", "answer": "x", "table": "a;b\n1,5;2"}))[0].table
    assert semicolons == Table(("a", "b"), (("1,5", "2"),))
    text = 'a,b\n"New\nYork",2'
    assert questions(write({"question": "q", "answer": "x", "table": text}))[0].table == Table(
        ("a", "b"), (("New York", "2"),)
    )


def test_a_merged_heading_names_every_column_below_it(write, tmp_path):
    texts = [["", "people", ""], ["", "2020", "2021"], ["Oslo", "1", "2"]]
    region = {"first_row": 0, "last_row": 0, "first_column": 1, "last_column": 2}
    made = {"texts": texts, "top_header_rows_num": 2, "merged_regions": [region], "title": "t"}
    (tmp_path / "7.json").write_text(json.dumps(made))
    [one] = questions(write({"question": "q", "answer": ["x"], "table_id": "7"}))
    assert one.table is not None
    assert one.table.header == ("", "people / 2020", "people / 2021")


def test_an_integer_of_hundreds_of_digits_is_only_wrong():
    assert grade(reward(), whole(f"[{'1' * 400}]"), Truth("TQA", ("a",))).parts["accuracy"] == 0
    assert grade(reward("cumulative"), whole("[]"), Truth("TFV", ("entailed",))).value == 0


# ---- at both scales


def test_the_recipe_is_the_published_one():
    made = recipe(reward())
    assert (made.samples, made.reduce, made.reference) == (16, pt.token_mean, None)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_world_s_right_replies_earn_everything_and_its_mistakes_do_not(operation):
    world, draw = Tables(0), random.Random(0)
    for _ in range(20):
        asked = world.question(draw, operation)
        one = task(asked, "t")
        assert KIND[operation] == one.truth.kind
        right = grade(reward(), reply(asked), one.truth)
        assert right.value == pytest.approx(2.0, abs=1e-6)
        assert grade(evaluation(), reply(asked), one.truth).value == pytest.approx(1.0, abs=1e-6)
        forms = [cumulative_format(reply(asked, form), one.truth.kind) for form in range(4)]
        assert forms == [0.0, 0.5, 0.8, 1.0]
        assert set(reply(asked).split()) | set(asked.prompt.split()) <= set(world.vocabulary)
    wrong = [world.question(draw, operation) for _ in range(40)]
    values = [grade(evaluation(), reply(one.with_mistake(draw)), task(one, "t").truth).value for one in wrong]
    assert sum(value < 1 for value in values) > 10


def test_a_teacher_s_right_replies_become_traces(write, tmp_path, capsys, monkeypatch):
    path = write({"id": "a", "question": "q", "answers": ["Oslo"], "table": TABLE})
    truth = Truth("TQA", ("Oslo",))
    assert right_trace([said(whole('["Rome"]'), truth), said(whole('["Oslo"]'), truth)])["response"] == whole(
        '["Oslo"]'
    )
    assert right_trace([said('{"answer": ["Oslo"]}', truth)])["response"] is None, "right, and not in form"
    words = ["run", "table-r1", "--stage", "distil", "--model", "tiny", "--max-new", "4", "--quiet"]
    with pytest.raises(SystemExit):
        main([*words, "--data", str(path), "--out", str(tmp_path / "traces")])
    assert "give a stronger --teacher" in " ".join(capsys.readouterr().err.split())


WHOLE: list[dict] = [
    {"question": "q", "answers": ["1"], "header": ["a"], "rows": [["1"]], "caption": "c", "id": "1"},
    {"statement": "s", "label": 1, "header": ["a"], "rows": [["1"]]},
    {"question": "q", "answer": "It is 1.", "table_array": [["a"], ["1"]], "table_page_title": "t", "feta_id": 7},
    {"question": "q", "answer": 1, "kind": "TQA", "table": [["a"], ["1"]]},
    {
        "prompt": [{"role": "user", "content": "q"}],
        "reward_model": {"ground_truth": ["1"]},
        "extra_info": {"task_type": "TQA"},
    },
]


@given(broken_rows(*WHOLE))
@settings(deadline=None)
def test_whatever_a_row_holds_it_is_read_or_refused_by_its_place(row):
    place = Place("rows.jsonl", 3)
    message = refusal(question, row, place)
    assert message is None or str(place) in message
