"""Curricula: several trainings one after another, in one folder, killed and resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import phases_program
import processes
import pytest
import torch
from conftest import Bandit, digits, task
from safetensors.torch import load_file

import posttrain as pt
from posttrain.run.session import DryRun
from posttrain.sampler.weights import Twin
from posttrain.scale.place import Place, build, place, standing_in


def chose(number):
    return pt.each(lambda rollout: float(rollout.turns[0].reply.content == number))


FIRST, SECOND = chose(1), chose(2)


def grpo(reward=FIRST):
    return lambda policy: pt.grpo(reward, samples=4)


def phases(*names, steps=3, reward=FIRST, **options):
    tasks = [task("a"), task("b"), task("c")]
    return [pt.Phase(name, tasks, grpo(reward), steps, **options) for name in names]


def run(out, **options):
    return pt.Run(out, **{"tasks": 2, "lr": 0.1, "quiet": True, **options})


def test_the_folder_of_a_curriculum(tmp_path):
    policy = Bandit([0.0, 0.0, 0.0])
    out = pt.train_phases(policy, phases("one") + phases("two", steps=2, lr=0.5), run(tmp_path / "r"))
    assert out == tmp_path / "r"
    assert [line["step"] for line in pt.read_metrics(out)] == [0, 1, 2, 3, 4]
    assert [line["phase"] for line in pt.read_metrics(out)] == [1, 1, 1, 2, 2]
    assert [line["lr"] for line in pt.read_metrics(out)] == [0.1] * 3 + [0.5] * 2
    assert [line["step"] for line in pt.read_metrics(out / "2-two")] == [0, 1]
    about = json.loads((out / "run.json").read_text())
    assert about["run"]["steps"] == 5
    assert about["order"] == ["one", "two"]
    assert torch.equal(torch.load(out / "model" / "logits.pt"), policy.logits)


def test_phases_are_trainings_one_after_another(make, tmp_path):
    """To the last digit those by hand, and the reference is the start of the phase."""
    rewards = [pt.each(digits), pt.each(lambda rollout: -digits(rollout))]
    tasks = [[task(f"{name}{i}") for i in range(5)] for name in "ab"]

    def recipe(reward):
        return lambda policy: pt.grpo(reward, samples=3, kl=0.1, reference=policy.frozen_copy())

    made = [pt.Phase(name, some, recipe(one), 2) for name, some, one in zip("ab", tasks, rewards, strict=True)]
    together, alone = make(max_new=4), make(max_new=4)
    settings = {"tasks": 2, "lr": 1e-2, "quiet": True}
    pt.train_phases(together, made, pt.Run(tmp_path / "together", **settings))
    for name, some, one in zip("ab", tasks, rewards, strict=True):
        alone.version = 0
        pt.train(alone, some, recipe(one)(alone), pt.Run(tmp_path / name, steps=2, **settings))
    both = zip(together.state_dict().values(), alone.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in both)
    for number, name in enumerate("ab", 1):
        ours, theirs = pt.read_metrics(tmp_path / "together" / f"{number}-{name}"), pt.read_metrics(tmp_path / name)
        assert [line["loss"] for line in ours] == [line["loss"] for line in theirs]


class Cut(Exception):
    """In place of a kill, in this process."""


def test_a_resumed_curriculum_goes_on_in_its_phase(tmp_path):
    """A finished phase is loaded, and its recipe's reference is made anew from the same weights."""
    whole = Bandit([0.0, 0.0, 0.0])
    pt.train_phases(whole, phases("one", "two", "three"), run(tmp_path / "whole"))
    trained, starts = [], []

    def cut(policy, tasks, recipe, settings, **options):
        starts.append(policy.logits.detach().clone())
        if Path(settings.out).name == "2-two" and not settings.resume:
            settings = pt.Run(**{name: getattr(settings, name) for name in settings.__slots__} | {"save_every": 1})

            def stop(session):
                session.log = lambda *_: (_ for _ in ()).throw(Cut())

            return pt.train(policy, tasks, recipe, settings, on_start=stop, **options)
        session = pt.train(policy, tasks, recipe, settings, **options)
        trained.append((Path(settings.out).name, len(session.history)))
        return session

    with pytest.raises(Cut):
        pt.train_phases(Bandit([0.0, 0.0, 0.0]), phases("one", "two", "three"), run(tmp_path / "cut"), cut)
    first = (tmp_path / "cut" / "1-one" / "metrics.jsonl").read_text()
    resumed = Bandit([0.0, 0.0, 0.0])
    pt.train_phases(resumed, phases("one", "two", "three"), run(tmp_path / "cut", resume=True), cut)
    assert torch.equal(resumed.logits, whole.logits)
    assert (tmp_path / "cut" / "1-one" / "metrics.jsonl").read_text() == first
    assert torch.equal(starts[1], starts[3]), "the second phase begins from the end of the first, both times"
    assert [name for name, _ in trained] == ["1-one", "1-one", "2-two", "3-three"]


