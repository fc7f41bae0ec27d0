"""What a reward may read and not write: a rollout that it altered would be trained on as it left it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
from torch import Tensor

from posttrain.core import Group

LARGE = 2**16  # bytes of an array, above which its identity has to do
PLAIN = (str, bytes, int, float, bool, type(None))


@contextmanager
def unaltered(group: Group) -> Iterator[None]:
    """Raises ValueError when the block alters what is learned of a group, or what its other samples are graded by.

    An episode's facts are the reward's to change: nothing is learned of them.
    """
    before = fingerprints(group)
    yield
    after = fingerprints(group)
    if changed := [name for name in before if before[name] != after[name]]:
        raise ValueError(
            f"task {group[0].task.key!r}: its reward altered {', '.join(changed)}, which would be trained on; "
            "work on a copy: `sorted(answer)`, not `answer.sort()`"
        )


def fingerprints(group: Group) -> dict[str, int]:
    """What must stay as it is, by what a person would call it."""
    task, seen = group[0].task, dict[int, int]()
    turns = [turn for rollout in group for turn in rollout.turns]
    return {
        "the answer": fingerprint(task.truth, seen),
        "the columns of the data": fingerprint(task.columns, seen),
        "the prompt": fingerprint(task.prompt, seen),
        "the turns of an episode": hash(tuple(map(id, turns))),
        "the messages of an episode": hash(tuple(fingerprint(turn.ask.messages, seen) for turn in turns)),
        "a reply": hash(tuple(fingerprint(turn.reply, seen) for turn in turns)),
    }


def fingerprint(value: Any, seen: dict[int, int]) -> int:
    """A hash of what containers and dataclasses hold; of a tensor, whether it was written to.

    seen  hashes by the identity of what was looked at before, for samples share a prompt: of things that stay alive
    """
    if isinstance(value, PLAIN):
        return hash(value)
    if isinstance(value, Tensor):
        return hash((id(value), value._version))
    if isinstance(value, tuple) and value and isinstance(value[0], PLAIN) and isinstance(value[-1], PLAIN):
        return id(value)  # of token ids: nobody can write to it
    known = seen.get(id(value))
    if known is None:
        known = seen[id(value)] = hash(tuple(contents(value, seen)))
    return known


def contents(value: Any, seen: dict[int, int]) -> Iterator[Any]:
    if isinstance(value, np.ndarray):
        yield value.tobytes() if value.nbytes < LARGE else id(value)
    elif isinstance(value, Mapping):
        yield from ((name, fingerprint(one, seen)) for name, one in value.items())
    elif isinstance(value, list | tuple):
        yield from (fingerprint(one, seen) for one in value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from (fingerprint(getattr(value, name), seen) for name in field_names(type(value)))
    else:
        yield id(value)


@cache
def field_names(kind: type) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]
