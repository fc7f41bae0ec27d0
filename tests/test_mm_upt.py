"""Majority votes."""

from __future__ import annotations

import json
import math

import pytest
import torch
from conftest import Canned, said, values
from vision_checkpoints import checkpoint, image, noise, png, text

import posttrain as pt
from posttrain.chat import readable_content
from posttrain.cli import main
from posttrain.grade.verify import equivalent, last_boxed
from posttrain.lab.world import glyphs
from posttrain.systems.mm_upt import clusters, lab, majority, semantic_entropy, stated_answer
from posttrain.systems.mm_upt.questions import STEPS, questions, to_write
from posttrain.systems.mm_upt.questions import in_words as new_question


def find(text: str) -> str | None:
    return None if text == "?" else text


@pytest.mark.parametrize(
    ("texts", "wanted"),
    [
        (["a", "b", "a"], [1, 0, 1]),
        (["?", "?", "?", "a", "a"], [0, 0, 0, 1, 1]),  # having no answer is no answer to agree on
        (["?", "?", "a"], [0, 0, 0]),  # one vote is no majority
        (["?"], [0]),
        (["b", "a", "a", "b"], [1, 0, 0, 1]),  # a tie: the one that came first
        (["a"], [0]),  # a group of one
    ],
)
def test_agreement_is_rewarded(texts, wanted):
    assert values(majority(find)([said(text) for text in texts])) == wanted


def test_votes_are_counted_by_equivalence_and_not_by_spelling():
    texts = ["\\boxed{1/2}", "\\boxed{0.5}", "\\boxed{2}", "\\boxed{2}", "\\boxed{\\frac{1}{2}}", "no answer"]
    reward = majority(last_boxed, equivalent)
    assert values(reward([said(text) for text in texts])) == [1, 1, 0, 0, 1, 0]


def test_equivalence_is_made_transitive():
    near = {frozenset("ab"), frozenset("bc")}
    found = clusters(["a", "c", "b", None, "d"], lambda x, y: frozenset((x, y)) in near)
    assert found[0] == found[1] == found[2]
    assert found[3] is None
    assert found[4] != found[0]


def test_semantic_entropy_by_hand():
    # clusters of 2 and 1, and one missing: p = 1/2, 1/4, 1/4
    assert semantic_entropy([0, 0, 1, None]) == pytest.approx(1.5 * math.log(2))
    reward = majority(find)
    assert reward([said("a"), said("a")])[0].parts == {"agreement": 1.0, "semantic_entropy": 0.0}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("so \\boxed{4}", "4"),
        ("\\boxed{1} then \\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("steps\n#### 42", "42"),
        ("nothing", None),
        ("\\boxed{}", None),
        ("\\boxed{cut off", None),
    ],
)
def test_the_last_boxed_answer(text, wanted):
    assert last_boxed(text) == wanted


def test_answers_in_words():
    assert stated_answer("I think. Answer: Paris.") == "paris"
    assert stated_answer("W s3 s5") == stated_answer("D s5") == "s5"
    assert stated_answer("so \\boxed{1/2}, I think") == "1/2"
    assert stated_answer("  ") is None


# ---- pictures, and questions that the policy writes itself


def seen(key: str, question: str, truth: str | None = "4") -> pt.Task:
    return pt.Task(key, (pt.user([image(noise(8, 8)), text(question)]),), truth)


def test_the_policy_is_asked_for_questions():
    task = seen("t", "How many?" + STEPS)
    [direct], [given] = (to_write(mode)(task) for mode in ("direct", "in-context"))
    assert "4" not in readable_content(direct["content"])
    assert "How many" not in readable_content(direct["content"])
    assert "Question: How many?\nAnswer: 4\n" in readable_content(given["content"])
    assert direct["content"][0] == given["content"][0] == task.prompt[0]["content"][0]


def test_unusable_questions_are_left_out():
    tasks = [seen(key, "How many?" + STEPS) for key in ("same", "empty", "new", "cut")]

    class Writer:
        def sample(self, asks):
            replies = [("How many?", "end"), (" ", "end"), ("How large?", "end"), ("How lar", "length")]
            return [pt.Reply(said, torch.zeros(1), None, stop) for said, stop in replies]

    [one] = questions(Writer(), tasks, to_write("direct"), new_question)
    assert one.key == "new:synthetic"
    assert one.truth is None, "nobody knows the answer"
    assert readable_content(one.prompt[-1]["content"]) == "<image>How large?" + STEPS
    with pytest.raises(ValueError, match="no usable question"):
        questions(Canned(""), tasks[:1], to_write("direct"), new_question)


def test_questions_of_the_world():
    world = lab.drawn_numbers(0)
    [task] = world.tasks(1, "x")
    own = readable_content(task.prompt[-1]["content"]).replace("<image>", "")
    other = "- -" if own != "- - =" else "+ +"
    assert lab.read(task, other) == f"{other} ="
    assert [lab.read(task, said) for said in (own.removesuffix(" ="), "+", "+ 3", "+ + +")] == [None] * 4
    [asked] = lab.to_write("in-context")(task)
    assert readable_content(asked["content"]) == f"<image>{own} is {task.truth} ask ?"


@pytest.mark.parametrize("mode", ["in-context", "direct"])
def test_own_questions_from_the_command_line(mode, tmp_path):
    lines = []
    for k in range(3):
        png(tmp_path / f"{k}.png", 16, 16, seed=k)
        lines.append({"problem": "How many?", "images": [f"{k}.png"], "answer": str(k)})
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    folder = checkpoint(tmp_path / "model")
    data = ["--data", str(tmp_path / "data.jsonl"), "--prompt", "problem", "--image", "images", "--answers", "text"]
    size = ["--steps", "1", "--tasks", "2", "--quiet", "--max-new", "20", "--min-pixels", "64", "--stop", "e"]
    out = tmp_path / "run"
    main(
        [
            "run",
            "mm-upt",
            "--scale",
            "full",
            "--model",
            folder,
            *data,
            *size,
            "--own-questions",
            mode,
            "--out",
            str(out),
        ]
    )
    for record in pt.read_rollouts(out):
        assert record["task"].endswith(":synthetic")
        assert record["truth"] is None


def test_own_questions_need_pictures(capsys):
    with pytest.raises(SystemExit):
        main(["run", "mm-upt", "--own-questions", "direct"])
    assert "--own-questions" in capsys.readouterr().err, "the stage on text has no such option"


def test_own_questions_are_neither_of_text_nor_with_labels(tmp_path, capsys):
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"prompt": "How many?", "answer": "4"}))
    words = ["--scale", "full", "--model", checkpoint(tmp_path / "model"), "--data", str(data), "--max-new", "4"]
    for mode in ("direct", "in-context"):
        with pytest.raises(SystemExit):
            main(["run", "mm-upt", *words, "--own-questions", mode, "--out", str(tmp_path / "run")])
        assert "task '1' shows none; name the column of pictures with --image" in capsys.readouterr().err
    words = ["--labels", "--own-questions", "direct", "--out", str(tmp_path / "run")]
    with pytest.raises(SystemExit):
        main(["run", "mm-upt", "--stage", "pictures", *words])
    assert "--labels: nobody labelled --own-questions" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert glyphs.is_right(said("no number")) == 0.0, "no answer to a question without a truth is not right"
