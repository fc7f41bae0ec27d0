"""Function, Quality and both, by kind of problem and by detector: those that were trained on, and those held out.

Function   all test cases pass (of SecCodePLT those of capability; `safety` are its others)
Quality    the detector finds nothing; of a reply without code, or with what is no Python, neither is true
Func-Qual  both, in the same reply
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import posttrain as pt
from posttrain.sandbox import Memo, Sandbox
from posttrain.systems.real.attack import attack
from posttrain.systems.real.detectors import Detector, is_python
from posttrain.systems.real.problems import Problem
from posttrain.systems.real.reward import Hybrid, all_passed, case_scores
from posttrain.systems.real.unit_tests import StdinTests

ATTACK = "attack"


def verdicts(
    box: Sandbox | Memo,
    hybrid: Hybrid,
    found: Sequence[tuple[Problem, str]],
    detectors: Mapping[str, Detector],
) -> list[dict[str, Any]]:
    """For each reply: whether all tests pass, and whether each detector finds nothing; None where it could not say."""
    codes = [hybrid.code(problem, text) for problem, text in found]
    rows = [
        {"id": problem.key, "kind": problem.kind, "function": None if code else False, "quality": {}}
        for (problem, _), code in zip(found, codes, strict=True)
    ]
    kept = [(row, problem, code) for row, (problem, _), code in zip(rows, found, codes, strict=True) if code]
    for name in ("function", "safety"):
        some = [
            (row, tests, code)
            for row, problem, code in kept
            if (tests := problem.tests if name == "function" else problem.safety) is not None
        ]
        scores = case_scores(box, [(tests, code) for _, tests, code in some])
        for (row, _, _), one in zip(some, scores, strict=True):
            row[name] = None if isinstance(one, pt.Invalid) else all_passed(one)
    for name, detector in detectors.items():
        for row in rows:
            row["quality"][name] = False
        for (row, _, _), score in zip(kept, detector.scores([code for _, _, code in kept]), strict=True):
            row["quality"][name] = None if isinstance(score, pt.Invalid) else score == 1.0
    injected = [one for one in kept if isinstance(one[1].tests, StdinTests)]
    for row in rows:
        if row["kind"] == "safesql":
            row["quality"][ATTACK] = False
    trials = [(problem.tests, code) for _, problem, code in injected if isinstance(problem.tests, StdinTests)]
    for (row, _, code), one in zip(
        injected, attack(box, trials, [problem.attacks for _, problem, _ in injected]), strict=True
    ):
        row["quality"][ATTACK] = None if isinstance(one, pt.Invalid) else is_python(code) and not one
    return rows


def measures_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """By kind of problem; what could not be said is left out of its own share."""
    by_kind: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_kind.setdefault(row["kind"], []).append(row)
    return {kind: measures_of_kind(some) for kind, some in by_kind.items()}


def measures_of_kind(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    out = {"replies": float(len(rows)), "Function": share([one["function"] for one in rows])}
    if any("safety" in one for one in rows):
        out["Safety tests"] = share([one.get("safety", False) for one in rows])
    for name in rows[0]["quality"]:
        clean = [one["quality"][name] for one in rows]
        both = [
            None if None in (good, one["function"]) else good and one["function"]
            for good, one in zip(clean, rows, strict=True)
        ]
        out[f"Quality ({name})"], out[f"Func-Qual ({name})"] = share(clean), share(both)
    return out


def share(values: Sequence[bool | None]) -> float:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else 0.0


def as_table(measures: Mapping[str, Mapping[str, float]]) -> list[str]:
    """A line for each kind of problem and measure."""
    return [
        f"{kind:8} {name:28} {value:.0f}" if name == "replies" else f"{kind:8} {name:28} {value:.3f}"
        for kind, row in measures.items()
        for name, value in row.items()
    ]
