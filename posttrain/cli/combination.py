"""Methods with parts of systems, by name: `grpo + entropy.kl_cov + diversity.positive`."""

from __future__ import annotations

from collections.abc import Sequence

from posttrain import systems
from posttrain.options import one_of
from posttrain.recipe import Recipe


def named(text: str) -> list[str]:
    """The names in `a + b` or `a,b`."""
    return [name.strip() for name in text.replace("+", ",").split(",") if name.strip()]


def with_parts(recipe: Recipe, parts: Sequence[str], tiny: bool) -> Recipe:
    """The recipe changed by each part in turn. `tiny`: with the numbers of tiny worlds, not the paper's.

    Raises ValueError for a part that no system has.
    """
    for part in parts:
        system, _, name = part.partition(".")
        module = systems.load(one_of(system.replace("-", "_"), systems.names(), "--with"))
        change = module.PARTS[one_of(name, sorted(module.PARTS), f"--with {system}.")]
        recipe = change(recipe, tiny)
    return recipe


def parts() -> list[str]:
    """Every part of every system."""
    return [f"{name}.{part}" for name in systems.names() for part in systems.load(name).PARTS]
