"""Evidence that is quoted: how much of a span stands in the reference, word for word."""

from __future__ import annotations

import re
from collections.abc import Sequence

TOKEN = re.compile(r"\w+|[^\w\s]")
LEAST = 10  # tokens of a span that counts


def tokens(text: str) -> list[str]:
    """Words and marks, in lower case."""
    return TOKEN.findall(text.lower())


def common_substring(span: Sequence[str], reference: Sequence[str]) -> int:
    """The length of the longest run of tokens that both have.

    A run of n tokens holds one of n - 1, so that the length is found by bisection.
    """
    low, high = 0, min(len(span), len(reference))
    while low < high:
        middle = (low + high + 1) // 2
        known = {tuple(reference[i : i + middle]) for i in range(len(reference) - middle + 1)}
        there = any(tuple(span[i : i + middle]) in known for i in range(len(span) - middle + 1))
        low, high = (middle, high) if there else (low, middle - 1)
    return low


def grounded(span: str, reference: Sequence[str], least: int = LEAST) -> float:
    """The share of a span's tokens in its longest common substring with the reference; 0 of one that is too short."""
    found = tokens(span)
    return common_substring(found, reference) / len(found) if found and len(found) >= least else 0.0


def evidence_score(spans: Sequence[str], reference: str, least: int = LEAST) -> float:
    """The mean over spans, in [0, 1]; 0 where there are none."""
    known = tokens(reference)
    return sum(grounded(span, known, least) for span in spans) / len(spans) if spans else 0.0
