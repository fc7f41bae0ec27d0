"""Evidence that is quoted: how much of a span stands in the reference, word for word."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

TOKEN = re.compile(r"\w+|[^\w\s]")
LEAST = 10  # tokens of a span that counts


def tokens(text: str) -> list[str]:
    """Words and marks, in lower case."""
    return TOKEN.findall(text.lower())


class Substrings:
    """All substrings of a reference, as a suffix automaton: a span is read against them in one pass."""

    def __init__(self, reference: Sequence[str]):
        self.length, self.link, self.next = [0], [-1], [dict[str, int]()]
        last = 0
        for token in reference:
            last = self.extend(last, token)

    def extend(self, last: int, token: str) -> int:
        """The state of the reference so far with this token behind it."""
        new = self.add(self.length[last] + 1, -1, {})
        state = last
        while state >= 0 and token not in self.next[state]:
            self.next[state][token] = new
            state = self.link[state]
        if state < 0:
            self.link[new] = 0
            return new
        target = self.next[state][token]
        if self.length[target] == self.length[state] + 1:
            self.link[new] = target
            return new
        copy = self.add(self.length[state] + 1, self.link[target], dict(self.next[target]))
        while state >= 0 and self.next[state].get(token) == target:
            self.next[state][token] = copy
            state = self.link[state]
        self.link[target] = self.link[new] = copy
        return new

    def add(self, length: int, link: int, following: dict[str, int]) -> int:
        self.length.append(length)
        self.link.append(link)
        self.next.append(following)
        return len(self.length) - 1

    def longest_in(self, span: Sequence[str]) -> int:
        """The length of the longest run of tokens that a span shares with the reference."""
        state = length = longest = 0
        for token in span:
            while state and token not in self.next[state]:
                state = self.link[state]
                length = self.length[state]
            if token in self.next[state]:
                state, length = self.next[state][token], length + 1
            longest = max(longest, length)
        return longest


@lru_cache(maxsize=64)
def substrings(reference: str) -> Substrings:
    """Kept for the samples of a group, which share their reference."""
    return Substrings(tokens(reference))


def evidence_score(spans: Sequence[str], reference: str, least: int = LEAST) -> float:
    """The mean over spans, in [0, 1], of the share of their tokens in the longest common substring with the reference.

    A span of fewer than `least` tokens counts 0, and so do no spans at all.
    """
    shares = []
    for span in spans:
        found = tokens(span)
        counts = len(found) >= max(least, 1)
        shares.append(substrings(reference).longest_in(found) / len(found) if counts else 0.0)
    return sum(shares) / len(shares) if shares else 0.0
