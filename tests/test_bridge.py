"""The bridge: arguments become options, are recorded, and errors come back as flags."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Literal

import pytest
import torch

import posttrain as pt
from posttrain import systems
from posttrain.cli import main
from posttrain.cli.bridge import bind, explained, fields_shown, parameter_types, record, translate
from posttrain.cli.options import ModelOptions, ScorerOptions, named_files
from posttrain.run.settings import Run

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Talk:
    """Who talks."""

    teacher: str | None = None
    """Somebody who knows."""


def stage(
    data: str,
    talk: Talk,
    run: Run = Run("runs/x", steps=7),
    kind: Literal["a", "b"] = "a",
    held_out: tuple[str, ...] = (),
    loud: bool = True,
) -> int:
    """What it does; `kind=b` is the other.

    data      what is read
    kind      of two kinds, of which the second
              is another
    held_out  other files
    loud      say so
    """
    return len(data)


def test_a_function_s_signature_is_its_options():
    call = bind(stage, ["--data", "x", "--steps", "3", "--teacher", "t", "--held-out", "p", "q", "--no-loud"], "prog")
    assert call.arguments["talk"] == Talk("t")
    assert call.arguments["held_out"] == ("p", "q")
    assert (call.options["steps"], call.options["loud"], call.options["kind"]) == (3, False, "a")
    assert call.run() == 1
    prose, texts = explained(stage)
    assert prose == "What it does; `kind=b` is the other."
    assert texts["kind"] == "of two kinds, of which the second is another"


def test_help_is_made_of_the_docstring(capsys):
    with pytest.raises(SystemExit):
        bind(stage, ["--help"], "prog", "A title")
    shown = " ".join(capsys.readouterr().out.replace("\u2502", " ").split())
    for part in (
        "A title",
        "What it does; --kind b is the other.",
        "other files",
        "Turn off: say so",
        "Somebody who knows",
    ):
        assert part in shown, part


def test_run_json_holds_every_option_and_the_hash_of_every_file(tmp_path):
    (tmp_path / "d.jsonl").write_text("{}")
    (tmp_path / "r.py").write_text("")
    sha = hashlib.sha256(b"{}").hexdigest()
    files = [str(tmp_path / "d.jsonl"), f"name={tmp_path / 'd.jsonl'}=exact"]
    call = bind(stage, ["--data", files[0], "--held-out", *files, "--teacher", "http://host:8000/v1#big"], "prog")
    kept = call.arguments["run"].settings
    assert kept["data_sha256"] == sha
    assert kept["held_out_sha256"] == [sha, sha]
    assert kept["teacher"] == "server#big", "a server's address may change between a run and its resume"
    assert kept["loud"] is True
    assert "steps" not in kept, "those of the run stand beside it"
    assert record({"grade": f"{tmp_path / 'r.py'}:f"})["grade_sha256"] == hashlib.sha256(b"").hexdigest()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("`max_new=9`: too long; lower `max_new`", "--max-new 9: too long; lower --max-new"),
        ("continue with `resume=True`", "continue with --resume"),
        ("`loud=False` is quieter", "--no-loud is quieter"),
        ("`data=b.jsonl`: there is no such file", "--held-out b.jsonl: there is no such file"),
        ("`model=judge-7b`: no config", "--judge judge-7b: no config"),
        ("`kind=b` would do", "--kind b would do"),
        ("the columns `pos` and `neg`, and `steps=3`", "the columns `pos` and `neg`, and `steps=3`"),
        ("`with_=x.y`", "--with x.y"),
    ],
)
def test_errors_name_the_flags_that_were_given(text, shown):
    options = {
        "max_new": 9, "resume": False, "loud": True, "data": "a.jsonl", "held_out": ("x=b.jsonl",), "kind": "a",
        "model": "m", "judge": "judge-7b", "with_": None,
    }  # fmt: skip
    assert translate(text, options) == shown


def test_held_out_files_have_names():
    assert named_files(["a/b.jsonl"]) == {"": "a/b.jsonl"}
    assert named_files(["math=a/b.jsonl"]) == {"math": "a/b.jsonl"}
    assert named_files(["a/b.jsonl", "c.jsonl"]) == {"b": "a/b.jsonl", "c": "c.jsonl"}
    with pytest.raises(ValueError, match="two sets named b"):
        named_files(["a/b.jsonl", "c/b.jsonl"])


@pytest.fixture
def place(tmp_path, make):
    """A random tiny model and two questions."""
    make(max_new=4).save(tmp_path / "base")
    lines = [json.dumps({"prompt": f"hi {i}", "answer": str(i)}) for i in range(2)]
    (tmp_path / "q.jsonl").write_text("\n".join(lines))
    return tmp_path


def words(place: Path, out: str, *more: str) -> list[str]:
    size = ["--steps", "1", "--tasks", "1", "--samples", "2", "--max-new", "4", "--quiet", "--grade", "exact"]
    model = ["--model", str(place / "base"), "--data", str(place / "q.jsonl")]
    return ["train", *model, *size, "--out", str(place / out), *more]


def test_one_rule_for_what_a_resume_may_change(place, capsys):
    main(words(place, "run"))
    main(
        words(place, "run", "--resume", "--steps", "2", "--eval-every", "1", "--held-out", str(place / "q.jsonl"))[:-4]
    )
    assert len(pt.read_metrics(place / "run")) == 2
    with pytest.raises(SystemExit):
        main(words(place, "run", "--resume", "--kl", "0.1"))
    assert "was started with kl = 0.0, not 0.1" in capsys.readouterr().err
    (place / "q.jsonl").write_text('{"prompt": "other", "answer": "1"}')
    with pytest.raises(SystemExit):
        main(words(place, "run", "--resume"))
    assert "was started with data_sha256" in capsys.readouterr().err


def test_several_held_out_files_are_measured_by_name(place):
    q = str(place / "q.jsonl")
    main(words(place, "run", "--held-out", f"easy={q}", f"hard={q}", "--eval-temperature", "0"))
    line = pt.read_metrics(place / "run")[0]
    assert {"held_out/easy/reward", "held_out/hard/length"} <= set(line)


ENV = """
import posttrain as pt

