"""The test-time loop on a checkpoint and problems of the user's own: PASS@1 and BEYOND after each iteration.

OUT/run.json           every setting
OUT/people.jsonl       people's solutions as they were measured here, a line for each problem
OUT/rollouts/          every prompt, reply and code
OUT/measured.jsonl     the curve of each measurement
OUT/iterations.json    means and intervals

All but the last are written as they come, and a resumed evaluation goes on behind them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from posttrain.core import Env, EpisodeFailed, Failed, Invalid, Rollout, Score, Task
from posttrain.episode import rollout
from posttrain.group import Played
from posttrain.policy.text import TextPolicy
from posttrain.run.directory import Directory, read_rollouts, write_json
from posttrain.run.lines import Lines
from posttrain.run.progress import bar
from posttrain.run.settings import Run
from posttrain.seeding import mix
from posttrain.systems.afterburner.iterate import Best, Rewrite, course, courses, curve, iterate
from posttrain.systems.afterburner.measuring import METRICS, Bench, Performance, at_least, resampled
from posttrain.systems.afterburner.venus import InMarkdown, Problem, asked

Row: TypeAlias = "Mapping[str, float | tuple[float, float, float]]"  # a value, or mean and interval
PEOPLE, MEASURED, ITERATIONS = "people.jsonl", "measured.jsonl", "iterations.json"


@dataclass(frozen=True)
class IterationOptions:
    """The loop of --stage evaluate, and what it is compared with. --tasks of its episodes are played together."""

    rounds: int = 10
    """Iterations after the first answer."""
    measured: int = 16
    """Times that what was said is measured."""
    people: int = 100
    """Solutions of each problem, at most, that it is compared with; with 0 there is no BEYOND."""

    def check(self) -> None:
        """Raises ValueError for a number that is too small."""
        at_least(self, rounds=0, measured=1, people=0)


def evaluate(
    policy: TextPolicy,
    found: Sequence[Problem],
    bench: Bench,
    dialogue: InMarkdown,
    options: IterationOptions,
    run: Run,
) -> list[Row]:
    """PASS@1 and BEYOND with their intervals after each greedy iteration from nothing; `left out` counts episodes.

    What was said is measured afresh again and again; people's solutions once. Raises ValueError, before any work, for
    numbers, prompts or a folder that will not do.
    """
    options.check()
    tasks: list[Task[Rewrite]] = [asked(one, metric, dialogue) for one in found for metric in METRICS]
    roomy(policy, tasks, dialogue, options.rounds)
    directory = Directory(Path(run.out))
    directory.prepare({"kind": "evaluate", "run": run}, run)
    if not run.resume:
        for name in (PEOPLE, MEASURED, ITERATIONS):
            (directory.path / name).unlink(missing_ok=True)
    others = people_of(bench, found, options.people, directory.path / PEOPLE, run.quiet)
    env = iterate(options.rounds + 1, bench, dialogue, temperature=0.0)
    played = answered(policy, tasks, env, bench, directory, run)
    kept = directory.path / MEASURED
    tables = measured(bench, played, lambda one: others[one.key], options.measured, kept, run.quiet)
    rows = [
        {name: resampled([table[i][name] for table in tables], seed=mix(run.seed, i) % 2**32) for name in tables[0][i]}
        for i in range(options.rounds + 1)
    ]
    return [{**row, "left out": row["left out"][0]} for row in rows]


def roomy(policy: TextPolicy, tasks: Sequence[Task[Rewrite]], dialogue: InMarkdown, rounds: int) -> None:
    """Raises ValueError when a prompt, or the longest it may become by what was said before, does not fit the model."""
    policy.check(tasks)
    if not rounds:
        return
    most = policy.sampling.max_new
    for task in tasks:
        told = dialogue.prompt(task, Best("", Performance(True)))
        length = len(policy.chat.prompt(told)[0]) + (most if dialogue.original else 0) + most
        if length > policy.context:
            raise ValueError(
                f"task {task.key!r}: an iteration may take {length} tokens, with code of {most} in its prompt, but the "
                f"model has {policy.context} positions: lower --max-new, leave out the problem, or take a model with a "
                "longer context"
            )


# ---- what is kept as it comes


def people_of(
    bench: Bench, found: Sequence[Problem], most: int, path: Path, quiet: bool = False
) -> dict[str, list[Performance]]:
    """Solutions by people that pass here, measured here: at most `most` of each problem, by the problem's key.

    Raises ValueError when the sandbox failed.
    """
    lines = Lines(path)
    known = {line["problem"]: [Performance(True, *one) for one in line["passed"]] for line in lines.found}
    with bar("people's solutions", len(found), quiet) as done:
        for one in found:
            if one.key not in known:
                trials = [(one, each.code) for each in one.solutions[:most] if each.passed]
                known[one.key] = passed = []
                for performance in bench(trials):
                    if isinstance(performance, Invalid):
                        raise ValueError(f"{one.place}: {performance.reason}; go on with --resume")
                    if performance.passed:
                        passed.append(performance)
                lines.add({"problem": one.key, "passed": [(each.seconds, each.kib) for each in passed]})
            done()
    return known


def answered(
    policy: TextPolicy, tasks: Sequence[Task[Rewrite]], env: Env, bench: Bench, directory: Directory, run: Run
) -> list[Rollout]:
    """The episode of each task, `run.tasks` of them together; those that were written are read, without their turns.

    Raises ValueError when not one of those together could be played.
    """
    out: list[Rollout] = []
    with bar("episodes", len(tasks), run.quiet) as done:
        for step, start in enumerate(range(0, len(tasks), run.tasks)):
            some = tasks[start : start + run.tasks]
            facts = [record["facts"] for record in read_rollouts(directory.path, step)]
            if not facts:
                numbers = range(start, start + len(some))
                played = [group[0] for group in rollout(env, some, {"policy": policy}, 1, run.seed, numbers=numbers)]
                if all(isinstance(one.facts, Failed) for one in played):
                    raise ValueError(f"not one of {len(some)} episodes could be played: {played[0].facts.reason}")
                directory.write_rollouts(step, policy, [Played(one, passing(bench, one), None) for one in played])
                facts = [one.facts for one in played]
            facts = [Failed(**one) if isinstance(one, Mapping) else one for one in facts]
            out += [Rollout(task, [], one) for task, one in zip(some, facts, strict=True)]
            done(len(some))
    return out


def passing(bench: Bench, one: Rollout) -> Score | Invalid:
    """1 for an episode whose best code passes."""
    if isinstance(one.facts, Failed):
        return Invalid(one.facts.reason)
    try:
        return Score(float(course(bench, one.task.truth, one.facts)[-1].performance.passed))
    except EpisodeFailed as error:
        return Invalid(str(error))


def measured(
    bench: Bench,
    played: Sequence[Rollout],
    people: Callable[[Any], Sequence[Performance]],
    count: int,
    path: Path,
    quiet: bool = False,
) -> list[list[dict[str, float]]]:
    """The curves of so many measurements of what was said; `left out` are episodes that have no course in them."""
    lines = Lines(path)
    tables = [
        [{name: math.nan if value is None else value for name, value in row.items()} for row in line["rows"]]
        for line in lines.found
    ]
    with bar("measurements", count, quiet) as done:
        done(len(tables))
        for _ in range(len(tables), count):
            paths = courses(bench.fresh(), played)
            lost = float(len(played) - len(paths))
            table = [{**row, "left out": lost} for row in curve(paths, people)]
            lines.add({"rows": [without_nan(row) for row in table]})
            tables.append(table)
            done()
    return tables


# ---- the table


def reported(rows: Sequence[Row], out: Path) -> str:
    """The table as Markdown, which is also written to out/iterations.json."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / ITERATIONS, [{"iteration": i, **without_nan(row)} for i, row in enumerate(rows)])
    names = list(rows[0])
    lines = ["| iteration | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    lines += [f"| {i} | " + " | ".join(shown(row[name]) for name in names) + " |" for i, row in enumerate(rows)]
    return "\n".join(lines)


def without_nan(row: Row) -> dict[str, Any]:
    """As JSON has it, which knows no NaN."""
    return {name: None if isnan(value) else value for name, value in row.items()}


def isnan(value: float | tuple[float, float, float]) -> bool:
    return math.isnan(value[0] if isinstance(value, tuple) else value)


def shown(value: float | tuple[float, float, float]) -> str:
    if isnan(value):
        return "-"
    return f"{value[0]:.3f} [{value[1]:.3f}, {value[2]:.3f}]" if isinstance(value, tuple) else f"{value:.3f}"
