"""What a recipe remembers: the parts that checkpoints hold, and a warning for memory that they do not see."""

from __future__ import annotations

import hashlib
import pickle
import random
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from types import FunctionType, MethodType
from typing import Any

import numpy as np

from posttrain.core import Stateful

PLAIN = (bool, int, float, str, list, tuple, set, dict, deque, Counter, random.Random, np.random.Generator, np.ndarray)
LONG = 10_000  # items
LIBRARIES = ("posttrain", "torch", "transformers", "numpy", "builtins", "functools", "collections", "random")


def stateful_parts(thing: Any, path: str = "recipe", seen: set[int] | None = None) -> dict[str, Stateful]:
    """Every part of a recipe that remembers something, once, by its place: in fields, closures, mappings, sequences."""
    seen = set() if seen is None else seen
    if id(thing) in seen:
        return {}
    seen.add(id(thing))
    if is_stateful(thing):
        return {} if hasattr(thing, "version") else {path: thing}  # a model in a recipe (it counts its steps) is frozen
    found: dict[str, Stateful] = {}
    for name, value in components(thing).items():
        found |= stateful_parts(value, f"{path}.{name}", seen)
    return found


def is_stateful(thing: Any) -> bool:
    return hasattr(thing, "state_dict") and hasattr(thing, "load_state_dict")


def components(thing: Any) -> dict[str, Any]:
    """What a part is made of, by name."""
    if isinstance(thing, FunctionType) and thing.__closure__:
        cells = zip(thing.__code__.co_freevars, thing.__closure__, strict=True)
        return {name: cell.cell_contents for name, cell in cells}
    if is_dataclass(thing) and not isinstance(thing, type):
        return {f.name: getattr(thing, f.name) for f in fields(thing)}
    if isinstance(thing, Mapping):
        return {str(key): value for key, value in thing.items()}
    if isinstance(thing, list | tuple):
        return {str(i): value for i, value in enumerate(thing)}
    return {}


class Watch:
    """Notices memory of a user's own code that no checkpoint holds: counters in closures, attributes and globals.

    A resumed run would begin with what they were at the start, and nobody would see it.
    """

    def __init__(self, recipe: Any):
        self.recipe, self.named = recipe, set[str]()
        self.start = dict(fingerprints(recipe))

    def warnings(self) -> list[str]:
        """One for every place that has changed since the start, said once."""
        now = dict(fingerprints(self.recipe))
        changed = [place for place, value in now.items() if self.start.get(place, value) != value]
        changed = [place for place in changed if place not in self.named]
        self.named |= set(changed)
        return [
            f"{place} has changed during the run, and checkpoints do not hold it: after a resume it starts anew. If it "
            "is more than a cache, keep it in an object with state_dict and load_state_dict"
            for place in changed
        ]


def fingerprints(thing: Any, path: str = "recipe", seen: set[int] | None = None) -> Iterator[tuple[str, str]]:
    """The plain values in reach of a user's functions and objects, hashed, by their place."""
    seen = set() if seen is None else seen
    if id(thing) in seen or is_stateful(thing):
        return
    seen.add(id(thing))
    if isinstance(thing, MethodType):
        yield from fingerprints(thing.__self__, path, seen)
        return
    for name, value in {**components(thing), **(own_memory(thing) if is_foreign(thing) else {})}.items():
        place = f"{path}.{name}"
        if not isinstance(value, PLAIN):
            yield from fingerprints(value, place, seen)
        elif is_foreign(thing):
            yield place, hash_of(value)
        elif isinstance(value, list | tuple | dict):
            yield from fingerprints(value, place, seen)


def is_foreign(thing: Any) -> bool:
    """Whether a function or an object is of code that is neither ours nor a library's below us."""
    home = getattr(thing, "__module__", None) or type(thing).__module__
    callable_or_object = isinstance(thing, FunctionType) or hasattr(thing, "__dict__")
    return callable_or_object and not isinstance(thing, type) and home.partition(".")[0] not in LIBRARIES


def own_memory(thing: Any) -> dict[str, Any]:
    """A function's globals that it names, or an object's attributes."""
    if not isinstance(thing, FunctionType):
        return dict(vars(thing))
    known = {name: thing.__globals__[name] for name in thing.__code__.co_names if name in thing.__globals__}
    return {name: value for name, value in known.items() if isinstance(value, PLAIN)}


def hash_of(value: Any) -> str:
    """Of a long value only its length counts; empty for what cannot be pickled."""
    try:
        short = value if not hasattr(value, "__len__") or len(value) <= LONG else len(value)
        return hashlib.sha256(pickle.dumps(short)).hexdigest()
    except Exception:  # whatever a user's class raises
        return ""
