"""Three published rules for the edges of a given crew, as networks of choices under the same update.

    GPTSwarm (arXiv:2402.16823)    a logit for every directed edge, and for every agent that the decision hears
    AgentPrune (arXiv:2410.02506)  logits of spatial and temporal edges; the lowest are pruned every few steps
    G-Designer (arXiv:2410.11782)  logits z z^T of two graph convolutions over profiles and query

All agents take part. Spatial edges are drawn in a fixed order, and one that would close a cycle is skipped, without a
term in the log-probability. The loss is -mean(log P(G) U), without a baseline. At temperature 0 an edge is there if
p > 0.5.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

import posttrain as pt
from posttrain.policy.decision import rows_of_numbers
from posttrain.systems.topology_mas.graph import Graph
from posttrain.systems.topology_mas.network import YES, yes_or_no


@dataclass(frozen=True)
class EdgeLayout:
    """Where each choice stands: spatial edges between agents, then temporal ones, then whom the decision hears.

    decisions  False: the sinks decide
    """

    agents: int
    rounds: int = 1
    decisions: bool = False

    @cached_property
    def spatial(self) -> list[tuple[int, int]]:
        return list(itertools.permutations(range(self.agents), 2))

    @cached_property
    def temporal(self) -> list[tuple[int, int]]:
        return list(itertools.product(range(self.agents), range(self.agents))) if self.rounds > 1 else []

    @property
    def count(self) -> int:
        return len(self.spatial) + len(self.temporal) + self.agents * self.decisions

    def graph(self, chosen: Sequence[int]) -> Graph:
        S, T = len(self.spatial), len(self.temporal)
        spatial = frozenset(pair for pair, yes in zip(self.spatial, chosen[:S], strict=True) if yes)
        temporal = frozenset(pair for pair, yes in zip(self.temporal, chosen[S : S + T], strict=True) if yes)
        deciding = tuple(i for i, yes in enumerate(chosen[S + T :]) if yes) if self.decisions else None
        return Graph(topological_order(spatial, self.agents), spatial, temporal, deciding, self.rounds)


def topological_order(edges: frozenset[tuple[int, int]], agents: int) -> tuple[int, ...]:
    """Of all agents; those that may come next come by their numbers."""
    order: list[int] = []
    while len(order) < agents:
        waiting = {j for i, j in edges if i not in order}
        order.append(next(j for j in range(agents) if j not in order and j not in waiting))
    return tuple(order)


class EdgeChoices(pt.Choices):
    """What the three have in common: the logits of edges decide one after another, and no cycle is closed."""

    layout: EdgeLayout

    def wishes(self, shown: Sequence[Any]) -> Tensor:
        """[B, D] logits."""
        raise TypeError(f"{type(self).__name__} has no logits")

    def open(self) -> Tensor:
        """[D] bool: the edges that may be drawn at all."""
        return torch.ones(self.count, dtype=torch.bool, device=next(self.parameters()).device)

    def read(self, shown: Sequence[Any]) -> Tensor:
        return self.wishes(shown)

    def summary(self, seen: Tensor, made: Tensor) -> Tensor:
        """The logits."""
        return seen

    def logits(self, seen: Tensor, made: Tensor) -> Tensor:
        at = made.shape[1]
        may = self.open()[at].expand(len(made))
        if at < len(self.layout.spatial):
            i, j = self.layout.spatial[at]
            may = may & ~self.reaches(made)[:, j, i]
        return yes_or_no(seen[:, at], may_no=torch.ones_like(may), may_yes=may)

    def reaches(self, made: Tensor) -> Tensor:
        """[B, A, A] bool: whether a path of the edges so far leads from one agent to another."""
        A, pairs = self.layout.agents, self.layout.spatial[: made.shape[1]]
        edges = torch.zeros(len(made), A, A, device=made.device)
        if pairs:
            rows, columns = zip(*pairs, strict=True)
            edges[:, list(rows), list(columns)] = (made == YES).float()
        paths = edges + torch.eye(A, device=made.device)
        for _ in range((A - 1).bit_length()):
            paths = (paths @ paths).clamp(max=1)
        return paths > 0


class EdgeLogits(EdgeChoices):
    """A logit for every edge, whatever the query: GPTSwarm's (`decisions=True`), and AgentPrune's (`rounds=2`).

    mask  [D] of what is left; see `Pruning`
    """

    mask: Tensor

    def __init__(self, agents: int, rounds: int = 1, decisions: bool = False):
        super().__init__()
        self.settings = {"agents": agents, "rounds": rounds, "decisions": decisions}
        self.layout = EdgeLayout(agents, rounds, decisions)
        self.count = self.width = self.layout.count
        self.own = nn.Parameter(torch.zeros(self.count))  # p = 0.5
        self.register_buffer("mask", torch.ones(self.count))

    def wishes(self, shown: Sequence[Any]) -> Tensor:
        return self.own[None].expand(len(shown), -1)

    def open(self) -> Tensor:
        return self.mask > 0


class Designer(EdgeChoices):
    """G-Designer: z of two graph convolutions over a graph of roles, edges by z z^T, which is symmetric.

    links   pairs of agents whose roles are linked, in either direction; a ring if none are given
    scaled  the logits of a graph are scaled to [-1, 1], from their least to their greatest, as published: p in
            [0.27, 0.73]
    The released trainer leaves the parameters behind the convolutions out of its optimizer and puts a log-softmax on
    what they read; neither is repeated here.
    """

    profiles: Tensor
    roles: Tensor

    def __init__(
        self,
        agents: int,
        features: int,
        query: int,
        links: Sequence[Sequence[int]] = (),
        hidden: int = 32,
        width: int = 16,
        scaled: bool = True,
    ):
        super().__init__()
        links = [list(pair) for pair in links] or [[i, (i + 1) % agents] for i in range(agents)]
        self.settings = {"agents": agents, "features": features, "query": query, "links": links, "hidden": hidden}
        self.settings |= {"width": width, "scaled": scaled}
        self.layout, self.query, self.scaled = EdgeLayout(agents), query, scaled
        self.count = self.width = self.layout.count
        self.first, self.second = nn.Linear(features + query, hidden), nn.Linear(hidden, hidden)
        self.last = nn.Linear(hidden, width)
        self.register_buffer("profiles", torch.zeros(agents, features))
        self.register_buffer("roles", convolution(agents, links), persistent=False)

    def wishes(self, shown: Sequence[Any]) -> Tensor:
        query = rows_of_numbers(shown, "query").to(self.profiles.device)
        if list(query.shape[1:]) != [self.query]:
            raise ValueError(f"`query` is shown as {list(query.shape[1:])}; the network reads [{self.query}]")
        profiles = self.profiles.expand(len(query), -1, -1)
        nodes = torch.cat([profiles, query[:, None].expand(-1, profiles.shape[1], -1)], -1)
        z = self.last(torch.relu(self.roles @ self.second(torch.relu(self.roles @ self.first(nodes)))))
        edges = z @ z.mT
        rows, columns = zip(*self.layout.spatial, strict=True)
        flat = edges[:, list(rows), list(columns)]
        if not self.scaled:
            return flat
        low, high = flat.amin(-1, keepdim=True), flat.amax(-1, keepdim=True)
        return 2 * (flat - low) / (high - low).clamp(min=1e-9) - 1


def convolution(agents: int, links: Sequence[Sequence[int]]) -> Tensor:
    """[A, A] the normalised adjacency with loops, D^-1/2 (A + I) D^-1/2 (Kipf and Welling, arXiv:1609.02907, Eq. 2)."""
    edges = torch.eye(agents)
    for i, j in links:
        edges[i, j] = edges[j, i] = 1.0
    scale = edges.sum(-1).rsqrt()
    return scale[:, None] * edges * scale[None]


class Pruning:
    """AgentPrune's schedule as an advantage that learns: every few steps the lowest edges of either kind are closed.

    every, share   after so many steps, of those that are left (rounded, one at least)
    The advantage is the utility itself, without a baseline.
    """

    def __init__(self, network: EdgeLogits, every: int = 5, share: float = 0.25):
        self.network, self.every, self.share = network, every, share
        self.steps = 0

    def __call__(self, group: pt.Group, scores: list[pt.Score]) -> list[Tensor]:
        return pt.raw(group, scores)

    @torch.no_grad()
    def learn(self) -> pt.Metrics:
        """Called after every update of the policy."""
        self.steps += 1
        mask, S = self.network.mask, len(self.network.layout.spatial)
        if self.steps % self.every == 0:
            for kind in (slice(0, S), slice(S, S + len(self.network.layout.temporal))):
                left = int(mask[kind].sum())
                logits = self.network.own[kind].masked_fill(mask[kind] == 0, torch.inf)
                mask[kind][logits.argsort()[: max(round(self.share * left), 1) if left else 0]] = 0
        return {"edges_left": mask.sum().item()}

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.steps = state["steps"]
