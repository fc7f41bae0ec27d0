"""Measures over samples of tasks. Shapes: P tasks, G samples of each; correct means a value of at least 0.5."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RIGHT = 0.5
TEXTS = "F1 and correlations need the extra: pip install 'posttrain[text]'"


def pass_at_k(right: int, samples: int, k: int) -> float:
    """The unbiased chance that one of k samples is right: 1 - C(n-c, k) / C(n, k) (arXiv:2107.03374, Eq. 1).

    Raises ValueError when there are fewer than k samples.
    """
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} cannot be estimated from {samples} samples: it needs at least {k}")
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


def mean_pass_at_k(values: Sequence[Sequence[float]], k: int) -> float:
    """pass@k averaged over tasks, of [P][G] values."""
    return statistics.fmean(pass_at_k(sum(v >= RIGHT for v in task), len(task), k) for task in values)


def coverage(values: Sequence[Sequence[float]]) -> float:
    """The share of tasks of which at least one sample is right."""
    return statistics.fmean(any(v >= RIGHT for v in task) for task in values)


def majority_at_k(
    answers: Sequence[Sequence[Hashable | None]],
    values: Sequence[Sequence[float]],
    k: int,
    draws: int = 200,
    seed: int = 0,
) -> float:
    """The chance that the most common answer of k random samples is right; ties are broken at random.

    answers [P][G], None where a sample gave none (it does not vote); values [P][G] of the same samples.
    """
    generator = np.random.default_rng(seed)
    return statistics.fmean(
        majority_of(task, marks, k, draws if k < len(task) else 1, generator)
        for task, marks in zip(answers, values, strict=True)
    )


def majority_of(
    answers: Sequence[Hashable | None], values: Sequence[float], k: int, draws: int, generator: np.random.Generator
) -> float:
    if not 1 <= k <= len(answers):
        raise ValueError(f"majority@{k} cannot be estimated from {len(answers)} samples: it needs at least {k}")
    won = 0.0
    for _ in range(draws):
        index = generator.choice(len(answers), size=k, replace=False)
        votes = Counter(answers[i] for i in index if answers[i] is not None)
        top = [answer for answer, count in votes.items() if count == max(votes.values())]
        marks = {answers[i]: values[i] >= RIGHT for i in index}
        won += statistics.fmean(marks[answer] for answer in top) if top else 0.0
    return won / draws


def repetition(items: Sequence[Hashable], width: int) -> float:
    """The share of n-grams of `width` that have occurred before, in [0, 1]; 0 where there are none."""
    grams = [tuple(items[i : i + width]) for i in range(len(items) - width + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def auc(values: Sequence[float], right: Sequence[bool]) -> float:
    """The chance that a right one's value is above a wrong one's, ties by half. NaN when there is only one kind."""
    ranks = np.argsort(np.argsort(np.asarray(values), kind="stable"), kind="stable") + 1.0
    array, marks = np.asarray(values, float), np.asarray(right, bool)
    for value in np.unique(array):  # ties share their mean rank
        ranks[array == value] = ranks[array == value].mean()
    good = int(marks.sum())
    bad = len(marks) - good
    return float((ranks[marks].sum() - good * (good + 1) / 2) / (good * bad)) if good and bad else math.nan


@dataclass(frozen=True, slots=True)
class Law:
    """R = -a exp(H) + b, reward against policy entropy in nats (entropy mechanism, arXiv:2505.22617, Eq. 6)."""

    a: float
    b: float
    r_squared: float

    def reward(self, entropy: float) -> float:
        return -self.a * math.exp(entropy) + self.b

    @property
    def ceiling(self) -> float:
        """The reward when no entropy is left."""
        return self.b - self.a


def entropy_law(entropy: Sequence[float], reward: Sequence[float]) -> Law:
    """The law by least squares over a run's steps. Raises ValueError for fewer than three, or for one entropy."""
    if len(entropy) < 3 or len(set(entropy)) < 2:
        raise ValueError(f"the law of entropy needs three steps of different entropy, not {len(entropy)}")
    x, y = np.exp(np.asarray(entropy, float)), np.asarray(reward, float)
    slope, b = np.polyfit(x, y, 1)
    left = y - (slope * x + b)
    total = float(((y - y.mean()) ** 2).sum())
    return Law(-float(slope), float(b), 1 - float((left**2).sum()) / total if total else 0.0)


def moving_mean(values: Sequence[float], width: int) -> list[float]:
    """Means of `width` neighbours, one for every full window."""
    return np.convolve(np.asarray(values, float), np.ones(width) / width, "valid").tolist()


def potential_at_k(greedy: Sequence[float], values: Sequence[Sequence[float]], k: int) -> float:
    """Potential@k: pass@k over the tasks that the greedy reply fails (R1-zero-Div, arXiv:2505.23433).

    greedy [P], values [P][G]. NaN when greedy decoding fails on no task: there is nothing left to gain.
    """
    failed = [task for first, task in zip(greedy, values, strict=True) if first < RIGHT]
    return mean_pass_at_k(failed, k) if failed else math.nan


def interval(
    values: Sequence[float],
    statistic: Callable[[np.ndarray], float] = np.mean,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic of independent values (one per task, or one per seed)."""
    array = np.asarray(values, dtype=float)
    if len(array) < 2:
        return math.nan, math.nan
    index = np.random.default_rng(seed).integers(0, len(array), size=(draws, len(array)))
    found = np.array([statistic(array[row]) for row in index])
    tail = (1 - level) / 2
    return float(np.quantile(found, tail)), float(np.quantile(found, 1 - tail))


# ---- agreement with the truth, by scikit-learn and scipy


def macro_f1(wanted: Sequence[str], given: Sequence[str]) -> float:
    """The mean of the F1 of each label that is wanted, in [0, 1].

    An answer that is no label counts as a miss of its true label, and makes no class of its own.
    Raises ValueError without the extra.
    """
    return f1(wanted, given, "macro")


def weighted_f1(wanted: Sequence[str], given: Sequence[str]) -> float:
    """As `macro_f1`, each label weighted by how often it is wanted."""
    return f1(wanted, given, "weighted")


def require_f1() -> None:
    """Raises ValueError without the extra: before anything is sampled that shall be measured."""
    macro_f1(["a"], ["a"])


def f1(wanted: Sequence[str], given: Sequence[str], average: str) -> float:
    try:
        from sklearn.metrics import f1_score
    except ImportError as error:
        raise ValueError(TEXTS) from error
    labels = sorted(set(wanted))
    options: dict[str, Any] = {"labels": labels, "average": average, "zero_division": 0.0}
    return float(f1_score(list(wanted), list(given), **options))


def correlations(a: Sequence[float], b: Sequence[float]) -> dict[str, float]:
    """Pearson's, Spearman's and Kendall's (tau-b) of paired numbers; NaN where either is constant.

    Raises ValueError without the extra, and for fewer than two pairs.
    """
    try:
        from scipy import stats
    except ImportError as error:
        raise ValueError(TEXTS) from error
    if len(a) != len(b) or len(a) < 2:
        raise ValueError(f"correlations need two or more pairs: there are {len(a)} and {len(b)} numbers")
    if len(set(a)) == 1 or len(set(b)) == 1:
        return {"pearson": float("nan"), "spearman": float("nan"), "kendall": float("nan")}
    measures: dict[str, Any] = {"pearson": stats.pearsonr, "spearman": stats.spearmanr, "kendall": stats.kendalltau}
    return {name: float(measure(a, b).statistic) for name, measure in measures.items()}
