"""Training problems that stand in held-out files, by their words.

A problem overlaps when it shares a run of `WIDTH` words with a held-out one, or, without pictures, its whole text: of
problems with pictures a short text ("Find x.") says nothing. Likeness of pictures, which the paper measures by
embeddings, is not looked at.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from posttrain.systems.infi_mmr.data import Problem

WIDTH = 13  # words, ours


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.replace("<image>", " ").casefold())


def runs(text: str, width: int = WIDTH) -> set[tuple[str, ...]]:
    """Every run of so many words."""
    found = words(text)
    return {tuple(found[i : i + width]) for i in range(len(found) - width + 1)}


def without_overlap(some: Sequence[Problem], held_out: Sequence[Problem], width: int = WIDTH) -> list[Problem]:
    """The problems of which no run of words stands in a held-out one."""
    known = {run for one in held_out for run in runs(one.question, width)}
    texts = {tuple(words(one.question)) for one in held_out if not one.pictures}
    return [
        one
        for one in some
        if not runs(one.question, width) & known and (one.pictures or tuple(words(one.question)) not in texts)
    ]
