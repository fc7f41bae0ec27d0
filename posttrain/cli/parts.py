"""Methods with parts of systems, by name: `grpo + entropy.kl_cov + ./my_paper.py:sharper`."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from posttrain import systems
from posttrain.core import SMALL_MODEL
from posttrain.policy.text import TextPolicy
from posttrain.recipe import Part, Recipe


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

    Raises ValueError for a part that no system has.
    """
    for name in names:
        recipe = part_of(name)(recipe, tiny)
    return recipe


def is_tiny(policy: TextPolicy) -> bool:
    """The policy's model was made here, so that parts take the numbers of tiny worlds."""
    return sum(p.numel() for p in policy.model.parameters()) < SMALL_MODEL
