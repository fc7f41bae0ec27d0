"""A Ray cluster on this machine: one learner and two samplers, killed in part and as a whole."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import processes
import pytest
from processes import descendants
from safetensors.torch import load_file

import posttrain as pt
from posttrain import tiny
from posttrain.cli import main
from posttrain.policy.text import TextPolicy

STEPS, TASKS, SAMPLES = 24, 4, 6


@pytest.fixture(scope="module")
def place(tmp_path_factory, words) -> Path:
    """A tiny model, more tasks than a run begins, so that none comes twice, and a reward that is learnt in few steps."""
    folder = tmp_path_factory.mktemp("cluster")
    TextPolicy(tiny.network(words, 0, hidden=32, layers=2, positions=256), words).save(folder / "base")
    lines = [json.dumps({"prompt": f"hi {i}", "answer": "x"}) for i in range((STEPS + 3) * TASKS)]
    (folder / "tasks.jsonl").write_text("\n".join(lines))
    (folder / "reward.py").write_text(
        "import time\nfrom pathlib import Path\n"
        "def digits(rollout):\n"
        "    time.sleep(0.004)\n"
        "    while (Path(__file__).parent / 'hold').exists():\n"
        "        time.sleep(0.1)\n"
        "    return sum(c.isdigit() for c in rollout.text) / max(len(rollout.text), 1)\n"
    )
    return folder


def command(place: Path, out: str, *more: str, steps: int = STEPS) -> list[str]:
    words = ["train", "--data", str(place / "tasks.jsonl"), "--grade", f"{place / 'reward.py'}:digits"]
    words += ["--model", str(place / "base"), "--max-new", "6", "--steps", str(steps)]
    words += [] if "--lr" in more else ["--lr", "2e-2"]
    words += ["--tasks", str(TASKS), "--samples", str(SAMPLES), "--save-every", "2", "--out", str(place / out)]
    return [sys.executable, "-m", "posttrain", *words, *more]


def trained(words: list[str]) -> None:
    """In this process, whose own cluster may be: a process more takes seconds to import everything."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        main(words[3:])


def rewards(folder: Path) -> list[float]:
    return [line["reward"] for line in pt.read_metrics(folder)]


def wait_for_steps(process: subprocess.Popen, out: Path, count: int) -> None:
    processes.wait_until(process, lambda: len(pt.read_metrics(out)) >= count)


GENTLY = ("--method", "dapo", "--lr", "1e-4")  # Adam makes steps of rounding errors: they stay small


@pytest.fixture(scope="module")
def alone(place) -> Path:
    """A run of one process."""
    trained(command(place, "alone", *GENTLY, steps=3))
    return place / "alone"


@pytest.mark.slow
def test_staleness_zero_is_the_loop_of_one_process(place, alone, ray_address):
    """Group for group, with dynamic sampling, two learners and two samplers."""
    trained(command(place, "spread", *GENTLY, "--cluster", ray_address, "--learners", "2", steps=3))
    assert rewards(place / "spread") == pytest.approx(rewards(alone), abs=1e-6)
    tasks = [[record["task"] for record in pt.read_rollouts(place / name)] for name in ("alone", "spread")]
    assert tasks[0] == tasks[1]
    one, two = (load_file(place / name / "model" / "model.safetensors") for name in ("alone", "spread"))
    assert max((one[name] - two[name]).abs().max() for name in one) < 1e-3
    assert all(line["age_max"] == 0 for line in pt.read_metrics(place / "spread"))


STALE = ("--cluster", "local", "--samplers", "2", "--staleness", "1")


@pytest.fixture(scope="module")
def running(place) -> Iterator[subprocess.Popen]:
    """A run on two samplers under way, which two tests kill: one in part, the other as a whole."""
    process = subprocess.Popen(
        command(place, "killed", *STALE), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    wait_for_steps(process, place / "killed", 2)
    yield process
    kill_all(process)


def kill_all(process: subprocess.Popen) -> None:
    for pid in descendants(process.pid):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue  # a child of one that was killed first
    process.wait()


@pytest.mark.slow
def test_a_sampler_that_is_killed_is_replaced(place, running):
    players = [pid for pid, name in descendants(running.pid).items() if name.startswith("ray::Actor")]
    assert len(players) == 2
    os.kill(players[0], signal.SIGKILL)
    out = place / "killed"
    processes.wait_until(running, lambda: pt.read_metrics(out)[-1]["players_replaced"] == 1)
    wait_for_steps(running, out, len(pt.read_metrics(out)) + 2)
    (place / "hold").touch()  # it stays under way
    lines = pt.read_metrics(out)
    assert sum(line["groups_lost"] for line in lines) >= 1
    assert max(line["age_max"] for line in lines) == 1
    assert sum(line["age/0"] for line in lines if "age/0" in line) > 0
    assert all(line["parity_gap"] < 1e-4 for line in lines if "parity_gap" in line)


@pytest.mark.slow
def test_the_whole_run_is_killed_and_resumed_with_nothing_lost(place, running, ray_address):
    out = place / "killed"
    kill_all(running)
    (place / "hold").unlink()
    trained(command(place, "laptop"))
    assert len(pt.read_metrics(out)) < STEPS, "it was still under way"
    elsewhere = ["--cluster", ray_address, "--samplers", "1"]  # it may have another cluster, and fewer samplers
    trained(command(place, "killed", *STALE, "--resume", *elsewhere))
    seen = Counter(record["task"] for record in pt.read_rollouts(out))
    assert len(seen) == STEPS * TASKS
    assert set(seen.values()) == {SAMPLES}, "no task of this single epoch was trained twice"
    assert [line["step"] for line in pt.read_metrics(out)] == list(range(STEPS))
    assert json.loads((out / "run.json").read_text())["resumed"]
    ends = [statistics.fmean(rewards(place / name)[-5:]) for name in ("laptop", "killed")]
    assert ends[0] > 0.5
    assert abs(ends[0] - ends[1]) < 0.25, "the same band"


@pytest.mark.slow
def test_what_a_reward_raises_on_a_player_reaches_the_user(place, ray_address, capsys):
    (place / "broken.py").write_text("def gold(rollout):\n    return rollout.task.truth['gold']\n")
    words = command(place, "broken", "--cluster", ray_address, "--samplers", "1", steps=2)
    words[words.index("--grade") + 1] = f"{place / 'broken.py'}:gold"
    with pytest.raises(SystemExit) as stop:
        trained(words)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "raised by the reward on task" in said
    assert "raised on player" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--staleness", "2"], "--staleness 2 needs --cluster"),
        (
            ["--cluster", "local", "--sampler", "http://x/v1"],
            "on a cluster every sampler is the policy itself, or vllm",
        ),
        (["--sampler-options", "a=1"], "are those of --sampler vllm"),
        (["--cluster", "local", "--stale", "wait"], "--stale wait: unknown, the choices are block, drop, interrupt"),
        (["--cluster", "local", "--samplers", "0"], "--samplers 0: it must be at least 1"),
        (["--learners", "2"], "--learners 2 needs --cluster"),
    ],
)
def test_options_that_do_not_go_together_are_refused(place, options, message, capsys):
    from posttrain.cli import main

    with pytest.raises(SystemExit):
        main([*command(place, "never")[3:], *options])
    assert message in capsys.readouterr().err
    assert not (place / "never").exists()
