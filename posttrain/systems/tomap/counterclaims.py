"""Topics, each with a tree of depth 1: a claim and its negation at the root, and what speaks for the negation.

The persuader itself proposes the counterclaims, before training: first what speaks against the claim, strongest first,
then the negation of each. They are kept as JSON lines, {"pos", "neg", "counterclaims": [{"statement", "negation"}]}.
(The released trees are Python pickles, which run code when they are read: they are not taken.)
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import posttrain as pt
from posttrain.records import Place, Record, column, records, with_unique_keys

PROPOSED = 10  # of a topic; the first three are used
ITEM = re.compile(r"^\s*(?:\d+[.)]|[-*•])\s+(.*[^\W\d_].*)$", re.MULTILINE)  # a mark, a blank, and some letter


@dataclass(frozen=True, slots=True)
class Counterclaim:
    """A statement that supports the negation of the claim, and its own negation."""

    statement: str
    negation: str


@dataclass(frozen=True, slots=True)
class Topic:
    """What is argued about."""

    key: str
    claim: str  # Q, of which Bob is to be persuaded
    denial: str  # not Q
    counterclaims: tuple[Counterclaim, ...] = ()
    validation: bool = False  # the persuadee answers at temperature 0, as released for validation


def topics(data: str | Path, *, validation: bool = False, limit: int | None = None) -> list[Topic]:
    """The topics of a JSONL, CSV or Parquet file with columns `pos`, `neg` and, where there are any, `counterclaims`.

    Raises ValueError naming file and line for a missing column, a claim that is its own negation, or a malformed tree.
    """

    def topic(place: Place, record: Record) -> Topic:
        claim, denial = (text(column(record, name, place, "data"), place, name) for name in ("pos", "neg"))
        if claim == denial:
            raise ValueError(f"{place}: 'pos' and 'neg' are the same text, so there is nothing to argue about")
        key = str(record.get("id", place.line))
        return Topic(key, claim, denial, tuple(tree(record.get("counterclaims"), place)), validation)

    return with_unique_keys((place, topic(place, record)) for place, record in records(data, limit))


def tree(value: Any, place: Place) -> Iterator[Counterclaim]:
    if isinstance(value, str) and value:  # a cell of a table
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"{place}: 'counterclaims' is no JSON: {error}") from error
    value = value or []
    if not isinstance(value, Sequence):
        raise ValueError(f"{place}: 'counterclaims' holds {type(value).__name__}, not a list")
    for one in value:
        if not isinstance(one, Mapping) or not {"statement", "negation"} <= set(one):
            raise ValueError(f"{place}: a counterclaim is an object with 'statement' and 'negation', not {one!r}")
        yield Counterclaim(*(text(one[name], place, name) for name in ("statement", "negation")))


def text(value: Any, place: Place, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{place}: {name!r} must be a text that is not empty, not {value!r}")
    return " ".join(value.split())


def record(one: Topic) -> dict[str, Any]:
    """A line of the file that `topics` reads."""
    branches = [{"statement": c.statement, "negation": c.negation} for c in one.counterclaims]
    return {"id": one.key, "pos": one.claim, "neg": one.denial, "counterclaims": branches}


def propose_counterclaims(
    persuader: pt.Sampler, found: Sequence[Topic], count: int = PROPOSED, seed: int = 0
) -> list[Topic]:
    """Every topic with what the persuader thinks speaks against its claim, strongest first, and the negations.

    A statement whose negation it does not give is left out; a topic may end with fewer than `count`, or with none.
    """
    asks = [
        pt.Ask(
            (
                pt.user(
                    f'Someone holds that "{one.denial}" and disagrees with "{one.claim}". Which claims would they '
                    f"bring forward? List {count} short statements, strongest first, one to a line, numbered."
                ),
            ),
            seed=pt.mix(seed, "counterclaims", one.key),
        )
        for one in found
    ]
    listed = [items(str(reply.content), cut=reply.stop == "length")[:count] for reply in persuader.sample(asks)]
    denied = iter(persuader.sample([negating(s, pt.mix(seed, s)) for of_one in listed for s in of_one]))
    out = []
    for one, statements in zip(found, listed, strict=True):
        pairs = [(statement, " ".join(str(next(denied).content).split())) for statement in statements]
        kept = tuple(Counterclaim(*pair) for pair in pairs if pair[1] and pair[1] != pair[0])
        out.append(replace(one, counterclaims=kept))
    return out


def negating(statement: str, seed: int) -> pt.Ask:
    wish = f'Write the negation of this statement as one sentence, and nothing else: "{statement}"'
    return pt.Ask((pt.user(wish),), seed=seed)


def items(said: str, cut: bool = False) -> list[str]:
    """The points of a numbered or bulleted list, each once, without bold type; not the last one if it was cut off."""
    found = [" ".join(point.split()) for point in ITEM.findall(said.replace("**", ""))]
    return list(dict.fromkeys(found[: len(found) - cut]))
