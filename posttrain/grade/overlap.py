"""How much two texts share: BLEU by sacrebleu and ROUGE by rouge-score, as papers report them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

EXTRA = "comparing texts needs the extra: pip install 'posttrain[text]'"


def sentence_bleu(said: str, wanted: Sequence[str]) -> float:
    """In [0, 100], of orders that the text is long enough for (sacrebleu's `effective_order`).

    Raises ValueError without the extra.
    """
    try:
        import sacrebleu
    except ImportError as error:
        raise ValueError(EXTRA) from error
    return min(sacrebleu.sentence_bleu(said, list(wanted), use_effective_order=True).score, 100.0)


def rouge_l(said: str, wanted: str) -> float:
    """The F measure of the longest common subsequence of stems, in [0, 1]. Raises ValueError without the extra."""
    return rouge_scorer().score(wanted, said)["rougeL"].fmeasure


@functools.cache
def rouge_scorer() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise ValueError(EXTRA) from error
    return RougeScorer(["rougeL"], use_stemmer=True)
