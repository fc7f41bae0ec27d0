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

import posttrain as pt
from posttrain.lab.world.habits import Habits, is_right
from posttrain.lab.world.words import Size, base
from posttrain.scale.schedule import Rule

MEDIAN_S, SPREAD = 0.2, 0.9  # of the log-normal time that a group takes
SAMPLES, GROUPS, STEPS = 8, 16, 30
SLOTS, PLAYERS = 8, 2  # groups played side by side, and the processes that play them
AT_ONCE = SLOTS // PLAYERS


def long_tailed(seed: int) -> pt.Env:
    """One turn, after which the episode takes its time: a group's together are log-normal, and differ by task."""

    def play(task: pt.Task) -> pt.Episode:
        yield from pt.ask(task.prompt)
        took = np.random.default_rng(pt.mix(seed, "time", task.key)).lognormal(np.log(MEDIAN_S), SPREAD)
        time.sleep(took / SAMPLES)

    return play


def learn(seed: int, budget: pt.Budget, run: pt.Run, scale: pt.ScaleOptions) -> pt.Session:
    """What the learner and every player run."""
    world = Habits(seed, worked=0.4)
    policy = base(world, seed, budget.size(Size()))
    recipe = replace(pt.grpo(pt.each(is_right), samples=SAMPLES), env=long_tailed(seed))
    return scale.train(policy, world.training_tasks(), recipe, run)


def arm(staleness: int, rule: Rule = "block", steps: int = STEPS) -> pt.Arm:
    """A run on two player processes: wall time after the first step, in which processes start, and where it ends."""

    def on_cluster(seed: int, budget: pt.Budget) -> pt.Measures:
        from posttrain.scale.cluster import run_on_cluster

        world = Habits(seed, worked=0.4)
        base(world, seed, budget.size(Size()))  # it is made once, not by every process
        scale = pt.ScaleOptions(cluster="local", samplers=PLAYERS, at_once=AT_ONCE, staleness=staleness, stale=rule)
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "run"
            run = pt.Run(out, steps=budget.steps(steps), tasks=budget.items(GROUPS), lr=1e-3, seed=seed, quiet=True)
            run_on_cluster("local", partial(learn, seed, budget, run, scale), scale.players())
            lines: list[dict[str, Any]] = pt.read_metrics(out)
            policy = pt.text(str(out / "model"), max_new=world.longest, device="cpu", threads=1)
        found = pt.evaluate({"policy": policy}, world.held_out_tasks(), pt.each(is_right), samples=8, seed=seed)
        lost = lines[-1]["groups_dropped"]
        return {
            "wall seconds": sum(line["seconds"] for line in lines[1:]),
            "accuracy": found.reward,
            "oldest": max(line["age_max"] for line in lines),
            "mean age": statistics.fmean(line["age_mean"] for line in lines),
            "lost groups": lost / (lost + GROUPS * len(lines)),
        }

    return on_cluster


ARMS = {"synchronous": arm(staleness=0), "staleness 1": arm(staleness=1)}
CLAIMS = pt.claims("""
    a staleness of 1 shortens the wall time
        paper: about 30 % less idle time; here real processes with long-tailed rollouts
        wall seconds: staleness 1 < synchronous
    a staleness of 1 costs no accuracy
        paper: within seed noise; here within 0.05
        accuracy in [0, 1]: staleness 1 > synchronous - 0.05
""")
