"""Runs: killed anywhere and resumed they end with the same weights; their directory; what stops them, and how."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import processes
import pytest
import run_program
import torch
from conftest import Bandit, digits, task
from run_program import STEPS
from safetensors.torch import load_file

import posttrain as pt
from posttrain.cli.report import write_report
from posttrain.policy.value import Critic, Gae
from posttrain.run.best import Best
from posttrain.run.folder import prepare_folder
from posttrain.run.lines import Lines, whole_lines
from posttrain.run.progress import alarms
from posttrain.run.rollouts import read_rollouts
from posttrain.run.session import Terminated

FORKS = multiprocessing.get_context("forkserver")


class Program:
    """`run_program.run` in a process of its own, as `subprocess.Popen` would have it."""

    def __init__(self, folder: Path, *arguments: str):
        self.args, self.errors = arguments, folder / "errors.txt"
        self.errors.unlink(missing_ok=True)
        words = str(folder), str(self.errors), *arguments[:2], "--resume" in arguments
        self.process = FORKS.Process(target=run_program.run, args=words)
        self.process.start()
        self.pid = self.process.pid or 0

    def poll(self) -> int | None:
        return self.process.exitcode

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def send_signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.kill(self.pid, number)

    def output(self) -> str:
        """What it has written when it has ended."""
        processes.wait_until(self, lambda: self.poll() is not None)
        return self.errors.read_text() if self.errors.exists() else ""


@pytest.fixture
def started(tmp_path, monkeypatch):
    """`started(method, out, "--resume")`: forked from one process that has imported everything, which takes seconds."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # the server of the forks is started once
    FORKS.set_forkserver_preload(["run_program"])
    return partial(Program, tmp_path)


def finished(process: Program) -> str:
    errors = process.output()
    assert process.returncode == 0, errors
    return errors


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ppo", "dapo"])
def test_killed_anywhere_and_resumed_ends_with_identical_weights(started, tmp_path, method):
    finished(started(method, "whole"))
    draw = random.Random(method)
    metrics = tmp_path / "cut" / "metrics.jsonl"
    kills = 0
    process = started(method, "cut")
    while kills < 4:
        wanted = min(lines(metrics) + draw.randint(1, 3), STEPS)
        processes.wait_until(
            process, lambda one, wanted: lines(metrics) >= wanted or one.poll() is not None, process, wanted
        )
        time.sleep(draw.random() * 0.05)  # anywhere: while sampling, learning, writing
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.output()
        kills += 1
        process = started(method, "cut", "--resume")
    finished(process)
    assert kills >= 1
    whole, cut = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "cut"))
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    assert rewards(tmp_path / "whole") == rewards(tmp_path / "cut")
    assert [r["turns"] for r in pt.read_rollouts(tmp_path / "whole")] == [
        r["turns"] for r in pt.read_rollouts(tmp_path / "cut")
    ]


def lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.is_file() else 0


def rewards(path: Path) -> list[float]:
    return [line["reward"] for line in pt.read_metrics(path)]


@pytest.mark.slow
def test_ctrl_c_finishes_the_step_saves_and_says_how_to_go_on(started, tmp_path):
    finished(started("dapo", "whole"))
    process = started("dapo", "cut")
    processes.wait_until(process, lambda: lines(tmp_path / "cut" / "metrics.jsonl") >= 3)
    process.send_signal(signal.SIGINT)
    errors = process.output()
    assert process.returncode != 0
    assert "continue with the same command and `resume=True`" in errors
    saved = max(int(p.name) for p in (tmp_path / "cut" / "checkpoints").iterdir())
    assert saved == lines(tmp_path / "cut" / "metrics.jsonl") >= 3
    finished(started("dapo", "cut", "--resume"))
    assert rewards(tmp_path / "whole") == rewards(tmp_path / "cut")


def run_bandit(out, **options):
    policy = Bandit([0.0, 0.0, 0.0])
    run = pt.Run(out, **{"steps": 4, "tasks": 2, "lr": 0.1, "quiet": True, **options})
    recipe = pt.grpo(pt.each(lambda rollout: float(rollout.turns[0].reply.content == 1)), samples=4)
    return pt.train(policy, [task("a"), task("b"), task("c")], recipe, run), policy


