"""What this process is in a run: all of it, one rank of the learner, or a player that needs the recipe and no more.

A program (a stage, a script) says what is learned, and runs unchanged in each of them. Where it comes to learn, it
calls `distribute`: a rank shards the policy, and a player has what it came for.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from posttrain import ranks
from posttrain.core import Policy
from posttrain.policy.text import TextPolicy
from posttrain.recipe import Recipe
from posttrain.scale.shards import shard

Program: TypeAlias = Callable[[], Any]


def never() -> bool:
    return False


@dataclass(slots=True)
class Place:
    """`program` is what the players of a cluster run to build their recipe; None outside of a cluster."""

    program: Program | None = None
    stopped: Callable[[], bool] = never  # the user has asked the cluster's run to end
    building: bool = False  # in a player: learn nothing
    phase: int = 0  # of a curriculum, the one that is trained: players build its recipe


place = Place()


class Built(Exception):
    """What a player came for. It ends the program that built it."""

    def __init__(self, policy: Policy, recipe: Recipe | None):
        super().__init__("the program was run for its recipe")
        self.policy, self.recipe = policy, recipe


def distribute(policy: Policy, recipe: Recipe | None = None, reference: Policy | None = None) -> None:
    """Prepare the policy to learn in this process; the first thing that `Session` does.

    Call it before that, once reference and critic are made, where the program samples from the policy before it
    learns: with several ranks it is sharded over them (FSDP2), and a player goes no further.
    Raises ValueError for a kind of policy that learns in one process only.
    """
    if place.building:
        raise Built(policy, recipe)
    if ranks.world() == 1:
        return
    if not isinstance(policy, TextPolicy):
        raise ValueError(
            f"a {type(policy).__name__} learns in one process: its parameters cannot be sharded over "
            f"{ranks.world()} ranks; start it without torchrun and without `cluster`"
        )
    if not policy.shards:
        shard(policy)
    reference = recipe.reference if recipe else reference
    if isinstance(reference, TextPolicy) and not reference.shards:
        reference.model.to(policy.device)


@contextmanager
def standing_in(now: Place):
    """Inside this block the process is `now`."""
    before = replace(place)
    for name in Place.__slots__:
        setattr(place, name, getattr(now, name))
    try:
        yield
    finally:
        for name in Place.__slots__:
            setattr(place, name, getattr(before, name))


def build(program: Program, phase: int = 0) -> tuple[TextPolicy, Recipe]:
    """The policy and recipe that a program learns with; it is run up to the point where it would begin.

    phase  of a curriculum: the recipe is that phase's, made from the policy as the program loads it
    Raises ValueError when it learns by no recipe.
    """
    try:
        with standing_in(Place(building=True, phase=phase)):
            program()
    except Built as found:
        if isinstance(found.policy, TextPolicy) and found.recipe is not None:
            return found.policy, found.recipe
    raise ValueError("`cluster`: nothing is played in this stage, so there is nothing for players to do")