def twice(task):
    first = yield from pt.ask(task.prompt)
    yield from pt.ask([*task.prompt, pt.assistant(first), pt.user("again")])
    return "twice"

def recipe(reward, policy, samples=2):
    return pt.Recipe(reward, advantage=pt.centred, samples=samples, reference=policy.frozen_copy())

def greedy(reward, budget):
    return None
"""


def test_an_environment_and_a_recipe_of_the_user_s_own_file(place, capsys):
    (place / "mine.py").write_text(ENV)
    mine = str(place / "mine.py")
    main(words(place, "run", "--env", f"{mine}:twice", "--recipe", f"{mine}:recipe"))
    rollouts = list(pt.read_rollouts(place / "run"))
    assert [len(one["turns"]) for one in rollouts] == [2, 2]
    assert json.loads((place / "run" / "run.json").read_text())["run"]["settings"]["env_sha256"]
    data = ["--model", str(place / "base"), "--data", str(place / "q.jsonl"), "--grade", "exact", "--max-new", "4"]
    main(["eval", *data, "--env", f"{mine}:twice", "--out", str(place / "e"), "--quiet"])
    assert len(json.loads((place / "e" / "replies.jsonl").read_text().splitlines()[0])["replies"]) == 2
    for option, message in (
        (["--env", f"{mine}:thrice"], "has no function thrice; did you mean twice?"),
        (["--recipe", f"{mine}:greedy"], "it asks for budget; a recipe may ask for policy, reward and samples"),
        (["--env", str(place / "no.py:f")], "there is no file"),
    ):
        with pytest.raises(SystemExit):
            main(words(place, "other", *option))
        assert message in capsys.readouterr().err


def test_a_system_of_the_user_s_own_file(place, capsys):
    mine = str(ROOT / "examples" / "own_system.py")
    main(["run", mine, "--scale", "full", *words(place, "full")[1:]])
    assert json.loads((place / "full" / "run.json").read_text())["run"]["settings"]["power"] == 1.0
    main(words(place, "with", "--with", f"{mine}:hard_first"))
    with pytest.raises(SystemExit):
        main(words(place, "other", "--with", f"{mine}:hard_frist"))
    assert "did you mean hard_first?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["run", mine, "--stage", "trane"])
    assert "the choices are laptop, train; did you mean train?" in capsys.readouterr().err


@pytest.mark.slow
def test_claims_of_the_user_s_own_file(tmp_path, capsys):
    mine = str(ROOT / "examples" / "own_system.py")
    main(["claims", mine, "--quick", "--out", str(tmp_path), "--workers", "1"])
    shown = capsys.readouterr().out
    assert "Hard questions first" in shown
    assert "not separated" in shown or "not testable here" in shown
    assert (tmp_path / "own_system-quick.json").is_file()


def test_systems_of_installed_packages_are_found(tmp_path, monkeypatch):
    """A real distribution on the path: its metadata name the entry point."""
    (tmp_path / "their_paper.py").write_text(
        '"""Their idea."""\n\ndef laptop():\n    """Try it."""\n\nSTAGES = {"laptop": laptop}\n'
    )
    about = tmp_path / "their_paper-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: their-paper\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[posttrain.systems]\ntheir-paper = their_paper\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = systems.system("their_paper")
    assert (found.name, found.first_line, list(found.stages)) == ("their-paper", "Their idea.", ["laptop"])
    assert "their-paper" in [one.name for one in systems.every()]
    with pytest.raises(ValueError, match="did you mean their-paper"):
        systems.system("their-papers")


def adapter(run: Run, model: ModelOptions) -> torch.Tensor:
    return next(p.detach() for name, p in model.policy().model.named_parameters() if "lora_A" in name)


def head(run: Run, scorer: ScorerOptions) -> torch.Tensor:
    return scorer.reward_model().model.score.weight.detach()


@pytest.mark.parametrize(("function", "options"), [(adapter, ["--lora", "2"]), (head, [])])
def test_what_is_drawn_before_the_first_step_depends_on_the_seed_alone(function, options):
    """Not on what the process drew before."""

    def drawn(seed: int) -> torch.Tensor:
        torch.rand(seed + 1)
        return bind(function, ["--out", "x", *options, "--seed", str(seed)], "posttrain").run()

    first, again, other = drawn(0), drawn(0), drawn(1)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


STAGES = [(one, name) for one in systems.every() for name in one.stages]


@pytest.mark.parametrize(("system", "stage"), STAGES, ids=lambda part: getattr(part, "name", part))
def test_no_option_of_a_stage_has_the_name_of_another(system, stage):
    """Of the stage itself, or of the groups that it takes."""
    kinds = parameter_types(system.stages[stage])
    names = [name for kind in kinds.values() if is_dataclass(kind) for name in fields_shown(kind)]
    names += [name for name, kind in kinds.items() if not is_dataclass(kind)]
    assert sorted(names) == sorted({*names})
