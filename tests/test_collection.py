"""What a player makes of each task is kept as it comes: nothing is asked twice, and nothing is lost."""

from __future__ import annotations

import json

import pytest
from conftest import Canned

import posttrain as pt

TASKS = [pt.Task(str(n), (pt.user(f"question {n}"),), n) for n in range(20)]


def said(group: pt.Group) -> dict[str, str]:
    return {"text": group[0].text}


def test_lines_are_in_the_order_of_the_tasks_and_no_task_is_asked_twice(tmp_path):
    path, asked = tmp_path / "lines.jsonl", []

    def says(ask: pt.Ask) -> str:
        asked.append(ask.messages[0]["content"])
        return "a"

    first = pt.collect(Canned(says), TASKS[5:10], said, path, quiet=True)
    assert [line["id"] for line in first] == ["5", "6", "7", "8", "9"]
    again = pt.collect(Canned(says), TASKS[:10], said, path, quiet=True)
    assert [line["id"] for line in again] == [str(n) for n in range(10)]
    assert sorted(asked) == sorted({f"question {n}" for n in range(10)})


def test_a_line_that_a_kill_cut_short_is_asked_for_again(tmp_path):
    path = tmp_path / "lines.jsonl"
    pt.collect(Canned("a"), TASKS[:3], said, path, quiet=True)
    path.write_text(path.read_text()[:-10])
    found = pt.collect(Canned("b"), TASKS[:3], said, path, quiet=True)
    assert [line["text"] for line in found] == ["a", "a", "b"]
    assert [json.loads(line)["text"] for line in path.read_text().splitlines()] == ["a", "a", "b"]


def test_what_a_task_draws_does_not_depend_on_how_often_work_was_stopped(tmp_path):
    def says(ask: pt.Ask) -> str:
        return str(ask.seed)

    whole = pt.collect(Canned(says), TASKS, said, tmp_path / "whole.jsonl", seed=3, quiet=True)
    pt.collect(Canned(says), TASKS[:7], said, tmp_path / "parts.jsonl", seed=3, quiet=True)
    assert pt.collect(Canned(says), TASKS, said, tmp_path / "parts.jsonl", seed=3, quiet=True) == whole


def test_a_few_failures_are_a_warning_and_many_an_error_that_keeps_what_is_there(tmp_path, capsys):
    def sometimes(ask: pt.Ask) -> object:
        return pt.Failure("down") if ask.messages[0]["content"].endswith(" 7") else "a"

    def line(group: pt.Group) -> dict[str, object] | pt.Invalid:
        return pt.first_kept(group, lambda one: True)

    path = tmp_path / "lines.jsonl"
    assert len(pt.collect(Canned(sometimes), TASKS, line, path, quiet=True)) == 19
    assert "warning: 1 of 20 questions could not be answered" in capsys.readouterr().err
    with pytest.raises(ValueError, match="5 of 5 rows could not be answered; the first because: .*down"):
        pt.collect(Canned(pt.Failure("down")), TASKS[:5], line, tmp_path / "b.jsonl", name="rows", quiet=True)
    assert len(pt.collect(Canned("a"), TASKS, line, path, quiet=True)) == 20


def test_the_first_reply_that_is_right_is_kept(tmp_path):
    replies = iter(["no", "yes 1", "yes 2", "no", "no", "no"])
    lines = pt.collect(
        Canned(lambda ask: next(replies)),
        TASKS[:2],
        lambda group: pt.first_kept(group, lambda one: one.text.startswith("yes")),
        tmp_path / "lines.jsonl",
        samples=3,
        quiet=True,
    )
    assert [line["response"] for line in lines] == ["yes 1", None]
    assert lines[1]["replies"] == ["no", "no", "no"]
    assert pt.kept_lines(lines) == [{"id": "0", "prompt": [pt.user("question 0")], "response": "yes 1"}]
