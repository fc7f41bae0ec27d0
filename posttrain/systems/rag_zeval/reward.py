"""The reward of an evaluator: is its trajectory whole, its ranking that of the candidates, its evidence there?

r_f  0 for a whole trajectory, else -0.5
r_a  1 where S(i) > S(j) strictly for every pair of which i was made to be better, else 0
r_e  the mean share of the evidence that stands in the reference word for word
R    1 + 0.5 r_e where r_a is 1; 0 where it is 0; -0.5 where the trajectory is broken
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import posttrain as pt
from posttrain.grade.stated import whole_reply
from posttrain.systems.rag_zeval.evidence import LEAST, evidence_score
from posttrain.systems.rag_zeval.trajectory import KINDS, Assessed, BrokenTrajectory, ranks_as, trajectory

BROKEN, GROUNDED = -0.5, 0.5
Goal = Literal["ranking", "best"]


@dataclass(frozen=True)
class Ranked:
    """What an evaluator is shown: a reference, and how good each candidate was made to be, in the order shown."""

    reference: str
    ranks: tuple[float, ...]


def reward(least: int = LEAST, goal: Goal = "ranking") -> pt.Reward:
    """In {-0.5, 0} or [1, 1.5], of tasks whose truth is a `Ranked`.

    least  tokens of a span of evidence that counts
    goal   ranking: all pairs; best: only that the best candidate is above all others (an ablation)
    """

    def grade(rollout: pt.Rollout) -> pt.Score:
        truth: Ranked = rollout.task.truth
        failures = {f"broken/{kind}": 0.0 for kind in KINDS}
        try:
            found = trajectory(whole_reply(rollout), len(truth.ranks))
        except BrokenTrajectory as broken:
            failures[f"broken/{broken.kind}"] = 1.0
            return pt.Score(BROKEN, {"format": BROKEN, "ranking": 0.0, "evidence": 0.0, "claims": 0.0, **failures})
        spans = [span for one in found for claim in one.claims for span in claim.evidence]
        evidence, right = evidence_score(spans, truth.reference, least), reaches(found, truth, goal)
        parts = {"format": 0.0, "ranking": float(right), "evidence": evidence, "claims": mean_claims(found)}
        return pt.Score(1 + GROUNDED * evidence if right else 0.0, {**parts, **failures})

    return pt.each(grade)


def reaches(found: list[Assessed], truth: Ranked, goal: Goal) -> bool:
    scores = [one.score for one in found]
    if goal == "ranking":
        return ranks_as(scores, truth.ranks)
    best = max(truth.ranks)
    return ranks_as(scores, [float(rank == best) for rank in truth.ranks])


def mean_claims(found: list[Assessed]) -> float:
    return sum(len(one.claims) for one in found) / len(found)
