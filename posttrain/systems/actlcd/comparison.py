"""Plain greedy decoding, DoLa and a gate (ActLCD) side by side, at equal repetition penalties."""

from __future__ import annotations

import itertools
import statistics
import sys
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import posttrain as pt
from posttrain.systems.actlcd.checking import Checker
from posttrain.systems.actlcd.gate import Constant, GatePolicy
from posttrain.systems.actlcd.learning import rate

Row: TypeAlias = dict[str, float]


PENALTIES = (1.0, 1.2)


FIXED = {"greedy": 0.0, "DoLa": 1.0}  # gates that no run changes: how often they contrast


ROWS = len(PENALTIES) * (len(FIXED) + 1)


def three_ways(
    policy: GatePolicy,
    tasks: Sequence[pt.Task],
    checker: Checker,
    *,
    seed: int = 0,
    known: Container[str] = (),
    watch: Callable[[int], object] = lambda more: None,
) -> Iterator[tuple[str, Row]]:
    """Accuracy and contrast rate of plain greedy, of DoLa, and of the gate, each at every repetition penalty.

    Each row is yielded as soon as it is known; those in `known` are left out. `watch(n)` is called after each batch
    with the number of tasks finished.
    """
    gates = {**{name: Constant(contrast) for name, contrast in FIXED.items()}, "ActLCD": policy.gate}
    for (name, gate), penalty in itertools.product(gates.items(), PENALTIES):
        row = f"{name}, penalty {penalty:g}"
        if row in known:
            continue
        player = GatePolicy(policy.speaker, gate, replace(policy.how, penalty=penalty), policy.kind, temperature=0.0)
        players = {"policy": player, **checker.others}
        found = pt.evaluate(players, tasks, checker.reward, checker.env, seed=seed, watch=watch)
        rollouts = list(itertools.chain(*found.groups))
        yield (
            row,
            {
                "accuracy": found.reward,
                "contrast rate": rate(rollouts),
                "tokens": statistics.fmean(one.decisions for one in rollouts),
                "invalid": float(found.invalid),
            },
        )


def show_three_ways(
    policy: GatePolicy, sets: Mapping[str, Sequence[pt.Task]], checker: Checker, out: Path, run: pt.Run | pt.Output
) -> None:
    """Print the table of `three_ways` over each set of tasks; every row is in OUT/decoding.json once it is known.

    On a resume, rows of gates that no run changes are taken from there. Rows of a set with a name begin with it.
    """
    path = out / "decoding.json"
    found: dict[str, Any] = {}
    if run.resume and path.is_file():
        found = {row: values for row, values in pt.read_json(path).items() if is_fixed(row)}
    pt.write_json(path, found)
    total = ROWS * sum(map(len, sets.values()))
    try:
        with pt.progress_bar("decoding", total, run.quiet) as done:
            for name, tasks in sets.items():
                place = f"{name}/" if name else ""
                known = {row.removeprefix(place) for row in found if row.startswith(place)}
                done(len(known) * len(tasks))
                for row, values in three_ways(policy, tasks, checker, seed=run.seed, known=known, watch=done):
                    found[f"{place}{row}"] = values
                    pt.write_json(path, found)
    except KeyboardInterrupt as stop:
        stop.add_note(f"the rows so far are in {path}; continue with the same command and `resume=True`")
        raise
    print(table(found))
    if not any(values["accuracy"] for values in found.values()):
        print(
            "warning: not one reply was right, greedy ones included: look at what the grader takes for the answer, and "
            "at how many tokens a reply may have",
            file=sys.stderr,
        )


def table(found: Mapping[str, Mapping[str, float]]) -> str:
    columns, width = list(next(iter(found.values()))), max(22, *map(len, found))
    lines = [" " * width + "".join(f"{name:>15}" for name in columns)]
    lines += [f"{name:{width}}" + "".join(f"{row[c]:15.3f}" for c in columns) for name, row in found.items()]
    return "\n".join(lines)


def is_fixed(row: str) -> bool:
    """Whether a row of OUT/decoding.json is of a gate that no run changes."""
    return row.rpartition("/")[2].partition(",")[0] in FIXED
