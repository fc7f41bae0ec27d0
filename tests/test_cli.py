"""The command line as a user meets it: the main job, and what is said of mistakes."""

from __future__ import annotations

import json
import sys

import processes
import pytest

import posttrain as pt
from posttrain.cli import main


@pytest.fixture
def model(make, tmp_path):
    make(max_new=8).save(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps({"question": f"What is {i}+1?", "answer": str(i + 1)}) + "\n" for i in range(6)))
    return str(path)


def train(questions, model, out, *more):
    base = [
        "train",
        "--data",
        questions,
        "--prompt",
        "question",
        "--grade",
        "exact",
        "--model",
        model,
        "--out",
        str(out),
    ]
    main([*base, "--max-new", "8", "--steps", "2", "--tasks", "2", "--samples", "2", "--threads", "1", *more])


def fails(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code == 2
    return capsys.readouterr().err


def fails_to_train(capsys, *arguments) -> str:
    with pytest.raises(SystemExit):
        train(*arguments)
    return capsys.readouterr().err


def test_the_main_job(questions, model, tmp_path, capsys):
    out = tmp_path / "runs" / "first"
    train(questions, model, out, "--held-out", questions, "--eval-every", "1")
    shown = capsys.readouterr().err
    assert "step 2/2" in shown
    assert f"report: {out / 'report.html'}" in shown
    about = json.loads((out / "run.json").read_text())
    assert about["run"]["command"][0] == "train"
    assert about["run"]["settings"]["max_new"] == 8
    assert "weights" not in about["run"]["settings"], "nobody can give it"
    said = fails_to_train(
        capsys, questions, model, out, "--held-out", questions, "--eval-every", "1", "--resume", "--temperature", "0.5"
    )
    assert "was started with temperature = 1.0, not 0.5" in said
    assert len(about["run"]["settings"]["data_sha256"]) == 64
    train(questions, model, out, "--held-out", questions, "--eval-every", "1", "--resume", "--steps", "4")
    assert len(pt.read_metrics(out)) == 4

    main(["show", str(out)])
    assert "4 of 4 steps" in capsys.readouterr().out
    page = (out / "report.html").read_text()
    assert "plotly" in page.lower()
    assert "What is" in page
    assert "http-equiv" not in page

    numbers = tmp_path / "evaluation"
    options = ["--prompt", "question", "--grade", "exact", "--max-new", "8"]
    more = ["--samples", "4", "--k", "1,4", "--greedy", "--out", str(numbers)]
    main(["eval", "--model", str(out / "model"), "--data", questions, *options, *more])
    printed = capsys.readouterr()
    for name in ("pass@1", "pass@4", "majority@4", "coverage", "greedy", "95 %"):
        assert name in printed.out
    assert "tasks 6/6" in printed.err
    assert "tokens/s" in printed.err
    assert json.loads((numbers / "measures.json").read_text())["tasks"] == 6


def test_an_evaluation_that_was_killed_goes_on_and_ends_the_same(questions, model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("posttrain.evaluation.GROUPS_AT_ONCE", 2)
    monkeypatch.setattr("posttrain.run.replies.GROUPS_AT_ONCE", 2)
    out = tmp_path / "evaluation"
    words = ["eval", "--model", model, "--data", questions, "--prompt", "question", "--grade", "exact"]
    words += ["--max-new", "8", "--samples", "2", "--greedy", "--out", str(out)]
    main(words)
    replies, measures = (out / "replies.jsonl").read_text(), (out / "measures.json").read_text()
    assert len(replies.splitlines()) == 6 * 2 + 6
    assert "already holds evaluation.json: continue with --resume" in fails(capsys, *words)
    assert "was started with temperature" in fails(capsys, *words, "--resume", "--temperature", "0.5")
    lines = replies.splitlines(keepends=True)
    for kept in (lines[:5], lines[:15], lines):  # within the second batch; among the greedy ones; nothing is missing
        (out / "replies.jsonl").write_text("".join(kept) + ("" if kept == lines else '{"task": "cut sh'))
        main([*words, "--resume"])
        assert (out / "replies.jsonl").read_text() == replies
        assert (out / "measures.json").read_text() == measures
    main(["grade", "--data", str(out), "--grade", "exact"])
    assert "18 replies" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("grade", "answer"), [("math", ["9"]), ("exact", {"a": 1}), ("choice", "nine"), ("json", "{oh"), ("contains", [1])]
)
def test_an_answer_that_cannot_be_graded_is_named_before_anything_is_sampled(grade, answer, model, tmp_path, capsys):
    data = tmp_path / "bad.jsonl"
    data.write_text(json.dumps({"prompt": "4+5?", "answer": "9" if grade != "choice" else "A"}) + "\n")
    with data.open("a") as file:
        file.write(json.dumps({"prompt": "4+5?", "answer": answer}) + "\n")
    common = ["--model", model, "--data", str(data), "--grade", grade, "--max-new", "4", "--quiet"]
    for command in (["train", "--steps", "1", "--tasks", "1"], ["eval"]):
        assert "task '2'" in fails(capsys, *command, *common, "--out", str(tmp_path / "r"))
        assert not (tmp_path / "r").exists()


def test_greedy_replies_alone(questions, model, capsys):
    words = ["eval", "--model", model, "--data", questions, "--prompt", "question", "--max-new", "8", "--greedy"]
    main(words)
    printed = capsys.readouterr().out
    assert "6 tasks x one greedy reply" in printed
    assert "greedy  " in printed
    assert "pass@1" not in printed
    assert "there would be nothing to grade" in fails(capsys, *words[:-1], "--samples", "0")


@pytest.mark.parametrize(
    "options",
    [
        ["--method", "ppo", "--kl", "0.01"],
        ["--method", "dapo", "--truncated", "mask"],
        ["--method", "gspo", "--truncated", "penalise", "--entropy", "0.01"],
        ["--method", "dr_grpo", "--lora", "2"],
        ["--method", "grpo", "--kl", "0.1", "--bf16", "--checkpointing"],
    ],
)
def test_methods_and_options(questions, model, tmp_path, options):
    train(questions, model, tmp_path / "r", *options)
    assert (tmp_path / "r" / "model" / "model.safetensors").is_file()


def test_the_plan_reads_everything_and_writes_nothing(questions, model, tmp_path, capsys):
    train(questions, model, tmp_path / "r", "--dry-run", "--kl", "0.1")
    plan = capsys.readouterr().out
    for expected in (
        "6 tasks",
        "at most 8 tokens",
        "2 tasks x 2 samples",
        "Adam and reference",
        "GiB free",
        "--dry-run",
    ):
        assert expected in plan
    assert not (tmp_path / "r").exists()


def test_supervised_and_preference_commands(model, tmp_path, capsys):
    demos, pairs = tmp_path / "demos.jsonl", tmp_path / "pairs.jsonl"
    demos.write_text('{"question": "hi", "answer": "hello"}\n{"question": "ho", "answer": "hey"}\n')
    pairs.write_text('{"prompt": "hi", "chosen": "hello", "rejected": "no"}\n')
    common = ["--model", model, "--max-new", "8", "--steps", "2", "--tasks", "2"]
    main(
        [
            "sft",
            "--data",
            str(demos),
            "--prompt",
            "question",
            "--response",
            "answer",
            "--out",
            str(tmp_path / "s"),
            *common,
        ]
    )
    main(
        [
            "sft",
            "--data",
            str(demos),
            "--prompt",
            "question",
            "--response",
            "answer",
            "--out",
            "x",
            "--dry-run",
            *common,
        ]
    )
    assert "2 rows" in capsys.readouterr().out
    main(["prefer", "--data", str(pairs), "--loss", "dpo", "--beta", "0.2", "--out", str(tmp_path / "d"), *common])
    main(["prefer", "--data", str(pairs), "--loss", "reward-model", "--out", str(tmp_path / "rm"), *common])
    capsys.readouterr()
    main(["prefer", "--data", str(pairs), "--out", str(tmp_path / "never"), "--dry-run", *common])
    assert "1 pairs" in capsys.readouterr().out
    assert not (tmp_path / "never").exists()
    said = fails(capsys, "prefer", "--data", str(pairs), "--loss", "reward-model", "--out", "x", "--lora", "4", *common)
    assert "does not take --lora" in said
    assert {"accuracy", "loss"} <= set(pt.read_metrics(tmp_path / "d")[0])
    for name in ("s", "d", "rm"):
        recorded = json.loads((tmp_path / name / "run.json").read_text())["run"]["settings"]
        assert len(recorded["data_sha256"]) == 64
        assert recorded["model"] == model
    assert pt.reward_model(str(tmp_path / "rm" / "model")).scores([[1, 2, 3]]).shape == (1,)


def test_mistakes_are_named_with_their_remedy(questions, model, tmp_path, capsys):
    base = [
        "train",
        "--data",
        questions,
        "--prompt",
        "question",
        "--model",
        model,
        "--out",
        str(tmp_path / "r"),
        "--max-new",
        "8",
    ]
    assert "did you mean grpo?" in fails(capsys, *base, "--method", "grp")
    assert "--steps" in fails(capsys, *base, "--stpes", "3")
    assert "--grade mth: unknown, the choices are math" in fails(capsys, *base, "--grade", "mth")
    assert "did you mean --answer answer?" in fails(capsys, *base, "--answer", "anwser")
    assert "a group of one has no baseline" in fails(capsys, *base, "--samples", "1")
    assert "but the model" in fails(capsys, *base, "--max-new", "300")
    assert "has no divergence term" in fails(capsys, *base, "--method", "gspo", "--kl", "0.1")
    assert "needs tasks to evaluate: give --held-out" in fails(capsys, *base, "--eval-every", "5")
    assert "does so already" in fails(capsys, *base, "--method", "dapo", "--truncated", "penalise")
    assert "--truncated drop: unknown" in fails(capsys, *base, "--truncated", "drop")
    assert "pass@8 needs at least --samples 8" in fails(
        capsys, "eval", "--data", questions, "--prompt", "question", "--k", "8", "--samples", "4"
    )
    assert "holds no run" in fails(capsys, "show", str(tmp_path))
    assert not (tmp_path / "r").exists()


def test_a_reward_of_the_users_own_and_its_bugs(questions, model, tmp_path, capsys):
    file = tmp_path / "rewards.py"
    file.write_text(
        "def good(reply, answer):\n    return len(reply) % 3\n\ndef bad(reply, answer):\n    return {}[answer]\n"
    )
    base = ["train", "--data", questions, "--prompt", "question", "--model", model, "--max-new", "8", "--tasks", "1"]
    main([*base, "--grade", f"{file}:good", "--steps", "1", "--out", str(tmp_path / "good")])
    capsys.readouterr()
    said = fails(capsys, *base, "--grade", f"{file}:bad", "--steps", "1", "--out", str(tmp_path / "bad"))
    assert "raised by the reward on task" in said
    assert "What is" in said
    assert "rewards.py, line 5: return {}[answer]" in said


def test_list_and_doctor(capsys):
    main(["list"])
    assert "Group Relative Policy Optimization" in capsys.readouterr().out
    main(["doctor"])
    said = capsys.readouterr().out
    assert "pip install 'posttrain[lora]'" in said
    assert "threads" in said


def test_help_teaches_and_answers_without_torch():
    program = "import sys, posttrain.cli\ntry: posttrain.cli.main({!r})\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    for arguments, expected in ((["--help"], "posttrain train --data"), (["train", "--help"], "file.py:function")):
        found = processes.ran([sys.executable, "-c", program.format(arguments)])
        assert found.returncode == 0, found.stderr
        assert expected in found.stdout


def test_the_package_is_a_program_too():
    found = processes.ran([sys.executable, "-m", "posttrain", "list"])
    assert "grpo" in found.stdout
