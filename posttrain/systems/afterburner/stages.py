"""SFT, DPO and GRPO on a checkpoint and problems of the user's own, and the test-time loop with its table."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

from posttrain.core import Invalid, Sampler, Task
from posttrain.data import Demonstration, Pair
from posttrain.directory import write_json
from posttrain.episode import assistant, rollout
from posttrain.seeding import mix
from posttrain.systems.afterburner.iterate import Rewrite, curve, iterate
from posttrain.systems.afterburner.measuring import METRICS, Bench, Performance, resampled
from posttrain.systems.afterburner.venus import InMarkdown, Problem, asked, by_record, said

Row: TypeAlias = "Mapping[str, float | tuple[float, float, float]]"  # a value, or mean and interval
Stage = Literal["sft", "dpo", "grpo", "evaluate"]


def demonstrations(found: Sequence[Problem], most: int) -> list[Demonstration]:
    """Of each problem and metric the `most` best solutions that passed, from nothing.

    Raises ValueError when there is none.
    """
    plain = InMarkdown()
    out = [
        Demonstration((*asked(one, metric, plain).prompt, assistant(said(solution.code))))
        for one in found
        for metric in METRICS
        for solution in by_record(one, metric)[:most]
    ]
    if not out:
        raise ValueError("no solution of the data passed and has its time, memory or integral: nothing to learn from")
    return out


def pairs(found: Sequence[Problem], count: int, least: int, seed: int) -> list[Pair]:
    """Of each problem with `least` passed solutions and each metric `count` random pairs, the better one chosen.

    Raises ValueError when there is none.
    """
    plain, out = InMarkdown(), list[Pair]()
    for one in found:
        for metric in METRICS:
            known = by_record(one, metric)
            if len(known) < max(least, 2):
                continue
            draw = random.Random(mix(seed, "pairs", one.key, metric))
            for _ in range(count):
                better, worse = sorted(draw.sample(range(len(known)), 2))
                if known[better].recorded[metric] < known[worse].recorded[metric]:
                    texts = said(known[better].code), said(known[worse].code)
                    out.append(Pair(asked(one, metric, plain).prompt, *texts, kind=metric))
    if not out:
        raise ValueError(f"no problem has {least} solutions that passed and differ: lower --least")
    return out


def people_of(bench: Bench, found: Sequence[Problem], most: int) -> dict[str, list[Performance]]:
    """Solutions by people that pass here, measured here: at most `most` of each problem, by the problem's key.

    Raises ValueError when the sandbox failed, or an evaluator cannot be executed.
    """
    trials = [(one, each.code) for one in found for each in one.solutions[:most] if each.passed]
    out: dict[str, list[Performance]] = {one.key: [] for one in found}
    for (one, _), performance in zip(trials, bench(trials), strict=True):
        if isinstance(performance, Invalid):
            raise ValueError(performance.reason)
        if performance.passed:
            out[one.key].append(performance)
    return out


def evaluated(
    policy: Sampler,
    found: Sequence[Problem],
    bench: Bench,
    dialogue: InMarkdown,
    *,
    rounds: int,
    measured: int,
    people: int,
    seed: int,
) -> list[Row]:
    """PASS@1 and BEYOND with their intervals after each of `rounds` greedy iterations from nothing.

    What was said is measured `measured` times afresh; people's solutions once.
    """
    tasks: list[Task[Rewrite]] = [asked(one, metric, dialogue) for one in found for metric in METRICS]
    played = rollout(iterate(rounds + 1, bench, dialogue, temperature=0.0), tasks, {"policy": policy}, 1, seed)
    others = people_of(bench, found, people)
    tables = []
    for _ in range(measured):
        again = Bench(bench.box, bench.wall_s, repeats=bench.repeats, at_once=bench.at_once)
        tables.append(curve(again, [group[0] for group in played], lambda one: others[one.key]))
    return [
        {name: resampled([table[i][name] for table in tables], seed=mix(seed, i) % 2**32) for name in tables[0][i]}
        for i in range(rounds + 1)
    ]


def reported(rows: Sequence[Row], out: Path) -> str:
    """The table as Markdown, which is also written to out/iterations.json."""
    out.mkdir(parents=True, exist_ok=True)
    kept = [{name: None if isnan(value) else value for name, value in row.items()} for row in rows]
    write_json(out / "iterations.json", [{"iteration": i, **row} for i, row in enumerate(kept)])
    names = list(rows[0])
    lines = ["| iteration | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    lines += [f"| {i} | " + " | ".join(shown(row[name]) for name in names) + " |" for i, row in enumerate(rows)]
    return "\n".join(lines)


def isnan(value: float | tuple[float, float, float]) -> bool:
    return math.isnan(value[0] if isinstance(value, tuple) else value)


def shown(value: float | tuple[float, float, float]) -> str:
    if isnan(value):
        return "-"
    return f"{value[0]:.3f} [{value[1]:.3f}, {value[2]:.3f}]" if isinstance(value, tuple) else f"{value:.3f}"