def test_the_directory_holds_what_a_reader_needs(make, tmp_path):
    policy = make()
    out = tmp_path / "runs" / "first"
    recipe = pt.grpo(pt.weighted(digits=(1.0, pt.each(digits))), samples=3)
    run = pt.Run(out, steps=3, tasks=2, quiet=True, eval_every=2, track=("tensorboard",), settings={"data": "x.jsonl"})
    session = pt.train(policy, [task(str(i), "7") for i in range(4)], recipe, run, held_out=[task("h")])
    about = json.loads((out / "run.json").read_text())
    assert about["run"]["steps"] == 3
    assert about["run"]["settings"] == {"data": "x.jsonl"}
    assert about["recipe"]["loss"]["posttrain.loss.clipped.loss"]["low"] == 0.2
    assert {"torch", "transformers", "posttrain"} <= set(about["versions"])
    assert pt.read_metrics(out) == session.history
    assert [line["step"] for line in session.history] == [0, 1, 2]
    assert ["held_out/reward" in line for line in session.history] == [True, False, True]
    records = list(pt.read_rollouts(out, 1))
    assert len(records) == 6
    turn = records[0]["turns"][0]
    assert len(turn["pieces"]) == len(turn["logp"]) == len(turn["advantage"]) == len(turn["entropy"])
    assert "".join(turn["pieces"]).removesuffix("<|im_end|>") == turn["content"] or "�" in "".join(turn["pieces"])
    assert records[0]["parts"].keys() == {"digits"}
    assert list((out / "tensorboard").glob("events*"))
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded = AutoModelForCausalLM.from_pretrained(out / "model")
    trained = dict(policy.model.named_parameters())
    assert all(torch.equal(p, trained[name]) for name, p in loaded.named_parameters())
    assert AutoTokenizer.from_pretrained(out / "model").chat_template


def test_the_same_seed_gives_the_same_run_and_another_another(tmp_path):
    histories = [run_bandit(tmp_path / name, seed=seed)[0].history for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    first, again, other = ([line["reward"] for line in history] for history in histories)
    assert first == again != other


def test_a_longer_run_continues_a_finished_one(tmp_path):
    run_bandit(tmp_path / "r")
    session, policy = run_bandit(tmp_path / "r", steps=6, resume=True)
    whole, expected = run_bandit(tmp_path / "w", steps=6)
    assert torch.equal(policy.logits, expected.logits)
    assert [line["reward"] for line in session.history] == [line["reward"] for line in whole.history]


@pytest.mark.parametrize(
    ("before", "options", "match"),
    [
        ({}, {}, "already holds a run, started .*`resume=True`, replace it with `overwrite=True`"),
        ({}, {"resume": True, "lr": 0.2}, "was started with lr = 0.1, not 0.2"),
        ({}, {"resume": True, "tasks": 3}, "was started with tasks = 2, not 3"),
    ],
)
def test_another_run_in_the_directory_is_not_touched(tmp_path, before, options, match):
    run_bandit(tmp_path / "r", **before)
    content = (tmp_path / "r" / "metrics.jsonl").read_text()
    with pytest.raises(ValueError, match=match):
        run_bandit(tmp_path / "r", **options)
    assert (tmp_path / "r" / "metrics.jsonl").read_text() == content


def test_a_folder_of_other_work_is_resumed_reset_or_refused(tmp_path):
    folder = tmp_path / "work"
    prepare_folder(folder, "work", ["a"], {"seed": 1})
    (folder / "a").write_text("done")
    with pytest.raises(ValueError, match="already holds work.json: continue with `resume=True`"):
        prepare_folder(folder, "work", ["a"], {"seed": 1})
    with pytest.raises(ValueError, match="was started with seed = 1, not 2"):
        prepare_folder(folder, "work", ["a"], {"seed": 2}, resume=True)
    prepare_folder(folder, "work", ["a"], {"seed": 1}, resume=True)
    assert (folder / "a").read_text() == "done"
    prepare_folder(folder, "work", ["a"], {"seed": 2}, overwrite=True)
    assert [one.name for one in folder.iterdir()] == ["work.json"]
    with pytest.raises(ValueError, match="is not empty and holds no other.json"):
        prepare_folder(folder, "other", [], {})


def test_foreign_directories_are_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="is not empty and holds no run"):
        run_bandit(tmp_path, overwrite=True)
    with pytest.raises(ValueError, match="there is no run to continue"):
        run_bandit(tmp_path, resume=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot be written: .*another `out`"):
        run_bandit(tmp_path / "file" / "inside")
    run_bandit(tmp_path / "r")
    (tmp_path / "r" / "notes.txt").write_text("mine")
    run_bandit(tmp_path / "r", overwrite=True)
    assert (tmp_path / "r" / "notes.txt").read_text() == "mine"


def newest(folder: Path) -> Path:
    return sorted(one for one in (folder / "checkpoints").iterdir() if one.name.isdigit())[-1]


def flip_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("name", ["policy.safetensors", "training.pt"])
@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, capsys, name, how):
    """The one before it is taken, with a warning, and the run ends as if nothing had happened."""
    run_bandit(tmp_path / "whole", steps=6, save_every=2)
    run_bandit(tmp_path / "r", steps=4, save_every=2)
    file = newest(tmp_path / "r") / name
    {"flipped": flip_bit, "cut": lambda f: os.truncate(f, 50), "gone": Path.unlink}[how](file)
    run_bandit(tmp_path / "r", steps=6, save_every=2, resume=True)
    said = capsys.readouterr().err
    assert "000004 is damaged" in said
    assert ("it has no " if how == "gone" else "is not what was written") in said
    assert "resuming from" in said
    ends = [load_file(newest(tmp_path / one) / "policy.safetensors") for one in ("whole", "r")]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
    assert [line["step"] for line in pt.read_metrics(tmp_path / "r")] == list(range(6))


