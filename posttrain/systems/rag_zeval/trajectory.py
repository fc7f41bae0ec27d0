"""What an evaluator writes of several candidate answers at once, as JSON, and how it can fail to.

[{"id": 1, "answer": "...", "atomic_claims": [
    {"claim": "...", "is_supported": true, "grounding_evidence": ["a sentence of the reference"], "analysis": "..."}
]}, ...]
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from posttrain.chat import without_thinking
from posttrain.grade.structured import parse_json

Kind = Literal["no list", "candidates", "field", "no claims", "evidence"]
KINDS: tuple[Kind, ...] = get_args(Kind)
FIELDS = {"claim": str, "is_supported": bool, "grounding_evidence": list, "analysis": str}


class BrokenTrajectory(Exception):
    """What is wrong with a trajectory.

    kind  no list     the reply is not a JSON list, or is cut off
          candidates  its items are not one for each candidate
          field       a field is missing, or of another type
          no claims   a candidate has none
          evidence    a supported claim has none
    """

    def __init__(self, kind: Kind, reason: str):
        self.kind: Kind = kind
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class Claim:
    """One thing that a candidate says, and the passages that are quoted for it."""

    text: str
    supported: bool
    evidence: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Assessed:
    """A candidate's claims, at least one."""

    claims: tuple[Claim, ...]

    @property
    def score(self) -> float:
        """The share of claims that are supported."""
        return sum(claim.supported for claim in self.claims) / len(self.claims)


def trajectory(text: str, candidates: int, *, lenient: bool = False) -> list[Assessed]:
    """The candidates in their order. Raises BrokenTrajectory, and nothing else, whatever the text.

    lenient  the list may stand in a fence or in prose, as is allowed when one evaluates, and not when one trains
    """
    items, by_number = listed(text, lenient), dict[int, dict[str, Any]]()
    for item in items:
        number = item.get("id") if isinstance(item, dict) else None
        if isinstance(number, int) and not isinstance(number, bool):
            by_number[number] = item
    if len(items) != candidates or set(by_number) != set(range(1, candidates + 1)):
        raise BrokenTrajectory("candidates", f"the list has {len(items)} items, and not each of 1 to {candidates} once")
    return [assessed(by_number[number]) for number in range(1, candidates + 1)]


def listed(text: str, lenient: bool) -> list[Any]:
    try:
        found = parse_json(text) if lenient else json.loads(without_thinking(text).strip())
    except (ValueError, RecursionError) as error:
        raise BrokenTrajectory("no list", "the reply is not JSON") from error
    if not isinstance(found, list):
        raise BrokenTrajectory("no list", f"the reply is a {type(found).__name__}, not a list")
    return found


def assessed(item: dict[str, Any]) -> Assessed:
    claims = item.get("atomic_claims")
    if not isinstance(item.get("answer"), str) or not isinstance(claims, list):
        raise BrokenTrajectory("field", "an item has an `answer`, a text, and `atomic_claims`, a list")
    if not claims:
        raise BrokenTrajectory("no claims", f"candidate {item['id']} has no claims")
    return Assessed(tuple(claim_of(one) for one in claims))


def claim_of(record: Any) -> Claim:
    if not isinstance(record, dict):
        raise BrokenTrajectory("field", f"a claim is a {type(record).__name__}, not an object")
    for name, kind in FIELDS.items():
        if not isinstance(record.get(name), kind):
            raise BrokenTrajectory("field", f"a claim has no `{name}`, or one that is no {kind.__name__}")
    spans = record["grounding_evidence"]
    if not all(isinstance(span, str) for span in spans):
        raise BrokenTrajectory("field", "`grounding_evidence` is a list of texts")
    if record["is_supported"] and not any(span.strip() for span in spans):
        raise BrokenTrajectory("evidence", "a claim is supported, and nothing is quoted for it")
    return Claim(record["claim"], record["is_supported"], tuple(spans))


def ranks_as(scores: Sequence[float], ranks: Sequence[float]) -> bool:
    """Whether each candidate of a higher rank has a strictly higher score."""
    return all(scores[i] > scores[j] for i in range(len(ranks)) for j in range(len(ranks)) if ranks[i] > ranks[j])
