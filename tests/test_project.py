"""A project in one file, options from files, several data files, and weighted graders."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import pytest
import torch

import posttrain as pt
from posttrain.cli import main
from posttrain.cli.commands import parse
from posttrain.cli.options import TaskOptions, weighted_files
from posttrain.cli.settings_file import with_options_of_files
from posttrain.run.directory import read_json

HERMES = str(Path(__file__).parent / "hermes.jinja")  # a template that shows tools
SHORT = ["--model", "tiny", "--max-new", "6", "--tasks", "2", "--samples", "2", "--quiet"]
PROJECT = """
    import posttrain as pt

    tasks = [{"prompt": f"{i} + {i} = ?", "answer": str(2 * i), "weight": i} for i in range(4)]

    def held_out():
        return {"easy": [{"prompt": "1 + 1 = ?", "answer": "2", "weight": 1}]}

    demonstrations = [{"prompt": "1 + 1 = ?", "response": "2"}] * 4
    pairs = [{"prompt": "1 + 1 = ?", "chosen": "2", "rejected": "3"}] * 4

    async def reward(reply, answer, weight):
        return weight + 0.5 * (len(reply) % 2)

    def env(task):
        yield from pt.ask(task.prompt)
        yield from pt.ask([pt.user("Again: " + task.prompt[0]["content"])])
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mine.py"
    file.write_text(textwrap.dedent(PROJECT))
    return str(file)


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


# ---- a project


def test_a_project_is_trained_with_its_own_tasks_reward_environment_and_held_out_sets(project):
    main(["train", project, *SHORT, "--steps", "1", "--out", "a"])
    [line] = pt.read_metrics("a")
    assert line["turns"] == 2
    assert line["reward"] > 0
    assert 1 <= line["held_out/easy/reward"] <= 1.5
    assert {one["task"] for one in pt.read_rollouts("a", 0)} <= {"1", "2", "3", "4"}


def test_other_commands_take_it_too(project, capsys):
    main(["eval", project, "--model", "tiny", "--max-new", "4", "--quiet", "--limit", "2"])
    assert "2 tasks" in capsys.readouterr().out
    main(["sft", project, "--model", "tiny", "--tasks", "2", "--steps", "1", "--quiet", "--out", "b"])
    main(["prefer", project, "--model", "tiny", "--tasks", "2", "--steps", "1", "--quiet", "--out", "c"])
    assert [len(pt.read_metrics(name)) for name in ("b", "c")] == [1, 1]


def test_a_recipe_of_the_project_stands_unless_a_method_is_named(project):
    with open(project, "a") as file:
        file.write("\ndef recipe(policy, reward):\n    return pt.rloo(reward, samples=3)\n")
    main(
        ["train", project, "--model", "tiny", "--max-new", "4", "--tasks", "1", "--steps", "1", "--quiet", "--out", "a"]
    )
    assert pt.read_metrics("a")[0]["rollouts"] == 3
    assert pt.read_metrics("a")[0]["turns"] == 2


@pytest.mark.parametrize("kind", ["reply", "env", "tools"])
def test_what_new_writes_runs(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["new", "sums", "--kind", kind])
    template = ["--template", HERMES] if kind == "tools" else []
    main(["train", "sums.py", *template, *SHORT, "--steps", "1", "--out", "a"])
    assert pt.read_metrics("a")[0]["turns"] >= (2 if kind == "env" else 1)
    with pytest.raises(SystemExit):
        main(["new", "sums"])


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (None, "there is no such file; `posttrain new wrong` writes one"),
        ("x = 1", "it has none of tasks, held_out, demonstrations, pairs, env, tools, reward, recipe"),
        ("def reward(reply): return 1", "it has no tasks; define `tasks`, a list or a function"),
        ("tasks = [{'prompt': 'x'}]", "the list of records, line 1: there is no column 'answer'"),
        ("tasks = 1 / 0", "line 1: ZeroDivisionError"),
    ],
)
def test_what_is_no_project_is_named(text, error, tmp_path):
    if text is not None:
        (tmp_path / "wrong.py").write_text(text)
    with pytest.raises(ValueError, match=error):
        TaskOptions(str(tmp_path / "wrong.py")).tasks()


# ---- several files, several graders


def test_tasks_of_several_files_come_as_often_as_they_are_weighted(tmp_path):
    a = write(tmp_path / "a.jsonl", {"prompt": "x", "answer": "1"}, {"prompt": "y", "answer": "2"})
    b = write(tmp_path / "b.jsonl", {"prompt": "z", "answer": "3"})
    tasks = TaskOptions(f"{a}*2,{b}").tasks()
    assert [task.key for task in tasks] == ["a/1", "a/2", "a/1", "a/2", "b/1"]
    assert weighted_files(a) == {a: 1}
    with pytest.raises(ValueError, match=r"a weight of 0.5; every task comes a whole number of times"):
        TaskOptions(f"{a}*0.5").tasks()
    with pytest.raises(ValueError, match="'many' is no weight"):
        TaskOptions(f"{a}*many").tasks()