def test_when_all_checkpoints_are_damaged_there_is_nothing_to_resume(tmp_path):
    run_bandit(tmp_path / "r")
    for folder in (tmp_path / "r" / "checkpoints").iterdir():
        (folder / "checkpoint.json").write_text("{")
    with pytest.raises(ValueError, match="000004 is damaged: checkpoint.json cannot be read.*there is none before it"):
        run_bandit(tmp_path / "r", resume=True, steps=6)


class Payload:
    """What a run folder from somebody else may hold: pickle runs this when it is read."""

    def __reduce__(self):
        return Path.touch, (Path("was_run"),)


def test_a_checkpoint_runs_no_code(tmp_path, monkeypatch):
    from posttrain.run.checkpoint import file_hashes

    monkeypatch.chdir(tmp_path)
    run_bandit(tmp_path / "r")
    for folder in (tmp_path / "r" / "checkpoints").iterdir():
        torch.save({"memory": Payload()}, folder / "training.pt")
        about = json.loads((folder / "checkpoint.json").read_text())
        (folder / "checkpoint.json").write_text(json.dumps(about | {"sha256": file_hashes(folder)}))
    with pytest.raises(ValueError, match="cannot be read"):
        run_bandit(tmp_path / "r", resume=True, steps=6)
    assert not (tmp_path / "was_run").exists()


def test_memory_that_could_not_be_read_again_is_refused_when_it_is_saved(make, tmp_path):
    class Source(pt.ShuffledSource):
        def state_dict(self):
            return {**super().state_dict(), "path": Path("x")}

    with pytest.raises(
        ValueError,
        match="the `state_dict` of source cannot be saved: it holds a pathlib.*Path, which is more than numbers, text",
    ):
        pt.train(
            make(),
            Source([task()]),
            pt.grpo(pt.each(digits), samples=2),
            pt.Run(tmp_path, steps=1, tasks=1, quiet=True),
        )


