"""Ideas for improving a script: many are proposed, and those are kept that differ most from one another."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

import posttrain as pt
from posttrain.systems.ml_agent.problem import Problem

Embedding: TypeAlias = Callable[[Sequence[str]], Tensor]  # [M] texts -> [M, D] vectors
ITEM = re.compile(r"^[ \t]*(?:\d+[.)]|[-*•])\s+(\S.*)$", re.MULTILINE)
MOST_IDEAS = 3  # of one episode


def most_diverse(vectors: Tensor, count: int) -> list[int]:
    """Indices of `count` of the vectors [M, D], chosen one after another, by the max-min distance.

    The first is the nearest to the mean. Each further one has the largest distance from the nearest of those before.
    """
    first = int((vectors - vectors.mean(dim=0)).norm(dim=1).argmin())
    chosen, nearest = [first], (vectors - vectors[first]).norm(dim=1)
    while len(chosen) < min(count, len(vectors)):
        chosen.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, (vectors - vectors[chosen[-1]]).norm(dim=1))
        nearest[chosen] = -1.0  # of two that are equal, the second is not the first again
    return chosen


def diverse_ideas(ideas: Sequence[str], count: int, embedding: Embedding) -> list[str]:
    """The most diverse of the distinct ideas."""
    distinct = list(dict.fromkeys(ideas))
    return [distinct[i] for i in most_diverse(embedding(distinct), count)] if distinct else []


def drawn_ideas(ideas: Sequence[str], draw: random.Random) -> tuple[str, ...]:
    """One to three of them, for one episode; none where there are none."""
    most = min(MOST_IDEAS, len(ideas))
    return tuple(draw.sample(list(ideas), draw.randint(1, most))) if most else ()


def proposal(problem: Problem, count: int) -> tuple[pt.Message, ...]:
    """What an expert is asked."""
    source = problem.files[problem.script]
    return (
        pt.user(
            f"{problem.description}\n\nThe script {problem.script}:\n```python\n{source}\n```\n\n"
            f"List {count} short ideas that could improve its metric, each different from the others, one to a line, "
            "numbered."
        ),
    )


def listed_ideas(reply: pt.Reply) -> list[str]:
    """The points of a list; not the last one if the reply was cut off."""
    found = [" ".join(point.split()) for point in ITEM.findall(str(reply.content).replace("**", ""))]
    return found[: len(found) - (reply.stop == "length")]


def tf_idf(texts: Sequence[str]) -> Tensor:
    """[M] -> [M, D] of length 1: counts of words, rare ones weighing more. Raises ValueError without scikit-learn."""
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError as error:
        raise ValueError("embedding by words needs scikit-learn: pip install 'posttrain[text]'") from error
    return torch.from_numpy(TfidfVectorizer(token_pattern=r"\w+").fit_transform(texts).toarray()).float()
