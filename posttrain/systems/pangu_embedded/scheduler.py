"""The scheduler's experiment: real processes, rollouts of long-tailed times, and the same run synchronous and stale.

The scheduler itself is posttrain's asynchronous mode (`posttrain/scale/`): stale-synchronous parallelism with a bound
on every rollout's age, oldest first, then those that are expected to teach most.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.core import Env, Episode, Task
from posttrain.episode import ask
from posttrain.evaluation import evaluate
from posttrain.lab.world.habits import Habits, right
from posttrain.lab.world.words import Size, base
from posttrain.method import grpo
from posttrain.policy.text import TextPolicy
from posttrain.recipe import Recipe
from posttrain.reward import each
from posttrain.run.settings import Run
from posttrain.scale.asynchronous import Players
from posttrain.scale.cluster import Work, train_on_cluster
from posttrain.scale.schedule import Rule
from posttrain.seeding import mix

MEDIAN_S, SPREAD = 0.2, 0.9  # of the log-normal time that a group takes
SAMPLES, GROUPS, STEPS = 8, 16, 30
SLOTS = 8  # groups played side by side, by two processes


def long_tailed(seed: int) -> Env:
    """One turn, after which the episode takes its time: a group's together are log-normal, and differ by task."""

    def play(task: Task) -> Episode:
        yield from ask(task.prompt)
        took = np.random.default_rng(mix(seed, "time", task.key)).lognormal(np.log(MEDIAN_S), SPREAD)
        time.sleep(took / SAMPLES)

    return play


def built(seed: int, quick: bool) -> tuple[TextPolicy, Recipe]:
    """What the learner and every player make for themselves."""
    policy = base(Habits(seed, worked=0.4), seed, Size(steps=60) if quick else Size())
    return policy, replace(grpo(each(right), samples=SAMPLES), env=long_tailed(seed))


def tasks_of(seed: int) -> tuple[list[Task], list[Task]]:
    return Habits(seed, worked=0.4).training(), []


def scheduled(seed: int, quick: bool, staleness: int, rule: Rule = "block", steps: int = STEPS) -> dict[str, float]:
    """A run on two player processes: wall time after the first step, in which processes start, and where it ends."""
    from posttrain.policy.load import text
    from posttrain.run.directory import read_metrics

    built(seed, quick)  # the base model is made once, not by every process
    players = Players(2, at_once=SLOTS // 2, cpus=0.5, staleness=staleness, rule=rule)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        run = Run(out, steps=3 if quick else steps, tasks=GROUPS, lr=1e-3, seed=seed, quiet=True)
        train_on_cluster("local", Work(partial(built, seed, quick), partial(tasks_of, seed), run, players))
        lines: list[dict[str, Any]] = read_metrics(out)
        world = Habits(seed, worked=0.4)
        policy = text(str(out / "model"), max_new=world.longest, device="cpu", threads=1)
    found = evaluate({"policy": policy}, world.held_out(), each(right), samples=8, seed=seed)
    lost = lines[-1]["groups_dropped"]
    return {
        "wall seconds": sum(line["seconds"] for line in lines[1:]),
        "accuracy": found.reward,
        "oldest": max(line["age_max"] for line in lines),
        "mean age": statistics.fmean(line["age_mean"] for line in lines),
        "lost groups": lost / (lost + GROUPS * len(lines)),
    }