def test_numbers_and_arrays_of_numpy_are_kept(make, tmp_path):
    held = {"mean": np.float64(0.5), "table": np.arange(6).reshape(2, 3), "name": "x"}

    class Source(pt.ShuffledSource):
        def state_dict(self):
            return {**super().state_dict(), **held}

        def load_state_dict(self, state):
            self.found = {name: state.pop(name) for name in held}
            super().load_state_dict(state)

    def train(steps, source, **more):
        run = pt.Run(tmp_path, steps=steps, tasks=1, quiet=True, **more)
        pt.train(make(), source, pt.grpo(pt.each(digits), samples=2), run)
        return source

    train(1, Source([task()]))
    found = train(2, Source([task()]), resume=True).found
    assert found["mean"] == 0.5
    assert (found["table"] == np.arange(6).reshape(2, 3)).all()


def test_a_good_checkpoint_is_not_deleted_for_a_damaged_one(tmp_path):
    run_bandit(tmp_path / "r", steps=8, save_every=4)
    flip_bit(newest(tmp_path / "r") / "training.pt")
    run_bandit(tmp_path / "r", steps=6, save_every=4, keep=1, resume=True)
    folder = tmp_path / "r" / "checkpoints"
    assert sorted(one.name for one in folder.iterdir()) == ["000006", "damaged-000008"]


def test_a_damaged_line_of_metrics_costs_no_other(tmp_path, capsys):
    run_bandit(tmp_path / "r", steps=6, save_every=2)
    file = tmp_path / "r" / "metrics.jsonl"
    lines = file.read_bytes().split(b"\n")
    lines[1] = b"\xff" + lines[1][1:]
    file.write_bytes(b"\n".join(lines))
    run_bandit(tmp_path / "r", steps=8, save_every=2, resume=True)
    assert [line["step"] for line in pt.read_metrics(tmp_path / "r")] == [0, 2, 3, 4, 5, 6, 7]
    said = capsys.readouterr().err
    assert "has no readable line of 1 of 6 steps, the first of them 1" in said
    assert (tmp_path / "r" / "metrics-damaged.jsonl").read_bytes() == b"\n".join(lines)


def test_checkpoints_are_sorted_by_number(tmp_path):
    from posttrain.run.checkpoint import Checkpoints

    for name in ("999999", "1000000", "000007", "note"):
        (tmp_path / name).mkdir()
    assert [one.name for one in Checkpoints(tmp_path, 2).complete()] == ["000007", "999999", "1000000"]


def test_a_directory_is_worked_in_by_one_process(make, tmp_path):
    recipe = pt.grpo(pt.each(digits), samples=2)
    run = pt.Run(tmp_path / "r", steps=2, tasks=1, quiet=True)

    def second(_):
        with pytest.raises(ValueError, match=f"is worked in by process {os.getpid()} on .*: wait for it"):
            pt.train(make(), [task()], recipe, replace(run, resume=True))

    pt.train(make(), [task()], recipe, run, on_start=second)
    pt.train(make(), [task()], recipe, replace(run, steps=3, resume=True))
    assert len(pt.read_metrics(tmp_path / "r")) == 3


def test_a_run_that_was_stopped_before_its_first_word_is_begun_again(tmp_path):
    for folder in ("checkpoints", "rollouts"):
        (tmp_path / "r" / folder).mkdir(parents=True)
    (tmp_path / "r" / "run.writing").write_text('{"kind": ')
    run_bandit(tmp_path / "r")
    assert len(pt.read_metrics(tmp_path / "r")) == 4


@pytest.mark.parametrize("where", ["reward", "environment", "advantage"])
def test_what_would_end_the_program_as_done_is_an_error(make, tmp_path, where):
    def reward(rollout):
        if where == "reward":
            sys.exit(0)
        return 0.0

    def env(task):
        yield from pt.ask(task.prompt)
        sys.exit(0)

    def advantage(group, scores):
        sys.exit(0)

    recipe = pt.grpo(pt.each(reward), samples=2, **({"env": env} if where == "environment" else {}))
    recipe = replace(recipe, advantage=advantage) if where == "advantage" else recipe
    who = {"advantage": "a part of the recipe"}.get(where, f"the {where}")
    with pytest.raises(RuntimeError, match=rf"{who} raised SystemExit\(0\)"):
        pt.train(make(), [task()], recipe, pt.Run(tmp_path, steps=1, tasks=1, quiet=True))


