"""What follows from the numbers: a risk ratio or a mean difference, its 95 % interval, and the conclusion. No learning.

RR = (a / n1) / (c / n2),       exp(ln RR +- 1.96 sqrt(1/a - 1/n1 + 1/c - 1/n2))
MD = mean1 - mean2,             MD +- 1.96 sqrt(s1^2 / n1 + s2^2 / n2)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from posttrain.systems.numeric_evidence.record import ARMS, Kind, Record, is_whole, names

Conclusion = Literal["intervention", "comparator", "inconclusive"]
CONCLUSIONS: tuple[Conclusion, ...] = ("intervention", "comparator", "inconclusive")
NONE = "none"  # stands for a conclusion where there is none
Z = 1.96  # of a 95 % interval


@dataclass(frozen=True)
class Effect:
    """`point`, `low` and `high` are None where the numbers allow no estimate: events in nobody, or in everybody."""

    kind: Kind
    point: float | None  # risk ratio, or mean difference in the outcome's unit
    low: float | None
    high: float | None
    conclusion: Conclusion

    @property
    def comparable(self) -> float | None:
        """What errors are measured in: the logarithm of a risk ratio, or the mean difference."""
        return self.point if self.point is None or self.kind == "continuous" else math.log(self.point)


def effect(record: Record, kind: Kind, event_is_good: bool = True) -> Effect | None:
    """The effect of the intervention; None for a record that allows none, which counts as an error.

    That is one with a field missing, unknown or unreadable, with more events than people, with a group of one or none,
    or without a spread. Where a cell is zero, 0.5 is added to all four (and 1 to each group), as Cochrane does.

    event_is_good  an interval above the null speaks for the intervention, by the letter of the paper; give False where
                   the event is a death, or more of the outcome is worse: then it speaks for the comparator
    """
    values = [record.get(name) for name in names(kind)]
    given = [value for value in values if value is not None]
    if not is_whole(record, kind) or len(given) < len(values):
        return None
    if kind == "continuous":
        return mean_difference(given, event_is_good)
    return risk_ratio(given, event_is_good)


def risk_ratio(values: list[float], event_is_good: bool) -> Effect | None:
    """Of events and group sizes, `a, n1, c, n2`."""
    a, n1, c, n2 = values
    if min(n1, n2) <= 1 or not (0 <= a <= n1 and 0 <= c <= n2):
        return None
    if a + c == 0 or (a == n1 and c == n2):
        return Effect("dichotomous", None, None, None, "inconclusive")
    if 0 in (a, n1 - a, c, n2 - c):
        a, n1, c, n2 = a + 0.5, n1 + 1, c + 0.5, n2 + 1
    log_ratio = math.log(a / n1) - math.log(c / n2)
    half = Z * math.sqrt(1 / a - 1 / n1 + 1 / c - 1 / n2)
    side = conclusion(log_ratio - half, log_ratio + half, event_is_good)
    return Effect("dichotomous", math.exp(log_ratio), math.exp(log_ratio - half), math.exp(log_ratio + half), side)


def mean_difference(values: list[float], event_is_good: bool) -> Effect | None:
    """Of means, standard deviations and group sizes, `m1, s1, n1, m2, s2, n2`; spreads may differ."""
    m1, s1, n1, m2, s2, n2 = values
    if min(n1, n2) <= 1 or min(s1, s2) <= 0:
        return None
    half = Z * math.sqrt(s1 * s1 / n1 + s2 * s2 / n2)
    low, high = m1 - m2 - half, m1 - m2 + half
    return Effect("continuous", m1 - m2, low, high, conclusion(low, high, event_is_good))


def conclusion(low: float, high: float, event_is_good: bool) -> Conclusion:
    """By the interval of a log ratio or a difference: on one side of zero, or inconclusive."""
    above, below = ARMS if event_is_good else ARMS[::-1]
    return above if low > 0 else below if high < 0 else "inconclusive"
