"""Wall time and end of a run with long-tailed rollouts, synchronous and stale, by real processes on a Ray cluster here.

    python benchmarks/staleness.py --seeds 3

One learner and two players of four groups side by side; steps of 16 groups of 8; a group takes a log-normal time of
median 0.2 s (sigma 0.9), slept after its replies. Nothing else should run meanwhile.
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import dataclass

import tyro

from posttrain.lab.trial import FULL, QUICK
from posttrain.scale.schedule import Rule
from posttrain.systems.pangu_embedded.lab.scheduler import GROUPS, MEDIAN_S, SLOTS, SPREAD, STEPS, arm

ARMS: tuple[tuple[int, Rule], ...] = ((0, "block"), (1, "block"), (1, "drop"), (1, "interrupt"), (2, "block"))


@dataclass(frozen=True)
class Options:
    seeds: int = 3
    steps: int = STEPS
    quick: bool = False
    """Four steps on a base model that has hardly been trained: a smoke test."""


def main(options: Options) -> None:
    print(f"{GROUPS} groups a step, {SLOTS} side by side, median {MEDIAN_S} s, sigma {SPREAD}; {options.seeds} seeds\n")
    print("| staleness | rule | wall seconds | against synchronous | accuracy | mean age | oldest | lost |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    synchronous: list[float] = []
    budget = QUICK if options.quick else FULL
    for staleness, rule in ARMS:
        found = []
        for seed in range(options.seeds):
            found.append(arm(staleness, rule, options.steps)(seed, budget))
            print(staleness, rule, seed, found[-1], file=sys.stderr, flush=True)
        wall = [one["wall seconds"] for one in found]
        synchronous = synchronous or wall
        saved = [1 - a / b for a, b in zip(wall, synchronous, strict=True)]
        means = {name: statistics.fmean(one[name] for one in found) for name in found[0]}
        ends = ", ".join(f"{one['accuracy']:.2f}" for one in found)
        print(
            f"| {staleness} | {rule} | {means['wall seconds']:.1f} | {-statistics.fmean(saved):+.0%} "
            f"({', '.join(f'{-one:+.0%}' for one in saved)}) | {means['accuracy']:.3f} ({ends}) "
            f"| {means['mean age']:.2f} | {max(one['oldest'] for one in found):.0f} | {means['lost groups']:.1%} |",
            flush=True,
        )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
