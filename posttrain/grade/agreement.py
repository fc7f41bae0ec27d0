"""How far what a model says agrees with the truth: F1 over labels by scikit-learn, correlations by scipy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from posttrain.grade.overlap import EXTRA


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
        raise ValueError(EXTRA) from error
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
        raise ValueError(EXTRA) from error
    if len(a) != len(b) or len(a) < 2:
        raise ValueError(f"correlations need two or more pairs: there are {len(a)} and {len(b)} numbers")
    if len(set(a)) == 1 or len(set(b)) == 1:
        return {"pearson": float("nan"), "spearman": float("nan"), "kendall": float("nan")}
    measures: dict[str, Any] = {"pearson": stats.pearsonr, "spearman": stats.spearmanr, "kendall": stats.kendalltau}
    return {name: float(measure(a, b).statistic) for name, measure in measures.items()}