@pytest.mark.slow
def test_killed_in_the_second_phase_it_ends_with_identical_weights(tmp_path):
    def start(*more):
        return subprocess.Popen([sys.executable, phases_program.__file__, str(tmp_path / "cut"), *more])

    phases_program.run(str(tmp_path / "whole"))
    process, metrics = start(), tmp_path / "cut" / "2-second" / "metrics.jsonl"
    processes.wait_until(process, lambda: metrics.is_file() and len(metrics.read_text().splitlines()) >= 3)
    process.send_signal(signal.SIGKILL)
    processes.output(process)
    assert process.returncode == -signal.SIGKILL
    first = (tmp_path / "cut" / "1-first" / "metrics.jsonl").read_text()
    processes.output(again := start("resume"))
    assert again.returncode == 0
    assert (tmp_path / "cut" / "1-first" / "metrics.jsonl").read_text() == first, "the first was not run again"
    whole, cut = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    for name in ("reward", "loss", "grad_norm", "phase", "step"):
        ours, theirs = ([line[name] for line in pt.read_metrics(tmp_path / out)] for out in ("whole", "cut"))
        assert ours == theirs, name


@pytest.mark.slow
def test_a_curriculum_on_two_ranks_is_that_of_one(tmp_path):
    """To float tolerance; the second phase copies its reference from a policy that lies on both."""
    phases_program.run(str(tmp_path / "one"))
    here = Path(phases_program.__file__).parent
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{here}{os.pathsep}{here.parent}"}
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
    words = [sys.executable, *launch, phases_program.__file__, str(tmp_path / "two")]
    done = processes.ran(words, env=environment)
    assert done.returncode == 0, done.stderr
    one, two = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two"))
    apart = max((one[name] - two[name]).abs().max().item() for name in one)
    assert apart < 1e-3
    for name in ("reward", "kl", "loss", "grad_norm"):
        ours, theirs = ([line[name] for line in pt.read_metrics(tmp_path / out)] for out in ("one", "two"))
        assert ours == pytest.approx(theirs, rel=2e-2, abs=1e-3), name


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (phases("one", steps=4) + phases("two"), "started with steps = 3, not 4"),
        (phases("one", lr=0.3) + phases("two"), "started with lr = None, not 0.3"),
        (phases("one", reward=SECOND) + phases("two"), "1-one was started with"),
        (phases("two", "one"), r"started with order = \['one', 'two'\]"),
    ],
)
def test_a_resume_with_other_phases_is_refused(other, message, tmp_path):
    pt.train_phases(Bandit([0.0] * 3), phases("one", "two"), run(tmp_path / "r"))
    with pytest.raises(ValueError, match=message):
        pt.train_phases(Bandit([0.0] * 3), other, run(tmp_path / "r", resume=True))