def test_sigterm_finishes_the_step_saves_and_goes_on_later(make, tmp_path):
    (tmp_path / "once").touch()

    def reward(rollout):
        if rollout.task.key == "2" and (tmp_path / "once").exists():
            (tmp_path / "once").unlink()
            signal.raise_signal(signal.SIGTERM)
        return digits(rollout)

    def train(out, **more):
        run = pt.Run(tmp_path / out, steps=4, tasks=1, lr=1e-2, save_every=4, quiet=True, **more)
        return pt.train(make(), [task(str(i)) for i in range(4)], pt.grpo(pt.each(reward), samples=2), run)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated) as stopped:
        train("r")
    assert stopped.value.exit_code == 143
    assert re.fullmatch(
        r"stopped after step \d; continue with the same command and `resume=True`", *stopped.value.__notes__
    )
    assert signal.getsignal(signal.SIGTERM) == before
    train("r", resume=True)
    train("whole")
    ends = [load_file(newest(tmp_path / one) / "policy.safetensors") for one in ("whole", "r")]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


def test_a_step_longer_than_the_grace_is_left(make, tmp_path):
    def reward(rollout):
        signal.raise_signal(signal.SIGTERM)
        time.sleep(60)
        return 0.0

    run = pt.Run(tmp_path, steps=1, tasks=1, grace_s=0.2, quiet=True)
    with pytest.raises(Terminated):
        pt.train(make(), [task()], pt.grpo(pt.each(reward), samples=2), run)


def test_the_command_ends_with_143(tmp_path, monkeypatch):
    from posttrain import cli

    def launch(parse, words):
        raise Terminated

    monkeypatch.setattr("posttrain.cli.launch.launch", launch)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["train"])
    assert stopped.value.code == 143


def test_a_checkpoint_of_another_model_is_refused(make, tmp_path):
    recipe = pt.grpo(pt.each(digits), samples=2)
    run = pt.Run(tmp_path / "r", steps=1, tasks=1, quiet=True)
    pt.train(make(), [task()], recipe, run)
    from posttrain import tiny
    from posttrain.policy.text import Sampling, TextPolicy

    words = tiny.tokenizer()
    other = TextPolicy(tiny.network(words, hidden=16), words, Sampling(4))
    with pytest.raises(ValueError, match="is of another model.*give the `model` that this run was started with"):
        pt.train(other, [task()], recipe, replace(run, steps=2, resume=True, lr=None))


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_is_named_and_older_checkpoints_stay(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=66m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("this machine does not let root mount a tmpfs")
    try:
        (disk / "ballast").write_bytes(b"0" * 2**20 * 3)
        with pytest.raises(OSError, match="cannot be written: only 6. MiB are free"):
            run_bandit(disk / "r")
        (disk / "ballast").unlink()
        policy = Bandit([0.0] * 2_000_000)
        run = pt.Run(disk / "s", steps=4, tasks=1, quiet=True, save_every=1, keep=3)
        with pytest.raises(OSError, match="could not write checkpoint .*Free some space"):
            pt.train(policy, [task()], pt.grpo(pt.each(lambda r: float(r.turns[0].reply.content % 2)), samples=2), run)
        assert list((disk / "s" / "checkpoints").glob("0*"))
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_constant_reward_is_warned_of_once(tmp_path, capsys):
    policy = Bandit([0.0, 0.0])
    run = pt.Run(tmp_path / "r", steps=15, tasks=2)
    pt.train(policy, [task()], pt.grpo(pt.each(lambda rollout: 0.0), samples=2), run)
    said = capsys.readouterr().err
    assert said.count("nothing is learned") == 1
    assert "look at rollouts/" in said
    assert "step 15/15" in said


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="steps=0"):
        pt.Run("x", steps=0)
    with pytest.raises(ValueError, match="the schedules are constant, linear, cosine"):
        pt.Run("x", schedule="cosin")
    with pytest.raises(ValueError, match="`track=comet`: unknown, the choices are"):
        pt.Run("x", track=("comet",))
    with pytest.raises(ValueError, match=r"`track=mlflow` needs the extra: pip install 'posttrain\[mlflow\]'"):
        pt.Run("x", track=("mlflow",))