def test_graders_are_summed_with_their_weights_and_stay_visible(tmp_path):
    (tmp_path / "style.py").write_text("def brief(reply):\n    return -len(reply)\n")
    reward = TaskOptions("x", grade=f"exact*1,{tmp_path / 'style.py'}:brief*0.1").reward()
    task = pt.Task("t", (pt.user("?"),), "42")
    [score] = reward([pt.Rollout(task, [pt.Turn(pt.Ask(task.prompt), pt.Reply("42", torch.zeros(2), None))])])
    assert score.value == pytest.approx(1 - 0.2)
    assert score.parts == {"exact": 1.0, "brief": -2.0}
    with pytest.raises(ValueError, match="each name once"):
        TaskOptions("x", grade="exact,exact").reward()
    with pytest.raises(ValueError, match="did you mean exact"):
        TaskOptions("x", grade="exat*2,math").reward()


# ---- options from files


def test_what_a_run_wrote_can_be_run_again_and_the_command_line_wins(project):
    main(["train", project, *SHORT, "--steps", "2", "--lr", "1e-4", "--out", "a"])
    main(["train", "--from", "a", "--steps", "1", "--out", "b"])
    main(["train", "--from", "a/run.json", "--out", "c"])
    first, second, third = (pt.read_metrics(name) for name in "abc")
    assert [len(one) for one in (first, second, third)] == [2, 1, 2]
    assert [line["reward"] for line in third] == [line["reward"] for line in first]
    assert read_json(Path("c/run.json"))["lr"] == 1e-4


def test_a_file_of_options(project, tmp_path):
    write_yaml = tmp_path / "run.yaml"
    write_yaml.write_text("model: tiny\nmax_new: 5\nsteps: 7\nquiet: true\nheld-out: [x=a.jsonl, y=b.jsonl]\n")
    call = parse(["train", project, "--config", str(write_yaml), "--steps", "3", "--out", "a"])
    assert call.options["steps"] == 3
    assert call.options["max_new"] == 5
    assert call.options["quiet"] is True
    assert call.options["held_out"] == ("x=a.jsonl", "y=b.jsonl")


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--config", "no.yaml"], "there is no such file"),
        (["--config", "bad.yaml"], "it is no readable YAML"),
        (["--config", "list.yaml"], "write one option a line"),
        (["--config", "deep.yaml"], "steps is neither a word, a number nor a list of them"),
        (["--from", "nowhere"], "there is no such run.json"),
        (["--from", "bad.yaml"], "it is no run.json of a posttrain command"),
        (["--from", "other.json"], "that was `posttrain sft`, and this is `posttrain train`"),
    ],
)
def test_a_file_of_options_that_cannot_be_is_named(words, error, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yaml").write_text("a: [")
    (tmp_path / "list.yaml").write_text("- a\n")
    (tmp_path / "deep.yaml").write_text("steps: {a: 1}\n")
    (tmp_path / "other.json").write_text(json.dumps({"run": {"command": ["sft", "--out", "x"]}}))
    with pytest.raises(ValueError, match=error):
        parse(["train", *words, "--out", "a"])


def test_data_that_have_changed_since_are_named(project):
    main(["train", project, *SHORT, "--steps", "1", "--out", "a"])
    with open(project, "a") as file:
        file.write("\n# changed\n")
    with pytest.raises(ValueError, match="mine.py is not what it was then"):
        parse(["train", "--from", "a", "--out", "b"])


# ---- export


@pytest.mark.parametrize("lora", ["0", "2"])
def test_any_checkpoint_becomes_a_model_that_others_load(project, lora, capsys):
    from transformers import AutoModelForCausalLM

    words = ["sft", project, "--model", "tiny", "--tasks", "2", "--lora", lora, "--steps", "2", "--save-every", "1"]
    main([*words, "--quiet", "--out", "a"])
    main(["export", "a", "--out", "last"])
    main(["export", "a", "--out", "first", "--step", "1"])
    last, first, model = (
        AutoModelForCausalLM.from_pretrained(name).state_dict() for name in ("last", "first", "a/model")
    )
    assert all(torch.equal(last[name], model[name]) for name in model)
    assert not all(torch.equal(first[name], model[name]) for name in model)
    said = Path("first/README.md").read_text()
    assert "base_model: tiny" in said
    assert "tiny after step 1 of a `sft` run" in said
    assert "| loss |" in said
    for options, error in [
        (["a", "--out", "last"], "it is not empty"),
        (["a", "--out", "new", "--step", "7"], "the checkpoints are of steps 1, 2"),
        (["last", "--out", "new"], "it holds no run.json"),
    ]:
        with pytest.raises(SystemExit):
            main(["export", *options])
        assert error in capsys.readouterr().err


def test_a_stage_that_plays_its_own_environment_refuses_a_project_s(project, capsys):
    with pytest.raises(SystemExit):
        main(["run", "entropy", "--stage", "train", "--data", project, "--model", "tiny", "--out", "x"])
    assert "the project has an environment, and this plays one of its own" in capsys.readouterr().err


def test_words_are_left_as_they_are_without_a_file_of_options():
    words = ["train", "--data=a.jsonl", "--kl=-1", "--out", "x"]
    assert with_options_of_files(words) == words