def test_an_engine_that_phases_share_has_the_weights_of_each(make, tmp_path):
    """A phase of a single step begins with the version that the one before it began with, and with other weights."""
    policy, same = make(max_new=4), []

    class Watched(Twin):
        def sample(self, asks):
            pairs = zip(self.policy.parameters(), policy.parameters(), strict=True)
            same.append(all(torch.equal(a, b) for a, b in pairs))
            return super().sample(asks)

    reward = pt.each(lambda rollout: float(sum(map(ord, rollout.text)) % 3))
    made = [
        pt.Phase(name, [task("a"), task("b")], lambda _: pt.grpo(reward, samples=4), 1)
        for name in ("one", "two", "three")
    ]
    pt.train_phases(policy, made, run(tmp_path, lr=1e-2), partial(pt.train, sampler=Watched(make(max_new=4))))
    assert len(same) >= 3
    assert all(same)


def test_a_curriculum_under_way_is_not_replaced(tmp_path):
    """Neither its phases nor what they have written."""

    def train(policy, *arguments, **options):
        with pytest.raises(ValueError, match=f"is worked in by process {os.getpid()}"):
            pt.train_phases(Bandit([0.0] * 3), phases("one"), run(tmp_path, overwrite=True))
        return pt.train(policy, *arguments, **options)

    pt.train_phases(Bandit([0.0] * 3), phases("one") + phases("two"), run(tmp_path), train)
    assert len(pt.read_metrics(tmp_path)) == 6


def test_a_replaced_curriculum_leaves_nothing_of_the_old_one(tmp_path):
    pt.train_phases(Bandit([0.0] * 3), phases("one", "two"), run(tmp_path / "r"))
    with pytest.raises(ValueError, match="already holds a run"):
        pt.train_phases(Bandit([0.0] * 3), phases("one", "two"), run(tmp_path / "r"))

    def fail(policy, tasks, recipe, settings, **options):
        raise Cut

    with pytest.raises(Cut):
        pt.train_phases(Bandit([0.0] * 3), phases("one", "two"), run(tmp_path / "r", overwrite=True), fail)
    assert [one.name for one in (tmp_path / "r" / "2-two").iterdir()] == [".lock"]


def test_what_cannot_be_trained_is_said_before_anything_is(tmp_path, make):
    def refused(made, policy=None):
        with pytest.raises(ValueError, match=".*") as error:
            pt.train_phases(policy or Bandit([0.0] * 3), made, run(tmp_path / "r"))
        assert not (tmp_path / "r").exists()
        return str(error.value)

    assert "at least one phase" in refused([])
    assert "two phases are named 'one'" in refused(phases("one", "two", "one"))
    long = pt.Phase("long", [task("t", text="word " * 400)], grpo(), 1)
    assert "the phase 'long': task 't': its prompt has" in refused([*phases("one"), long], make())
    for wrong, message in (
        (lambda: pt.Phase("empty", [], grpo(), 1), "'empty' has nothing to train on"),
        (lambda: pt.Phase("a/b", [task()], grpo(), 1), "take letters, digits"),
        (lambda: pt.Phase("none", [task()], grpo(), 0), "0 steps: it needs at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()


def test_a_dry_run_plans_every_phase(tmp_path):
    with pytest.raises(DryRun) as planned:
        pt.train_phases(Bandit([0.0] * 3), phases("one", "two"), run(tmp_path / "r", dry_run=True))
    assert [Path(session.run.out).name for session in planned.value.sessions] == ["1-one", "2-two"]
    assert not (tmp_path / "r").exists()


def test_players_of_a_cluster_build_the_recipe_of_the_phase_that_is_trained(make, tmp_path):
    def program():
        rewarded = [*phases("one"), *phases("two", reward=SECOND)]
        return pt.train_phases(make(), rewarded, run(tmp_path / "r"))

    assert build(program)[1].reward is FIRST
    assert build(program, 1)[1].reward is SECOND
    assert not (tmp_path / "r").exists()
    with standing_in(Place(phase=2)):
        assert place.phase == 2
    assert place.phase == 0
