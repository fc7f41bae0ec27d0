"""A paper's claim as an experiment: named arms, seeds, one measure, a verdict that may go against the paper.

A system's module holds `ARMS`, functions of a seed that return measures, and `CLAIMS`, which compare them. Arms are
run by `posttrain claims`, each in a process of its own, and kept on disk: none is run twice.

`claims` reads them as they are written for people:

    KL-Cov beats GRPO
        paper: 7B average 40.6 against 38.6
        accuracy: kl_cov > grpo
    KL-Cov costs no diversity
        ours: it was not measured; here within 0.05
        pass@16 in [0, 1]: kl_cov > grpo - 0.05
"""

from __future__ import annotations

import json
import math
import re
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from posttrain.measure import interval

POWER, NEAR = 0.8, 0.02  # of the detectable difference; the part of a measure's range that counts as its bound
Verdict = Literal["holds", "not separated", "reversed", "not testable here"]
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
    bounds     the least and the greatest value that the measure can take; declare it where arms may come near one
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
    bounds: tuple[float, float] | None = None

    @property
    def arms(self) -> list[str]:
        return [arm for arm in (self.better, self.baseline) if isinstance(arm, str)]

    def finding(self, values: Values, seeds: Sequence[int]) -> Finding:
        """Raises KeyError when a value is missing."""
        ours = [values[self.better][seed]["measures"][self.measure] for seed in seeds]
        if isinstance(self.baseline, str):
            measure = self.against or self.measure
            theirs = [values[self.baseline][seed]["measures"][measure] for seed in seeds]
        else:
            theirs = [float(self.baseline)] * len(seeds)
        cost = sum(values[arm][seed]["cpu_s"] for arm in set(self.arms) for seed in seeds)
        return Finding(self, list(seeds), ours, theirs, cost)


COMPARISON = re.compile(
    r"(?P<measure>.+?)(?: in \[(?P<least>\S+), (?P<greatest>\S+)\])?: (?P<better>.+?) (?P<sign>[<>]) "
    r"(?:(?P<against>.+): )?(?P<baseline>.+?)(?: (?P<way>[+-]) (?P<margin>[\d.]\S*))?"
)


def claims(text: str) -> tuple[Claim, ...]:
    """Claims as they are written for readers: a sentence, and indented below it where it is from and what is compared.

    Where it is from begins with `paper:`, or with `ours:` for a control. The comparison is `MEASURE: ARM > ARM`, with
    `<` where less is better. The second arm may be a number, and may have a measure of its own (`> MEASURE: ARM`).
    ` - 0.05` after it (`+ 0.05` behind `<`) allows for as much; the other sign demands as much of a lead. The measure's
    bounds follow its name: `MEASURE in [0, 1]: ...`. Raises ValueError that quotes the claim.
    """
    blocks = re.split(r"\n(?=\S)", textwrap.dedent(text).strip())
    return tuple(claim_of([line.strip() for line in block.splitlines()]) for block in blocks)


def claim_of(lines: Sequence[str]) -> Claim:
    name, *middle, comparison = lines
    source, _, says = " ".join(middle).partition(": ")
    found = COMPARISON.fullmatch(comparison)
    if source not in ("paper", "ours") or not says or found is None:
        raise ValueError(
            f"the claim {name!r}: below it stand `paper: WHAT IT SAYS` or `ours: WHAT FOR`, then MEASURE: ARM > ARM"
        )
    larger = found["sign"] == ">"
    allowed = (found["way"] or "-") == ("-" if larger else "+")
    margin = float(found["margin"] or 0)
    return Claim(
        name,
        says,
        found["measure"],
        found["better"],
        number_or_name(found["baseline"]),
        against=found["against"],
        larger=larger,
        margin=margin if allowed or not margin else -margin,
        control=source == "ours",
        bounds=(float(found["least"]), float(found["greatest"])) if found["least"] else None,
    )


