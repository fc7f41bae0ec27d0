"""Methods with parts of systems, by name: `grpo + entropy.kl_cov + ./my_paper.py:sharper`."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from posttrain import systems
from posttrain.core import SMALL_MODEL
from posttrain.policy.text import TextPolicy
from posttrain.recipe import Part, Recipe
from posttrain.run.memory import components

CHANGED = ("reward", "advantage", "across", "env")  # a new surrogate leaves the other terms of the loss by itself


def parts_in(text: str) -> list[str]:
    """The names in `a + b` or `a,b`."""
    return [name.strip() for name in text.replace("+", ",").split(",") if name.strip()]


def part_of(name: str) -> Part:
    """The part that `system.part` or `file.py:part` names. Raises ValueError for one that is not there."""
    file, colon, part = name.rpartition(":")
    owner, part = (file, part) if colon else name.rpartition(".")[::2]
    if not owner:
        raise ValueError(f"`with={name}`: write system.part, or file.py:part for a system of your own")
    found = systems.system(owner, "with").parts
    if part not in found:
        near = difflib.get_close_matches(part, found, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"`with={name}`: the parts of {owner} are {', '.join(sorted(found)) or 'none'}{hint}")
    return found[part]


def with_parts(recipe: Recipe, names: Sequence[str], tiny: bool) -> Recipe:
    """The recipe changed by each part in turn. `tiny`: with the numbers of tiny worlds, not the paper's.

    Raises ValueError for a part that no system has or that returns no recipe, and where a part would throw away what
    one before it has made.
    """
    owners: dict[str, str] = {}  # of the fields that parts have changed, the last part that did
    for name in names:
        changed = part_of(name)(recipe, tiny)
        if not isinstance(changed, Recipe):
            raise ValueError(f"`with={name}`: it returned {type(changed).__name__}; a part returns a posttrain.Recipe")
        for field in CHANGED:
            before, after = getattr(recipe, field), getattr(changed, field)
            if after is before:
                continue
            if field in owners and not is_made_of(after, before):
                raise ValueError(
                    f"`with={name}`: it replaces the {field} that {owners[field]} has changed: name {name} before it, "
                    "or leave one of them out"
                )
            owners[field] = name
        recipe = changed
    return recipe


def is_made_of(thing: Any, wanted: Any) -> bool:
    """Whether a part of a recipe is another one, or holds it: in its closure, fields, attributes or items."""
    left, seen = [thing], set[int]()
    while left:
        one = left.pop()
        if one is wanted:
            return True
        if id(one) not in seen and not isinstance(one, nn.Module | Tensor):
            seen.add(id(one))
            left += [*components(one).values(), *getattr(one, "__dict__", {}).values()]
            left += [getattr(one, name) for name in ("func", "args", "keywords", "__self__") if hasattr(one, name)]
            left += [
                *(getattr(one, "__defaults__", None) or ()),
                *(getattr(one, "__kwdefaults__", None) or {}).values(),
            ]
    return False


def is_tiny(policy: TextPolicy) -> bool:
    """The policy's model was made here, so that parts take the numbers of tiny worlds."""
    return sum(p.numel() for p in policy.model.parameters()) < SMALL_MODEL
