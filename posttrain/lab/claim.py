"""A paper's claim as an experiment: named arms, seeds, one measure, a verdict that may go against the paper.

A system's module holds `ARMS`, functions of a seed that return measures, and `CLAIMS`, which compare them. Arms are
run by `posttrain claims`, each in a process of its own, and kept on disk: none is run twice.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from posttrain.measure import interval

Verdict = Literal["holds", "not separated", "reversed"]
Arm: TypeAlias = Callable[[int, bool], Mapping[str, float]]  # (seed, quick) -> measures; quick: a smoke test
Values: TypeAlias = Mapping[str, Mapping[int, Mapping[str, Any]]]  # arm, seed: {"measures", "cpu_s"}


@dataclass(frozen=True, slots=True)
class Claim:
    """`better` beats `baseline` in `measure`, says the paper.

    better     an arm
    baseline   another arm, or a number
    against    the baseline's measure, if it is another one
    larger     a larger value is better
    margin     by how much it may fall short and still hold, for "no worse than"; negative: by how much it must lead
    control    the claim is ours and not the paper's: a control that says what the paper's claim is worth
    """

    name: str
    says: str  # the paper's sentence, with its place; for a control, what it is for
    measure: str
    better: str
    baseline: str | float
    against: str | None = None
    larger: bool = True
    margin: float = 0.0
    control: bool = False

    @property
    def arms(self) -> list[str]:
        return [arm for arm in (self.better, self.baseline) if isinstance(arm, str)]

    def judged(self, values: Values, seeds: Sequence[int]) -> Finding:
        """Raises KeyError when a value is missing."""
        ours = [values[self.better][seed]["measures"][self.measure] for seed in seeds]
        if isinstance(self.baseline, str):
            measure = self.against or self.measure
            theirs = [values[self.baseline][seed]["measures"][measure] for seed in seeds]
        else:
            theirs = [float(self.baseline)] * len(seeds)
        cost = sum(values[arm][seed]["cpu_s"] for arm in set(self.arms) for seed in seeds)
        return Finding(self, list(seeds), ours, theirs, cost)


@dataclass(frozen=True, slots=True)
class Finding:
    """What came out of a claim; `ours` and `theirs` one per seed."""

    claim: Claim
    seeds: list[int]
    ours: list[float]
    theirs: list[float]
    cpu_s: float

    def difference(self) -> tuple[float, float, float]:
        """Mean paired difference in favour of `better`, with its 95 % interval."""
        sign = 1.0 if self.claim.larger else -1.0
        paired = [sign * (a - b) for a, b in zip(self.ours, self.theirs, strict=True)]
        return statistics.fmean(paired), *paired_interval(paired)

    @property
    def verdict(self) -> Verdict:
        """`holds` when the interval of the paired difference lies above minus the margin, `reversed` when below.

        A lead that is there and smaller than the one asked for is not reversed but not separated.
        """
        _, low, high = self.difference()
        if low > -self.claim.margin:
            return "holds"
        return "reversed" if high < min(-self.claim.margin, 0.0) else "not separated"


def paired_interval(values: Sequence[float]) -> tuple[float, float]:
    """Student's 95 % interval of a mean: a bootstrap of a handful of seeds would be too narrow. Infinite for one."""
    if len(values) < 2:
        return -math.inf, math.inf
    half = student(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    mean = statistics.fmean(values)
    return mean - half, mean + half


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t."""
    table = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
    return table[freedom - 1] if freedom <= len(table) else 1.96 + 2.4 / freedom


def as_json(findings: Mapping[str, Sequence[Finding]], before: Sequence[Mapping[str, Any]] = ()) -> str:
    """Every system's findings, with the values of each seed; `before`: rows of which those of other systems stay."""
    rows = [row for row in before if row["system"] not in findings]
    for system, found in findings.items():
        for one in found:
            mean, low, high = one.difference()
            shown: dict[str, Any] = {"system": system, "claim": one.claim.name, "says": one.claim.says}
            shown |= {"measure": one.claim.measure, "better": one.claim.better, "baseline": one.claim.baseline}
            shown |= {
                "against": one.claim.against,
                "larger": one.claim.larger,
                "margin": one.claim.margin,
                "control": one.claim.control,
                "seeds": one.seeds,
            }
            shown |= {"ours": one.ours, "theirs": one.theirs, "cpu_s": one.cpu_s}
            shown |= {"difference": mean, "low": finite(low), "high": finite(high), "verdict": one.verdict}
            rows.append(shown)
    return json.dumps(sorted(rows, key=lambda row: row["system"]), indent=1)


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def as_table(findings: Sequence[Finding]) -> str:
    """A Markdown table: both sides with their 95 % intervals over seeds, the paired difference, the verdict."""
    lines = ["| claim | measure | ours | against | difference | verdict | CPU min |", "|---|---|---|---|---|---|---|"]
    for found in findings:
        claim = found.claim
        mean, low, high = found.difference()
        baseline = (
            f"{claim.baseline} {shown(found.theirs)}" if isinstance(claim.baseline, str) else f"{claim.baseline:g}"
        )
        measure = f"{claim.measure} (less is better)" if not claim.larger else claim.measure
        if isinstance(claim.baseline, str) and claim.against:
            measure = f"{claim.measure} against {claim.against}"
        if claim.margin:
            measure += f", {'within' if claim.margin > 0 else 'by more than'} {abs(claim.margin):g}"
        name = f"*control:* {claim.name}" if claim.control else claim.name
        lines.append(
            f"| {name} | {measure} | {claim.better} {shown(found.ours)} | {baseline} | "
            f"{mean:+.3f}{spread((low, high))} | **{found.verdict}** | {found.cpu_s / 60:.1f} |"
        )
    return "\n".join(lines)


def shown(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.3f}{spread(interval(values))}"


def spread(bounds: tuple[float, float]) -> str:
    return f" [{bounds[0]:.3f}, {bounds[1]:.3f}]" if all(map(math.isfinite, bounds)) else ""