def number_or_name(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


@dataclass(frozen=True, slots=True)
class Finding:
    """What came out of a claim; `ours` and `theirs` one per seed."""

    claim: Claim
    seeds: list[int]
    ours: list[float]
    theirs: list[float]
    cpu_s: float

    def paired(self) -> list[float]:
        """Each seed's difference in favour of `better`."""
        sign = 1.0 if self.claim.larger else -1.0
        return [sign * (a - b) for a, b in zip(self.ours, self.theirs, strict=True)]

    def difference(self) -> tuple[float, float, float]:
        """Mean paired difference in favour of `better`, with its 95 % interval."""
        return statistics.fmean(self.paired()), *paired_interval(self.paired())

    @property
    def detectable(self) -> float:
        """The difference that these seeds detect with 80 % power at the two-sided 5 % level.

        A margin moves the point from which it counts: a claim whose true difference is `detectable - margin` reads
        `holds` in four repetitions out of five. Infinite for one seed and for saturated arms.
        """
        return math.inf if self.saturated else detectable_difference(self.paired())

    @property
    def saturated(self) -> bool:
        """Whether the measure is at its ceiling or its floor for both arms, so that they cannot differ.

        Without `bounds`: every value of both arms, in every seed, is the same number. With `bounds`: both means lie
        within 2 % of the range of the same bound, and the interval of the paired difference contains zero (arms that
        differ measurably can differ). False against a number: an exact identity keeps its verdict.
        """
        if not isinstance(self.claim.baseline, str):
            return False
        if self.claim.bounds is None:
            return len({*self.ours, *self.theirs}) == 1
        _, low, high = self.difference()
        least, greatest = self.claim.bounds
        means = statistics.fmean(self.ours), statistics.fmean(self.theirs)
        near = NEAR * (greatest - least)
        return low <= 0 <= high and (min(means) >= greatest - near or max(means) <= least + near)

    @property
    def verdict(self) -> Verdict:
        """`holds` when the interval of the paired difference lies above minus the margin, `reversed` when below.

        A lead that is smaller than the one asked for is not reversed but not separated. Saturated arms are `not
        testable here`, whatever the margin: "no worse than" says nothing where arms cannot differ.
        """
        if self.saturated:
            return "not testable here"
        _, low, high = self.difference()
        if low > -self.claim.margin:
            return "holds"
        return "reversed" if high < min(-self.claim.margin, 0.0) else "not separated"


def paired_interval(values: Sequence[float]) -> tuple[float, float]:
    """Student's 95 % interval of a mean: a bootstrap of a handful of seeds would be too narrow. Infinite for one."""
    if len(values) < 2:
        return -math.inf, math.inf
    half = student_quantile(0.975, len(values) - 1) * standard_error(values)
    mean = statistics.fmean(values)
    return mean - half, mean + half


def detectable_difference(values: Sequence[float]) -> float:
    """The mean that a two-sided test at 5 % tells from zero with 80 % power, at the spread of `values`.

    (t(0.975) + t(0.8)) standard errors, Student's t with n - 1 degrees of freedom. Infinite for one value.
    """
    if len(values) < 2:
        return math.inf
    freedom = len(values) - 1
    return (student_quantile(0.975, freedom) + student_quantile(POWER, freedom)) * standard_error(values)


def standard_error(values: Sequence[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values))


def student_quantile(level: float, freedom: int) -> float:
    """The value below which Student's t lies with probability `level`, which is at least a half."""
    low, high = 0.0, 1.0
    while student_probability(high, freedom) < level:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if student_probability(middle, freedom) < level else (low, middle)
    return high


def student_probability(value: float, freedom: int) -> float:
    """P(t < value) for a whole number of degrees of freedom, by the finite sums of Abramowitz and Stegun 26.7.3-4."""
    angle, odd = math.atan(value / math.sqrt(freedom)), freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(1 + odd, freedom - 2 + odd, 2):
        term *= k / (k + 1) * math.cos(angle) ** 2
        total += term
    inside = math.sin(angle) * total
    return 0.5 + (angle + inside) / math.pi if odd else 0.5 + inside / 2


def stored_finding(claim: Claim, system: str, rows: Sequence[Mapping[str, Any]]) -> Finding:
    """The finding of `claim` from rows of `as_json`, matched by what is compared and not by its words or margin.

    Raises ValueError when no row makes the comparison.
    """
    for row in rows:
        compared = (row["measure"], row["better"], row["baseline"], row["against"], row["larger"])
        wanted = (claim.measure, claim.better, claim.baseline, claim.against, claim.larger)
        if row["system"] == system and compared == wanted:
            return Finding(claim, row["seeds"], row["ours"], row["theirs"], row["cpu_s"])
    raise ValueError(f"{system}: no values are kept for the claim {claim.name!r}; run its arms")


def as_json(findings: Mapping[str, Sequence[Finding]], before: Sequence[Mapping[str, Any]] = ()) -> str:
    """Every system's findings, with the values of each seed; `before`: rows of which those of other systems stay."""
    rows = [row for row in before if row["system"] not in findings]
    for system, found in findings.items():
        for one in found:
            mean, low, high = one.difference()
            shown: dict[str, Any] = {"system": system, "claim": one.claim.name, "says": one.claim.says}
            shown |= {"measure": one.claim.measure, "better": one.claim.better, "baseline": one.claim.baseline}
            shown |= {"against": one.claim.against, "larger": one.claim.larger, "margin": one.claim.margin}
            shown |= {"bounds": one.claim.bounds, "control": one.claim.control, "seeds": one.seeds}
            shown |= {"ours": one.ours, "theirs": one.theirs, "cpu_s": one.cpu_s}
            shown |= {"difference": mean, "low": finite_or_none(low), "high": finite_or_none(high)}
            shown |= {"detectable": finite_or_none(one.detectable), "verdict": one.verdict}
            rows.append(shown)
    return json.dumps(sorted(rows, key=lambda row: row["system"]), indent=1)


def finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def as_table(findings: Sequence[Finding]) -> str:
    """A Markdown table: both sides with their 95 % intervals over seeds, the paired difference, the verdict.

    Beside the difference stands the one that the seeds could have detected; a dash where there is none.
    """
    columns = ("claim", "measure", "ours", "against", "difference", "detectable", "verdict", "CPU min")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for found in findings:
        claim = found.claim
        mean, low, high = found.difference()
        baseline = (
            f"{claim.baseline} {mean_with_interval(found.theirs)}"
            if isinstance(claim.baseline, str)
            else f"{claim.baseline:g}"
        )
        measure = f"{claim.measure} (less is better)" if not claim.larger else claim.measure
        if isinstance(claim.baseline, str) and claim.against:
            measure = f"{claim.measure} against {claim.against}"
        if claim.margin:
            measure += f", {'within' if claim.margin > 0 else 'by more than'} {abs(claim.margin):g}"
        detectable = f"{found.detectable:.3f}" if math.isfinite(found.detectable) else "–"
        name = f"*control:* {claim.name}" if claim.control else claim.name
        lines.append(
            f"| {name} | {measure} | {claim.better} {mean_with_interval(found.ours)} | {baseline} | "
            f"{mean:+.3f}{interval_text((low, high))} | {detectable} | **{found.verdict}** | {found.cpu_s / 60:.1f} |"
        )
    return "\n".join(lines)


def mean_with_interval(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.3f}{interval_text(interval(values))}"


def interval_text(bounds: tuple[float, float]) -> str:
    return f" [{bounds[0]:.3f}, {bounds[1]:.3f}]" if all(map(math.isfinite, bounds)) else ""
