"""Selection, structure profile and topology synthesis as one policy: pi(S | q) pi(tau | q, S) pi(E | q, S, tau).

    z_i = MLP(p_i, q)       of an agent's profile and the query
    S     for every agent, whether it takes part        sigmoid(w z_i)
    tau   one of the structures with a name             softmax(W mean of z over S)
    order Plackett-Luce over S                          softmax(u z_i) over those not yet placed
    E     every edge of tau in this order, or not       sigmoid(z_i W z_j + b_tau)

Edges lead forward in the order that was drawn, so every graph is acyclic. The form z_i W z_j is not symmetric: an edge
and its opposite are two things. With more than one round, temporal edges are drawn in the same way between all pairs.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

import posttrain as pt
from posttrain.policy.decision import rows_of_numbers
from posttrain.systems.topology_mas.graph import STRUCTURES, Graph

NO, YES = 0, 1  # the options of a choice between two
WHOLE = 2.0  # b_tau at first: an edge of a structure is there with p = 0.88, so that most graphs have its shape


@dataclass(frozen=True)
class Layout:
    """Where each choice stands: A of selection, one of structure, A of the order, then the edges between positions."""

    agents: int
    rounds: int = 1

    @cached_property
    def pairs(self) -> list[tuple[int, int]]:
        """Of positions, the first before the second."""
        return list(itertools.combinations(range(self.agents), 2))

    @cached_property
    def temporal(self) -> list[tuple[int, int]]:
        """Of agents, all ordered pairs, an agent with itself too."""
        return list(itertools.product(range(self.agents), range(self.agents))) if self.rounds > 1 else []

    @property
    def count(self) -> int:
        return 2 * self.agents + 1 + len(self.pairs) + len(self.temporal)

    def graph(self, chosen: Sequence[int]) -> Graph:
        """The graph that a reply of the policy stands for."""
        A, P = self.agents, len(self.pairs)
        taken, order, edges = sum(chosen[:A]), chosen[A + 1 : 2 * A + 1], chosen[2 * A + 1 :]
        spatial = {(order[a], order[b]) for (a, b), yes in zip(self.pairs, edges[:P], strict=True) if yes}
        temporal = {pair for pair, yes in zip(self.temporal, edges[P:], strict=True) if yes}
        return Graph(tuple(order[:taken]), frozenset(spatial), frozenset(temporal), rounds=self.rounds)


class GraphChoices(pt.Choices):
    """The network of the policy. An ask shows a `query` of Q numbers; the agents' profiles are its own, [A, F].

    selection, structure, edges   False leaves a stage out: all agents take part; the structure is `full`, so that its
                                  edges are free; every edge of the structure is taken
    """

    profiles: Tensor
    allowed: Tensor

    def __init__(
        self,
        agents: int,
        features: int,
        query: int,
        hidden: int = 32,
        rounds: int = 1,
        selection: bool = True,
        structure: bool = True,
        edges: bool = True,
    ):
        super().__init__()
        self.settings = {"agents": agents, "features": features, "query": query, "hidden": hidden, "rounds": rounds}
        self.settings |= {"selection": selection, "structure": structure, "edges": edges}
        self.layout = Layout(agents, rounds)
        self.agents, self.query, self.count, self.width = agents, query, self.layout.count, hidden
        self.selection, self.structure, self.edges = selection, structure, edges
        names = list(STRUCTURES)
        self.full = names.index("full")
        self.of_agent, self.of_query = nn.Linear(features, hidden), nn.Linear(query, hidden)
        self.body = nn.Sequential(nn.Linear(3 * hidden, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh())
        self.select, self.place = nn.Linear(hidden, 1), nn.Linear(hidden, 1)
        self.profile = nn.Linear(hidden, len(names))
        self.spatial = nn.Parameter(torch.zeros(hidden, hidden))
        self.temporal = nn.Parameter(torch.zeros(hidden, hidden)) if rounds > 1 else None
        self.bias = nn.Parameter(torch.full((len(names),), WHOLE))
        for head in (self.select, self.place, self.profile):  # all agents, orders and structures are alike at first
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
        self.register_buffer("profiles", torch.zeros(agents, features))
        self.register_buffer("allowed", allowed_pairs(agents), persistent=False)

    def read(self, shown: Sequence[Any]) -> dict[str, Tensor]:
        query = rows_of_numbers(shown, "query").to(self.bias.device)
        if list(query.shape[1:]) != [self.query]:
            raise ValueError(f"`query` is shown as {list(query.shape[1:])}; the network reads [{self.query}]")
        if not bool(torch.isfinite(query).all()):
            raise ValueError("`query` holds a number that is not finite")
        own, asked = self.of_agent(self.profiles)[None], self.of_query(query)[:, None]
        z = self.body(torch.cat(torch.broadcast_tensors(own, asked, own * asked), -1))  # [B, A, H]
        seen = {"z": z, "select": self.select(z)[..., 0], "place": self.place(z)[..., 0]}
        seen["spatial"] = z @ self.spatial @ z.mT
        return seen if self.temporal is None else {**seen, "temporal": z @ self.temporal @ z.mT}

    def summary(self, seen: dict[str, Tensor], made: Tensor) -> Tensor:
        """The mean of z over the agents that are taken so far, over all as long as none is."""
        taken = self.members(made)
        weight = torch.where(taken.any(-1, keepdim=True), taken, True).float()
        return (seen["z"] * weight[..., None]).sum(1) / weight.sum(-1, keepdim=True)

    def members(self, made: Tensor) -> Tensor:
        """[B, A] bool, of the choices so far."""
        chosen = made[:, : self.agents] == YES
        return nn.functional.pad(chosen, (0, self.agents - chosen.shape[1]))

    def logits(self, seen: dict[str, Tensor], made: Tensor) -> Tensor:
        A, at = self.agents, made.shape[1]
        if at < A:
            someone = self.members(made).any(-1) if at == A - 1 else torch.ones(len(made), dtype=torch.bool)
            return yes_or_no(seen["select"][:, at], may_no=someone.to(made.device) & self.selection)
        if at == A:
            logits = self.profile(self.summary(seen, made))
            free = torch.arange(logits.shape[1], device=made.device) == self.full
            return logits if self.structure else logits.masked_fill(~free, -torch.inf)
        if at <= 2 * A:
            return seen["place"].masked_fill(~self.placeable(made), -torch.inf)
        return self.edge(seen, made, at - 2 * A - 1)

    def placeable(self, made: Tensor) -> Tensor:
        """[B, A] bool: who may come next in the order. It is drawn among those that take part, if tau has edges.

        What is of no consequence is no decision: the others, and all of them without edges, come by their numbers.
        """
        taken, order = self.members(made), made[:, self.agents + 1 :]
        left = torch.ones_like(taken).scatter(1, order, False)
        waiting = taken & left
        waiting = torch.where(waiting.any(-1, keepdim=True), waiting, left)
        drawn = self.allowed[made[:, self.agents], taken.sum(-1)].flatten(1).any(-1) & (taken & left).any(-1)
        lowest = nn.functional.one_hot(waiting.long().argmax(-1), self.agents).bool()
        return torch.where(drawn[:, None], waiting, lowest)

    def edge(self, seen: dict[str, Tensor], made: Tensor, at: int) -> Tensor:
        A, taken, rows = self.agents, self.members(made), torch.arange(len(made), device=made.device)
        if at < len(self.layout.pairs):
            (a, b), tau = self.layout.pairs[at], made[:, A]
            i, j = made[:, A + 1 + a], made[:, A + 1 + b]
            may = self.allowed[tau, taken.sum(-1), a, b]
            wish = seen["spatial"][rows, i, j] + self.bias[tau]
        else:
            i, j = self.layout.temporal[at - len(self.layout.pairs)]
            may, wish = taken[:, i] & taken[:, j], seen["temporal"][:, i, j]
        return yes_or_no(wish, may_no=~may | self.edges, may_yes=may)


def yes_or_no(wish: Tensor, may_no: Tensor, may_yes: Tensor | None = None) -> Tensor:
    """[B] logits of yes -> [B, 2] of both options; -inf for one that may not be chosen."""
    yes = wish if may_yes is None else wish.masked_fill(~may_yes, -torch.inf)
    return torch.stack([torch.zeros_like(wish).masked_fill(~may_no, -torch.inf), yes], -1)


def allowed_pairs(agents: int) -> Tensor:
    """[T, A + 1, A, A] bool: whether a structure over so many agents has the edge between two positions."""
    found = torch.zeros(len(STRUCTURES), agents + 1, agents, agents, dtype=torch.bool)
    for structure, edges in zip(found, STRUCTURES.values(), strict=True):
        for count in range(agents + 1):
            for a, b in edges(count):
                structure[count, a, b] = True
    return found
