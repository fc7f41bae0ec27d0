"""pass@k, majority vote and verified selection, of answers in words, of answers by proofs, and of both together.

What the paper calls accuracy is pass@16: of the union of 8 answers by proofs and the first 8 in words, against 16 in
words.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import posttrain as pt
from posttrain.grade.verify import equivalent
from posttrain.systems.nl_fl_hybrid.replies import plain_answer

Same = Callable[[str, str], bool]


def same_string(a: str, b: str) -> bool:
    """The comparison of the release, which misses what is equal and written otherwise."""
    return plain_answer(a) == plain_answer(b)


SAME: dict[str, Same] = {"string": same_string, "math": equivalent}


@dataclass(frozen=True)
class Answers:
    """Of one problem. None where a sample gave no answer.

    natural  in words
    formal   by proofs, up to as many as statements were made
    proved   of each of these, whether a prover accepts the proof; empty where none was asked
    """

    truth: str
    natural: Sequence[str | None]
    formal: Sequence[str | None]
    proved: Sequence[bool] = ()


def measures_of(found: Sequence[Answers], same: Same, formal: int) -> pt.Measures:
    """Shares of problems; `formal` answers by proofs stand in the union for as many in words."""
    out: dict[str, float] = {}
    most = max(len(one.natural) for one in found)
    for k in sorted({1, formal, most}):
        out[f"words pass@{k}"] = statistics.fmean(passes(one.natural[:k], one.truth, same) for one in found)
    for k in sorted({1, formal}):
        out[f"proofs pass@{k}"] = statistics.fmean(passes(one.formal[:k], one.truth, same) for one in found)
    unions = [union(one, formal, most) for one in found]
    out[f"hybrid pass@{most}"] = statistics.fmean(
        passes(answers, one.truth, same) for answers, one in zip(unions, found, strict=True)
    )
    out["words majority"] = statistics.fmean(votes(one.natural, one.truth, same) for one in found)
    out["proofs majority"] = statistics.fmean(votes(one.formal, one.truth, same) for one in found)
    out["hybrid majority"] = statistics.fmean(
        votes(answers, one.truth, same) for answers, one in zip(unions, found, strict=True)
    )
    if any(one.proved for one in found):
        out["hybrid verified"] = statistics.fmean(
            passes([verified(one, answers, same)], one.truth, same) for answers, one in zip(unions, found, strict=True)
        )
        out["proved"] = statistics.fmean(any(one.proved) for one in found)
    return out


def union(one: Answers, formal: int, most: int) -> list[str | None]:
    """The answers by proofs, as many as there are, and as many in words as are left of `most` beside `formal`."""
    return [*one.formal[:formal], *one.natural[: most - formal]]


def passes(answers: Sequence[str | None], truth: str, same: Same) -> bool:
    return any(answer is not None and same(truth, answer) for answer in answers)


def votes(answers: Sequence[str | None], truth: str, same: Same) -> bool:
    """Whether the answer that most agree with is right; the first of several wins."""
    chosen = majority(answers, same)
    return chosen is not None and same(truth, chosen)


def majority(answers: Sequence[str | None], same: Same) -> str | None:
    groups: list[list[str]] = []
    for answer in answers:
        if answer is None:
            continue
        group = next((group for group in groups if same(group[0], answer)), None)
        groups.append([answer]) if group is None else group.append(answer)
    return max(groups, key=len)[0] if groups else None


def verified(one: Answers, answers: Sequence[str | None], same: Same) -> str | None:
    """The answer that most proofs prove; where none does, the majority's."""
    proved = [answer for answer, accepted in zip(one.formal, one.proved, strict=True) if accepted]
    return majority(proved, same) or majority(answers, same)