def test_schedules():
    run = pt.Run("x", steps=10, warmup=2, schedule="linear")
    assert [round(run.rate(step, 1.0), 3) for step in (0, 1, 2, 6, 9)] == [0.5, 1.0, 1.0, 0.5, 0.125]
    assert pt.Run("x", steps=10, schedule="cosine").rate(5, 1.0) == pytest.approx(0.5)


def test_what_a_recipe_remembers_is_found(make, tmp_path):
    from posttrain.run.memory import stateful_parts

    gae = Gae(Critic(make()))
    assert stateful_parts(pt.ppo(pt.each(digits), advantage=gae)) == {"recipe.advantage": gae}
    assert stateful_parts(pt.grpo(pt.each(digits), kl=0.1, reference=make())) == {}

    class Remembering:
        def __call__(self, group):
            return [pt.Score(0.0) for _ in group]

        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            pass

    inner = Remembering()
    wrapped = pt.dapo(pt.weighted(a=(1.0, pt.reshaped(inner, sorted))), max_new=8)
    assert list(stateful_parts(wrapped).values()) == [inner], "found inside combinators"
    make().save(tmp_path / "base")
    assert stateful_parts(pt.grpo(pt.reward_model(str(tmp_path / "base")))) == {}, "a frozen reward model is not saved"


CALLS = 0


class Forgetful:
    """A reward that counts, and has no state_dict."""

    def __init__(self):
        self.seen = 0

    def __call__(self, rollout):
        self.seen += 1
        return 0.0


def forgetful_closure():
    seen = 0

    def reward(rollout):
        nonlocal seen
        seen += 1
        return 0.0

    return reward


def forgetful_global(rollout):
    global CALLS
    CALLS += 1
    return 0.0


@pytest.mark.parametrize(
    ("make_reward", "name"), [(Forgetful, "seen"), (forgetful_closure, "seen"), (lambda: forgetful_global, "CALLS")]
)
def test_memory_that_no_checkpoint_holds_is_warned_of(make_reward, name, tmp_path, capsys):
    run = pt.Run(tmp_path / "r", steps=4, tasks=1, save_every=1)
    pt.train(Bandit([0.0, 0.0]), [task()], pt.grpo(pt.weighted(a=(1.0, pt.each(make_reward()))), samples=2), run)
    said = capsys.readouterr().err
    assert said.count(f".{name} has changed during the run, and checkpoints do not hold it") == 1, (
        "not at every checkpoint"
    )


def test_a_reward_without_memory_is_not_warned_of(tmp_path, capsys):
    known = {"answer": [1, 2]}
    run = pt.Run(tmp_path / "r", steps=2, tasks=1)
    pt.train(Bandit([0.0, 0.0]), [task()], pt.grpo(pt.each(lambda rollout: float(len(known))), samples=2), run)
    assert "warning" not in capsys.readouterr().err


def test_settings_of_a_recipe_are_compared_on_a_resume(make, tmp_path):
    policy = make(max_new=4)
    gae = lambda lam: Gae(Critic(policy), lam=lam)  # noqa: E731
    reward = pt.cached(digits)
    run = pt.Run(tmp_path / "r", steps=1, tasks=1, quiet=True)
    pt.train(policy, [task()], pt.ppo(reward, advantage=gae(0.9)), run)
    again = replace(run, steps=2, resume=True)
    with pytest.raises(ValueError, match=r"was started with lam = 0.9, not 0.5"):
        pt.train(policy, [task()], pt.ppo(reward, advantage=gae(0.5)), again)
    with pytest.raises(ValueError, match=r"was started with keep = 'posttrain.recipe.always', not"):
        pt.train(policy, [task()], replace(pt.ppo(reward, advantage=gae(0.9)), keep=pt.wait_for_learners), again)
    pt.train(policy, [task()], pt.ppo(reward, advantage=gae(0.9)), again)


