"""Graphs of agents: who takes part, who reads whom, and whose outputs decide; and the structures that have a name.

Spatial edges lead from an agent to one that reads it in the same round, temporal edges to one that reads it in the
next. The agents stand in an order in which spatial edges lead forward only, so that a round can always be executed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Edges = frozenset[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Graph:
    """Agents are numbers of a pool. Raises ValueError for edges of agents that take no part, or that lead backward.

    agents    those that take part, in a topological order
    spatial   (i, j): j reads what i has said in this round
    temporal  (i, j): j reads what i said in the round before
    deciding  whose outputs of the last round are decided on; the sinks if not given
    """

    agents: tuple[int, ...]
    spatial: Edges = frozenset()
    temporal: Edges = frozenset()
    deciding: tuple[int, ...] | None = None
    rounds: int = 1

    def __post_init__(self):
        place = {agent: position for position, agent in enumerate(self.agents)}
        if len(place) < len(self.agents) or self.rounds < 1:
            raise ValueError(f"an agent takes part twice, or in no round: {self.agents}, {self.rounds} rounds")
        named = {*itertools.chain(*self.spatial, *self.temporal), *(self.deciding or ())}
        if named - set(place):
            raise ValueError(f"agents {sorted(named - set(place))} take no part")
        if backward := [edge for edge in self.spatial if place[edge[0]] >= place[edge[1]]]:
            raise ValueError(f"the spatial edges {sorted(backward)} lead backward in the order {self.agents}")

    @property
    def sinks(self) -> tuple[int, ...]:
        """Those whom nobody reads in the same round."""
        read = {i for i, _ in self.spatial}
        return tuple(agent for agent in self.agents if agent not in read)

    @property
    def deciders(self) -> tuple[int, ...]:
        return self.sinks if self.deciding is None else self.deciding

    @property
    def edges(self) -> int:
        return len(self.spatial) + len(self.temporal)

    @property
    def levels(self) -> list[list[int]]:
        """The agents by the longest path that leads to them: those of one level do not wait for one another."""
        depth: dict[int, int] = {}
        for j in self.agents:
            depth[j] = 1 + max((depth[i] for i, k in self.spatial if k == j), default=-1)
        return [[j for j in self.agents if depth[j] == d] for d in range(max(depth.values(), default=-1) + 1)]

    def read_by(self, agent: int, edges: Edges) -> list[int]:
        """Whom an agent reads by these edges, in order."""
        return [i for i in self.agents if (i, agent) in edges]


# ---- structures: edges between the positions 0, 1, ... of an order


def independent(count: int) -> Edges:
    """Nobody reads anybody: all vote."""
    return frozenset()


def chain(count: int) -> Edges:
    return frozenset(itertools.pairwise(range(count)))


def star(count: int) -> Edges:
    """The last one is the centre, and reads all others."""
    return frozenset((i, count - 1) for i in range(count - 1))


def tree(count: int) -> Edges:
    """Binary: the last one is the root, and everybody is read by their parent."""
    return frozenset((count - 1 - child, count - 1 - (child - 1) // 2) for child in range(1, count))


def layered(count: int) -> Edges:
    """Layers of about the square root of the count; each reads the whole layer before it."""
    width = math.isqrt(max(count - 1, 0)) + 1
    return frozenset((i, j) for i in range(count) for j in range(count) if j // width == i // width + 1)


def full(count: int) -> Edges:
    """Everybody reads all who stand before them: the mesh, made acyclic by the order."""
    return frozenset(itertools.combinations(range(count), 2))


STRUCTURES: Mapping[str, Callable[[int], Edges]] = {
    "independent": independent,
    "chain": chain,
    "star": star,
    "tree": tree,
    "layered": layered,
    "full": full,
}


def named_graph(structure: str, agents: Sequence[int], rounds: int = 1) -> Graph:
    """The structure over agents in this order. With more rounds, each reads its own and the sinks' last outputs."""
    spatial = frozenset((agents[a], agents[b]) for a, b in STRUCTURES[structure](len(agents)))
    once = Graph(tuple(agents), spatial)
    if rounds == 1:
        return once
    temporal = frozenset((i, j) for j in agents for i in {j, *once.sinks})
    return Graph(tuple(agents), spatial, temporal, rounds=rounds)
