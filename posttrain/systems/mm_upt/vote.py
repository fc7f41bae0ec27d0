"""The majority's answer as the reward, and the recipe around it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import posttrain as pt
from posttrain.grade.text import final_answer, normal_text
from posttrain.grade.verify import last_boxed

Answer = Callable[[str], str | None]  # a reply's text -> its answer, or None
Same = Callable[[str, str], bool]


def clusters(answers: Sequence[str | None], same: Same = str.__eq__) -> list[int | None]:
    """[G] the cluster of each answer, by equivalence and not by spelling; None for a missing one.

    Equivalence is made transitive: what two answers share with a third joins them (union-find).
    """
    spellings = sorted({a for a in answers if a is not None})
    parent = {a: a for a in spellings}

    def root(a: str) -> str:
        while parent[a] != a:
            a = parent[a]
        return a

    for i, a in enumerate(spellings):
        for b in spellings[:i]:
            if root(a) != root(b) and same(a, b):
                parent[root(a)] = root(b)
    index = {name: i for i, name in enumerate(sorted({root(a) for a in spellings}))}
    return [None if a is None else index[root(a)] for a in answers]


def majority(find: Answer, same: Same = str.__eq__) -> pt.Reward:
    """1 for every sample whose answer is the one that most samples give, by equivalence; 0 for the others.

    A reply without an answer neither votes nor earns: in the release two of them agree on having none. With fewer than
    two answers in a group nobody earns. Of tied clusters the one that came first wins, as released.
    """

    def reward(group: pt.Group) -> list[pt.Score]:
        found = clusters([find(rollout.text) for rollout in group], same)
        votes = Counter(cluster for cluster in found if cluster is not None)
        if votes.total() < 2:
            return [pt.Score(0.0, {"agreement": 0.0}) for _ in group]
        winner, count = votes.most_common(1)[0]
        parts = {"agreement": count / len(group), "semantic_entropy": semantic_entropy(found)}
        return [pt.Score(float(cluster == winner), parts) for cluster in found]

    return reward


def semantic_entropy(found: Sequence[int | None]) -> float:
    """H = -sum p log p over the clusters of a question's answers, in nats; missing answers are one cluster."""
    return -sum(n / len(found) * math.log(n / len(found)) for n in Counter(found).values())


def recipe(
    reward: pt.Reward, *, kl: float = 0.01, reference: pt.TextPolicy | None = None, samples: int = 10
) -> pt.Recipe:
    """GRPO as in EasyR1: clip 0.2/0.3 with the dual clip at 3, token mean, a k3 term of 0.01."""
    made = pt.grpo(reward, samples=samples, kl=kl, reference=reference, low=0.2, high=0.3, dual=3.0)
    return replace(made, reduce=pt.token_mean)


def stated_answer(text: str) -> str | None:
    """The answer of a reply in words: what is boxed, or follows its last answer mark, or else its last word."""
    marked = last_boxed(text) or final_answer(text)
    words = normal_text(marked).split()
    return None if not words else words[-1] if marked == text else " ".join(words)