def test_held_out_tasks_are_graded_before_and_after(tmp_path):
    policy = Bandit([0.0, 0.0])
    recipe = pt.grpo(pt.each(lambda rollout: float(rollout.turns[0].reply.content)), samples=4)
    session = pt.train(
        policy, [task()], recipe, pt.Run(tmp_path / "r", steps=3, tasks=1, quiet=True), held_out=[task("h")]
    )
    assert ["held_out/reward" in line for line in session.history] == [True, False, True]


def test_held_out_rewards_draw_from_the_seed_alone(tmp_path):
    """What ran before, a loaded model or another run, has moved the generators of users' code."""
    recipe = pt.grpo(pt.each(lambda rollout: random.random() + np.random.rand() + torch.rand(()).item()), samples=2)
    found = []
    for name in ("a", "b"):
        random.seed(name)
        run = pt.Run(tmp_path / name, steps=1, tasks=1, quiet=True)
        session = pt.train(Bandit([0.0, 0.0]), [task()], recipe, run, held_out=[task("h")])
        found.append(session.history[0]["held_out/reward"])
    assert found[0] == found[1]


def falling_after(values):
    """A reward of held-out tasks with these values, one an evaluation."""
    left = iter(values)
    return pt.each(lambda rollout: next(left))


def test_the_best_model_is_kept_and_a_run_that_gets_no_better_ends(tmp_path, capsys):
    paid = pt.each(lambda rollout: float(rollout.turns[0].reply.content))
    recipe = replace(pt.grpo(paid, samples=4), evaluation=falling_after([1.0, 3.0, 2.0, 2.5, 9.0]))
    run = pt.Run(tmp_path / "r", steps=50, tasks=1, eval_every=2, keep_best="reward", patience=2)
    policy = Bandit([0.0, 0.0])
    session = pt.train(policy, [task()], recipe, run, held_out=[task("h")])
    assert session.step == 6  # measured at 0, 2, 4 and 6
    assert "stopped before step 7: held_out/reward was 3 and not better in 2 evaluations" in capsys.readouterr().err
    about = json.loads((tmp_path / "r" / "best.json").read_text())
    assert about == {"measure": "held_out/reward", "value": 3.0, "step": 2}
    assert (tmp_path / "r" / "best").is_dir()
    resumed = replace(recipe, evaluation=falling_after([2.0]))
    session = pt.train(Bandit([0.0, 0.0]), [task()], resumed, replace(run, resume=True), held_out=[task("h")])
    assert session.step == 6  # it has not forgotten


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"patience": 3}, "it waits for `keep_best`"),
        ({"keep_best": "reward"}, "measured on held-out tasks"),
    ],
)
def test_a_best_that_cannot_be_measured_is_refused(options, error, tmp_path):
    with pytest.raises(ValueError, match=error):
        pt.train(Bandit([0.0, 0.0]), [task()], pt.grpo(pt.each(digits)), pt.Run(tmp_path / "r", **options))


def test_a_measure_that_is_not_there_is_named():
    best = Best("easy/reward")
    with pytest.raises(ValueError, match="`keep_best=easy/reward`: it is not measured; there are reward, length"):
        best.add({"held_out/reward": 1.0, "held_out/length": 2.0})
    less = Best("loss")
    assert [less.add({"held_out/loss": value}) for value in (2.0, 1.0, 3.0)] == [True, True, False]


def test_nothing_admitted_is_warned_of(tmp_path, capsys):
    policy = Bandit([0.0, 0.0])
    run = pt.Run(tmp_path / "r", steps=12, tasks=1)
    recipe = pt.Recipe(pt.each(lambda rollout: 0.0), samples=2, admit=pt.informative, rounds=2)
    session = pt.train(policy, [task()], recipe, run)
    assert "nothing is learned" in capsys.readouterr().err
    assert session.history[-1]["rows"] == 0


