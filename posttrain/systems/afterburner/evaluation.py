"""The test-time loop on a checkpoint and problems of the user's own: PASS@1 and BEYOND after each iteration.

OUT/run.json           every setting
OUT/people.jsonl       people's solutions as they were measured here, a line for each problem
OUT/rollouts/          every prompt, reply and code
OUT/measured.jsonl     the curve of each measurement
OUT/iterations.json    means and intervals

All but the last are written as results come in, and a resumed evaluation continues after them. Where there are several
ranks, each plays its share of the episodes; people's solutions and the final curves are measured by the first alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import posttrain as pt
from posttrain.group import ScoredRollout
from posttrain.run.rollouts import write_rollouts
from posttrain.systems.afterburner.iterate import Best, Rewrite, course, courses, curve, iterate
from posttrain.systems.afterburner.measurement import METRICS, Bench, Performance, resampled_mean
from posttrain.systems.afterburner.venus import InMarkdown, Problem, task_of

Row: TypeAlias = "Mapping[str, float | tuple[float, float, float]]"  # a value, or mean and interval
PEOPLE, MEASURED, ITERATIONS = "people.jsonl", "measured.jsonl", "iterations.json"
MEASURING = timedelta(days=7)  # other ranks wait as long for the first one's measurements


@dataclass(frozen=True)
class IterationOptions:
    """The loop, and what it is compared with."""

    rounds: int = 10
    """Iterations after the first answer."""
    measurements: int = 16
    """Times that the replies are measured."""
    people: int = 100
    """Most solutions of each problem that it is compared with; with 0 there is no BEYOND."""
    tasks: int = 32
    """Episodes that are played together."""

    def __post_init__(self):
        pt.at_least(0, rounds=self.rounds, people=self.people)
        pt.at_least(1, measurements=self.measurements, tasks=self.tasks)


def iterations(
    policy: pt.TextPolicy,
    found: Sequence[Problem],
    bench: Bench,
    dialogue: InMarkdown,
    options: IterationOptions,
    scale: pt.ScaleOptions,
    output: pt.Output,
) -> list[Row]:
    """PASS@1 and BEYOND with their intervals after each greedy iteration from nothing; `left out` counts episodes.

    The replies are measured afresh `options.measurements` times, people's solutions once. Raises ValueError, before any
    work, for prompts that do not fit the model, and a folder that holds something else.
    """
    tasks: list[pt.Task[Rewrite]] = [task_of(one, metric, dialogue) for one in found for metric in METRICS]
    check_room(policy, tasks, dialogue, options.rounds)
    directory = pt.Directory(Path(output.out))
    pt.ranks.run_on_primary(lambda: prepare(directory, output), "for the folder")
    people = partial(people_performances, bench, found, options.people, directory.path / PEOPLE, output.quiet)
    others = pt.ranks.run_on_primary(people, "for people's solutions to be measured", MEASURING)
    env = iterate(options.rounds + 1, bench, dialogue, temperature=0.0)
    with scale.playing(policy, output.out, tasks) as player:
        played = play_episodes(policy, player, tasks, env, bench, directory, options.tasks, output)
    path, count = directory.path / MEASURED, options.measurements
    measure = partial(curves, bench, played, lambda one: others[one.key], count, path, output.quiet)
    tables = pt.ranks.run_on_primary(measure, "for the replies to be measured", MEASURING)
    rows = [
        {
            name: resampled_mean([table[i][name] for table in tables], seed=pt.mix(output.seed, i) % 2**32)
            for name in tables[0][i]
        }
        for i in range(options.rounds + 1)
    ]
    return [{**row, "left out": row["left out"][0]} for row in rows]


def check_room(policy: pt.TextPolicy, tasks: Sequence[pt.Task[Rewrite]], dialogue: InMarkdown, rounds: int) -> None:
    """Raises ValueError when a prompt, or the longest it may become with earlier code in it, does not fit the model."""
    policy.check(tasks)
    if not rounds:
        return
    most = policy.sampling.max_new
    for task in tasks:
        told = dialogue.prompt(task, Best("", Performance(True)))
        length = len(policy.chat.prompt(told)[0]) + (most if dialogue.original else 0) + most
        if length > policy.context:
            raise ValueError(
                f"`max_new={most}`: an iteration of task {task.key!r} may take {length} tokens, with as long a code in "
                f"its prompt, but the model has {policy.context} positions: lower `max_new`, leave out the problem, or "
                "take a model with a longer context"
            )


def prepare(directory: pt.Directory, output: pt.Output) -> None:
    directory.prepare({"kind": "evaluate", "run": output}, output)
    if not output.resume:
        for name in (PEOPLE, MEASURED, ITERATIONS):
            (directory.path / name).unlink(missing_ok=True)


# ---- what is written as it comes


def people_performances(
    bench: Bench, found: Sequence[Problem], most: int, path: Path, quiet: bool = False
) -> dict[str, list[Performance]]:
    """People's solutions that pass here, as measured here: at most `most` of each problem, by the problem's key.

    Raises ValueError when the sandbox failed.
    """
    lines = pt.Lines(path)
    known = {line["problem"]: [Performance(True, *one) for one in line["passed"]] for line in lines.found}
    with pt.progress_bar("people's solutions", len(found), quiet) as done:
        for one in found:
            if one.key not in known:
                trials = [(one, each.code) for each in one.solutions[:most] if each.passed]
                known[one.key] = passed = []
                for performance in bench(trials):
                    if isinstance(performance, pt.Invalid):
                        raise ValueError(f"{one.place}: {performance.reason}; continue with `resume=True`")
                    if performance.passed:
                        passed.append(performance)
                lines.add({"problem": one.key, "passed": [(each.seconds, each.kib) for each in passed]})
            done()
    return known


def play_episodes(
    policy: pt.TextPolicy,
    player: pt.Sampler,
    tasks: Sequence[pt.Task[Rewrite]],
    env: pt.Env,
    bench: Bench,
    directory: pt.Directory,
    together: int,
    output: pt.Output,
) -> list[pt.Rollout]:
    """The episode of each task, `together` of them at a time; those already written are read, without their turns.

    Raises ValueError when none of those played together succeeded.
    """
    out: list[pt.Rollout] = []
    with pt.progress_bar("episodes", len(tasks), output.quiet) as done:
        for step, start in enumerate(range(0, len(tasks), together)):
            some = tasks[start : start + together]
            facts = pt.ranks.run_on_primary(partial(written_facts, directory, step), "for the episodes so far")
            if not facts:
                places = range(start, start + len(some))
                players, seed = {"policy": player}, output.seed
                found, _ = pt.play_and_grade(some, env, final_pass(bench), players, 1, seed, places)
                played = [ScoredRollout(one.group[0], one.scores[0], None) for one in found]
                facts = [one.rollout.facts for one in played]
                if all(isinstance(one, pt.Failure) for one in facts):
                    raise ValueError(f"not one of {len(some)} episodes could be played: {facts[0].reason}")
                if pt.ranks.is_primary():
                    write_rollouts(directory.rollouts, step, policy, played)
            out += [pt.Rollout(task, [], one) for task, one in zip(some, facts, strict=True)]
            done(len(some))
    return out


def written_facts(directory: pt.Directory, step: int) -> list[Any]:
    facts = [record["facts"] for record in pt.read_rollouts(directory.path, step)]
    return [pt.Failure(**one) if isinstance(one, Mapping) else one for one in facts]


def final_pass(bench: Bench) -> pt.Reward:
    """1 for an episode whose best code passes."""

    def reward(group: pt.Group) -> list[pt.Score | pt.Invalid]:
        return [score(one) for one in group]

    def score(one: pt.Rollout) -> pt.Score | pt.Invalid:
        try:
            return pt.Score(float(course(bench, one.task.truth, one.facts)[-1].performance.passed))
        except pt.EpisodeFailed as error:
            return pt.Invalid(str(error))

    return reward


def curves(
    bench: Bench,
    played: Sequence[pt.Rollout],
    people: Callable[[Any], Sequence[Performance]],
    count: int,
    path: Path,
    quiet: bool = False,
) -> list[list[dict[str, float]]]:
    """The curves of `count` measurements of the replies; `left out` is how many episodes have no course in them."""
    lines = pt.Lines(path)
    tables = [
        [{name: math.nan if value is None else value for name, value in row.items()} for row in line["rows"]]
        for line in lines.found
    ]
    with pt.progress_bar("measurements", count, quiet) as done:
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


def write_table(rows: Sequence[Row], out: Path) -> str:
    """Write OUT/iterations.json; returns the table as Markdown."""
    out.mkdir(parents=True, exist_ok=True)
    pt.write_json(out / ITERATIONS, [{"iteration": i, **without_nan(row)} for i, row in enumerate(rows)])
    names = list(rows[0])
    lines = ["| iteration | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    lines += [f"| {i} | " + " | ".join(cell(row[name]) for name in names) + " |" for i, row in enumerate(rows)]
    return "\n".join(lines)


def without_nan(row: Row) -> dict[str, Any]:
    """The row for JSON, which has no NaN."""
    return {name: None if is_nan(value) else value for name, value in row.items()}


def is_nan(value: float | tuple[float, float, float]) -> bool:
    return math.isnan(value[0] if isinstance(value, tuple) else value)


def cell(value: float | tuple[float, float, float]) -> str:
    if is_nan(value):
        return "-"
    return f"{value[0]:.3f} [{value[1]:.3f}, {value[2]:.3f}]" if isinstance(value, tuple) else f"{value:.3f}"
