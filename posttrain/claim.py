"""A paper's claim as an experiment: named arms, seeds, one metric, a verdict that may go against the paper."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from posttrain.measure import interval

Verdict = Literal["holds", "not separated", "reversed"]


@dataclass(frozen=True, slots=True)
class Claim:
    """`better` beats `baseline` in `metric`, says the paper.

    arms     by name, functions of a seed that run the arm and return its metric; every arm sees the same seeds
    larger   a larger metric is better
    """

    name: str
    says: str  # the paper's sentence, with its place
    metric: str
    better: str
    baseline: str
    arms: Mapping[str, Callable[[int], float]]
    larger: bool = True

    def __post_init__(self):
        for arm in (self.better, self.baseline):
            if arm not in self.arms:
                raise ValueError(f"claim {self.name!r} compares the arm {arm!r}, but its arms are {sorted(self.arms)}")


@dataclass(slots=True)
class Finding:
    """What came out, as it is written to JSON."""

    name: str
    says: str
    metric: str
    better: str
    baseline: str
    larger: bool
    seeds: list[int]
    values: dict[str, list[float]]  # by arm, one per seed
    cpu_s: dict[str, list[float]] = field(default_factory=dict)

    def difference(self) -> tuple[float, float, float]:
        """Mean paired difference in favour of `better`, with its 95 % interval."""
        sign = 1.0 if self.larger else -1.0
        pairs = zip(self.values[self.better], self.values[self.baseline], strict=True)
        paired = [sign * (a - b) for a, b in pairs]
        return statistics.fmean(paired), *paired_interval(paired)

    @property
    def verdict(self) -> Verdict:
        """`holds` when the interval of the paired difference lies above zero, `reversed` when below."""
        _, low, high = self.difference()
        if low > 0:
            return "holds"
        return "reversed" if high < 0 else "not separated"


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


def run_claim(
    claim: Claim,
    seeds: Sequence[int],
    out: Path | None = None,
    watch: Callable[[str, int], None] = lambda arm, seed: None,
) -> Finding:
    """Run every arm on every seed. With `out`, each value is written as it comes and none is computed twice."""
    finding = Finding(
        claim.name, claim.says, claim.metric, claim.better, claim.baseline, claim.larger, list(seeds), {}, {}
    )
    done: dict[str, dict[str, list[float]]] = json.loads(out.read_text()) if out and out.is_file() else {}
    for arm, run in claim.arms.items():
        known = done.setdefault(arm, {})
        for seed in seeds:
            if str(seed) not in known:
                watch(arm, seed)
                clock = time.process_time()
                known[str(seed)] = [run(seed), time.process_time() - clock]
                if out:
                    out.parent.mkdir(parents=True, exist_ok=True)
                    out.write_text(json.dumps(done, indent=1))
        finding.values[arm] = [known[str(seed)][0] for seed in seeds]
        finding.cpu_s[arm] = [known[str(seed)][1] for seed in seeds]
    return finding


def as_json(findings: Sequence[Finding]) -> str:
    rows = []
    for finding in findings:
        mean, low, high = finding.difference()
        shown = {"difference": mean, "low": low, "high": high, "verdict": finding.verdict}
        rows.append(
            asdict(finding) | {key: None if value in (-math.inf, math.inf) else value for key, value in shown.items()}
        )
    return json.dumps(rows, indent=2)


def as_table(findings: Sequence[Finding]) -> str:
    """A Markdown table: every arm's mean with its 95 % interval, the paired difference, the verdict."""
    lines = ["| claim | metric | arms | difference | verdict | CPU min |", "|---|---|---|---|---|---|"]
    for finding in findings:
        arms = "; ".join(
            f"{arm} {statistics.fmean(values):.3f}{spread(interval(values))}" for arm, values in finding.values.items()
        )
        mean, low, high = finding.difference()
        cost = sum(sum(seconds) for seconds in finding.cpu_s.values()) / 60
        lines.append(
            f"| {finding.name} | {finding.metric}, {len(finding.seeds)} seeds | {arms} | "
            f"{mean:+.3f}{spread((low, high))} | **{finding.verdict}** | {cost:.1f} |"
        )
    return "\n".join(lines)


def spread(bounds: tuple[float, float]) -> str:
    return f" [{bounds[0]:.3f}, {bounds[1]:.3f}]" if all(map(math.isfinite, bounds)) else ""
