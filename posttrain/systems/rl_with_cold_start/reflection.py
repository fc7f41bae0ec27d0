"""The words of an "aha moment", and whether replies that have them are right more often."""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter
from collections.abc import Sequence

PATTERNS = (
    "wait",
    "re-check",
    "double-check",
    "let me verify",
    "let me check",
    "mistake",
    "alternatively",
    "re-evaluate",
    "re-examine",
)
WORDS = {pattern: re.compile(rf"\b{pattern.replace('-', '[- ]?')}(?:s|ing)?\b", re.IGNORECASE) for pattern in PATTERNS}


def patterns(text: str) -> Counter[str]:
    """How often each word of reflection stands in a text, hyphens and case aside."""
    found = {pattern: len(word.findall(text)) for pattern, word in WORDS.items()}
    return Counter({pattern: count for pattern, count in found.items() if count})


def reflects(text: str) -> bool:
    return any(word.search(text) for word in WORDS.values())


def gap(texts: Sequence[str], right: Sequence[bool]) -> float:
    """P(right | reflection) - P(right | none). NaN where all replies, or none, reflect."""
    with_it = [good for text, good in zip(texts, right, strict=True) if reflects(text)]
    without = [good for text, good in zip(texts, right, strict=True) if not reflects(text)]
    return statistics.fmean(with_it) - statistics.fmean(without) if with_it and without else math.nan
