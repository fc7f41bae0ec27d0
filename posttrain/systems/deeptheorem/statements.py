"""Statements from files, by theorem: read, split, made into demonstrations; and how well theorems are decided.

A theorem is decided when all of its statements get the right verdict, so that a constant answer earns little: the
score is the mean over theorems of the product over their statements.
"""

from __future__ import annotations

import random
import re
import statistics
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import posttrain as pt
from posttrain.records import Place, Record, column, records
from posttrain.systems.deeptheorem.verdict import Statement, lenient_verdict, verdict, verdict_word

TRUTHS = {"true": True, "false": False, "proved": True, "disproved": False}
SIDES = ("pos", "neg")
TRAINING = ("id", *(f"{side}_{part}" for side in SIDES for part in ("question", "truth_value")))  # columns
SAID = re.compile(r"\\boxed\{\s*(\\text\{)?\s*(dis)?proved\s*\}?\s*\}", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Stated:
    """The truth of a statement from a file."""

    theorem: str
    holds: bool


# ---- files


def statements(data: str, limit: int | None = None, split: str = "train") -> list[pt.Task]:
    """Tasks whose truth is `Stated`, of training rows or of a test file; `limit` counts theorems, never cut apart.

    training   id, pos_question, pos_truth_value, neg_question, neg_truth_value: two tasks of each row
    test       problem_name, prompt, answer (true or false): one task of each row

    Raises ValueError naming file, line and column.
    """
    kept: dict[str, int] = {}
    tasks: list[pt.Task] = []
    for place, record in records(data, None, split):
        test = "problem_name" in record
        theorem = str(column(record, "problem_name" if test else "id", place, "data"))
        if not test and theorem in kept:
            raise ValueError(f"{place}: the id {theorem!r} has been used before; ids must be unique")
        if theorem not in kept and limit is not None and len(kept) >= limit:
            continue
        kept[theorem] = kept.get(theorem, 0) + 1
        if test:
            tasks.append(task_of(record, "prompt", "answer", theorem, str(kept[theorem]), place))
        else:
            tasks += [task_of(record, f"{s}_question", f"{s}_truth_value", theorem, s, place) for s in SIDES]
    return tasks


def task_of(record: Record, asked: str, truth: str, theorem: str, name: str, place: Place) -> pt.Task:
    question = str(column(record, asked, place, "data"))
    holds = is_true(column(record, truth, place, "data"), truth, place)
    return pt.Task(f"{theorem}:{name}", (pt.user(question),), Stated(theorem, holds))


def is_true(value: Any, name: str, place: Place) -> bool:
    found = value if isinstance(value, bool) else TRUTHS.get(str(value).strip().lower())
    if found is None:
        raise ValueError(f"{place}: the column {name!r} is {value!r}, neither true nor false")
    return found


def split_by_theorem(tasks: Sequence[pt.Task], theorems: int, seed: int = 0) -> tuple[list[pt.Task], list[pt.Task]]:
    """Tasks to train on, and those of `theorems` theorems that are held out with all their statements.

    Raises ValueError for fewer than none, and when nothing would be left to train on.
    """
    names = sorted({task.truth.theorem for task in tasks})
    if theorems < 0:
        raise ValueError(f"`keep_out={theorems}`: it must be at least 0")
    if theorems >= len(names):
        raise ValueError(f"`keep_out={theorems}`: of {len(names)} theorems none would be left to train on")
    kept = set(random.Random(pt.mix(seed, "held out")).sample(names, theorems))
    return (
        [task for task in tasks if task.truth.theorem not in kept],
        [task for task in tasks if task.truth.theorem in kept],
    )


def evaluation_sets(kept: Sequence[pt.Task], held_out: Iterable[str]) -> dict[str, list[pt.Task]]:
    """The tasks of held-out files by name, and those that were kept out of training: with one file, or none, together.

    Raises ValueError for a theorem of two sets, whose statements could not be told apart.
    """
    found = {name: statements(file, None, "test") for name, file in pt.named_files(held_out).items()}
    sets = {"": [*kept, *found.get("", [])]} if len(found) < 2 else {**({"kept out": [*kept]} if kept else {}), **found}
    seen = {task.truth.theorem: "`keep_out`" for task in kept}
    for name, tasks in found.items():
        theorems = {task.truth.theorem for task in tasks}
        if both := theorems & set(seen):
            one = min(both)
            raise ValueError(f"`held_out`: the theorem {one!r} is also one of {seen[one]}; give it another name")
        seen |= dict.fromkeys(theorems, name)
    return {name: tasks for name, tasks in sets.items() if tasks}


def proofs(data: str, proof: str, theorems: Collection[str], split: str = "train") -> list[pt.Demonstration]:
    """Demonstrations of both statements of these theorems: their one proof, and the verdict on the statement.

    Raises ValueError naming file, line and column.
    """
    out = []
    for place, record in records(data, None, split):
        if missing := [name for name in TRAINING if name not in record]:
            raise ValueError(
                f"{place}: stage sft takes training rows, and the columns {', '.join(map(repr, missing))} are not "
                f"among {', '.join(map(repr, record))}"
            )
        if str(record["id"]) not in theorems:
            continue
        text = SAID.sub("", str(column(record, proof, place, "proof"))).strip()
        for side in SIDES:
            question = str(column(record, f"{side}_question", place, "data"))
            holds = is_true(column(record, f"{side}_truth_value", place, "data"), f"{side}_truth_value", place)
            said = f"\n{text}\n</think>\n\n<answer> \\boxed{{{verdict_word(holds)}}} </answer>"
            out.append(pt.Demonstration((pt.user(question), pt.assistant(said))))
    return out


# ---- measures


def share_decided(truths: Sequence[Statement], right: Sequence[bool]) -> float:
    """The share of theorems of which every statement is right."""
    return statistics.fmean(all(found) for found in by_theorem(truths, right).values())


def by_theorem(truths: Sequence[Statement], values: Sequence[bool]) -> dict[str, list[bool]]:
    found: dict[str, list[bool]] = defaultdict(list)
    for truth, value in zip(truths, values, strict=True):
        found[truth.theorem].append(value)
    return found


def floors(truths: Sequence[Statement]) -> dict[str, float]:
    """What three policies that read nothing would decide, computed from the statements alone."""
    holding = [truth.holds for truth in truths]
    return {
        "always proved": share_decided(truths, holding),
        "always disproved": share_decided(truths, [not holds for holds in holding]),
        "random": statistics.fmean(0.5 ** len(found) for found in by_theorem(truths, holding).values()),
    }


def measures_of(rollouts: Sequence[pt.Rollout]) -> dict[str, float]:
    """Measures of one reply to each statement, by the training parser and the released evaluation's, with the floors.

    A theorem with a statement that could not be played is left out, and counted. Raises ValueError when none is left.
    """
    lost = {one.task.truth.theorem for one in rollouts if not one.turns}
    played = [one for one in rollouts if one.task.truth.theorem not in lost]
    if not played:
        raise ValueError("not one theorem was played with all of its statements")
    truths: list[Statement] = [one.task.truth for one in played]
    strict = [verdict(one.text) for one in played]
    right = [found.said == verdict_word(truth.holds) for found, truth in zip(strict, truths, strict=True)]
    loosely = [
        lenient_verdict(one.text) == verdict_word(truth.holds) for one, truth in zip(played, truths, strict=True)
    ]
    return {
        "statements": float(len(truths)),
        "theorems": float(len(by_theorem(truths, right))),
        "theorems lost": float(len(lost)),
        "single": statistics.fmean(right),
        "joint": share_decided(truths, right),
        "joint, lenient parser": share_decided(truths, loosely),
        "proved": statistics.fmean(found.said == "proved" for found in strict),
        "no verdict": statistics.fmean(found.said not in ("proved", "disproved") for found in strict),
        **floors(truths),
        "length": statistics.fmean(one.decisions for one in played),
    }


def as_table(columns: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """Lines of measures, one column for each of several evaluations."""
    names = list(dict.fromkeys(name for found in columns.values() for name in found))
    yield f"{'':24}" + "".join(f"{title:>10}" for title in columns)
    for name in names:
        yield f"{name:24}" + "".join(
            f"{found[name]:10.3f}" if name in found else " " * 10 for found in columns.values()
        )