def test_the_default_rate_is_gentle_for_pretrained_models_and_not_under_lora():
    from posttrain.run.session import default_rate

    class Model:
        def __init__(self, whole, trained):
            self.model = torch.nn.ParameterList(
                [torch.nn.Parameter(torch.empty(n, device="meta")) for n in (trained, whole - trained)]
            )

        def parameters(self):
            return [self.model[0]]

    assert default_rate(Model(10**8, 10**8), "train") == 1e-6
    assert default_rate(Model(7 * 10**9, 10**7), "train") == pytest.approx(1e-5)
    assert default_rate(Model(15 * 10**7, 10**6), "train") == pytest.approx(2e-4)
    assert default_rate(Model(15 * 10**7, 10**6), "sft") == pytest.approx(3e-4), "at most"
    assert default_rate(Model(10**8, 10**8), "sft") == 1e-5
    assert default_rate(Model(10**6, 10**6), "train") == 3e-4


def test_what_a_closure_holds_is_recorded_by_size_not_by_content():
    from posttrain.run.directory import json_value

    answers = list(range(1000))

    def lookup(rollout):
        return float(answers[0]) if rollout else lookup(rollout)

    [held] = json_value(lookup).values()
    assert held == {
        "answers": "list of 1000",
        "lookup": "test_what_a_closure_holds_is_recorded_by_size_not_by_content.<locals>.lookup",
    }


@pytest.mark.parametrize("wrong", [{"max_norm": 0}, {"max_norm": -1}, {"warmup": -3}, {"save_every": 0}, {"tasks": 0}])
def test_numbers_that_make_no_sense_are_refused(wrong):
    [(name, value)] = wrong.items()
    with pytest.raises(ValueError, match=f"`{name}={value}`: it must"):
        pt.Run("nowhere", **wrong)


def test_lines_outlive_a_kill_and_go_on_behind_the_last_whole_one(tmp_path):
    path = tmp_path / "lines.jsonl"
    lines = Lines(path)
    lines.add({"text": "a\u2028b"}, {"text": "c"})
    assert list(whole_lines(path)) == lines.found == [{"text": "a\u2028b"}, {"text": "c"}]
    path.write_text(path.read_text() + '{"text": "cu')
    again = Lines(path)
    again.add({"text": "d"})
    assert [line["text"] for line in Lines(path).found] == ["a\u2028b", "c", "d"]
    again.replace([{"text": "e"}])
    assert list(whole_lines(path)) == [{"text": "e"}]
    assert Lines(path, resume=False).found == []
    assert path.read_text() == ""


def test_flat_groups_are_no_alarm_where_the_reward_is_not_what_teaches():
    """On-policy distillation has rewards that do not matter, and credit all the same."""
    flat = [{"groups_flat": 1.0, "reward": 0.0, "credited": 0.0}] * 10
    assert any("every group has had one reward" in warning for warning in alarms(flat))
    assert not list(alarms([{**line, "credited": 1.0} for line in flat]))


def test_rollouts_are_drawn_for_the_report(make, tmp_path):
    """As many as the report shows; one that cannot be drawn says why and ends nothing."""

    def draw(rollout):
        if rollout.task.key == "0":
            return None
        if rollout.task.key == "1":
            raise RuntimeError("no paint")
        return np.full((4, 6, 3), 200, dtype=np.uint8)

    recipe = replace(pt.grpo(pt.each(digits), samples=8), draw=draw)
    policy = make(max_new=3)
    pt.train(policy, [task(str(i)) for i in range(3)], recipe, pt.Run(tmp_path, steps=1, tasks=3, quiet=True))
    records = list(read_rollouts(tmp_path))
    assert len(records) == 24
    drawn = [one for one in records if "drawing" in one]
    undrawn = [one for one in records if "undrawn" in one]
    assert {one["task"] for one in drawn} <= {"2"}
    assert {one["undrawn"] for one in undrawn} <= {"RuntimeError: no paint"}
    assert len(drawn) + len(undrawn) >= 8, "of the 16 that are shown at most eight are of the first task"
    page = write_report(tmp_path).read_text()
    assert not drawn or drawn[0]["drawing"] in page
    assert not undrawn or "no paint" in page
