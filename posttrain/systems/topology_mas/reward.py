"""What a graph is worth: U = correct - lambda_e |E| - lambda_a |S| - lambda_tok tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

import posttrain as pt
from posttrain.systems.topology_mas.execution import Execution


@dataclass(frozen=True)
class Costs:
    """What is taken off a right answer. The definition names the costs, and no numbers: these are ours."""

    edge_cost: float = 0.01
    """Of an edge."""
    agent_cost: float = 0.02
    """Of an agent that takes part."""
    token_cost: float = 0.0
    """Of a token that agents read or write."""

    def __post_init__(self):
        pt.at_least(0, **vars(self))


def utility(grade: pt.Reward, costs: Costs = Costs()) -> pt.Reward:
    """The reward of an execution. Its parts: correct, edges, agents, tokens, and the adversaries that were heard.

    grade  of the answer against the truth, as if a policy had said it to the query
    """

    def utilities(group: pt.Group) -> list[pt.Score | pt.Invalid]:
        answers = [as_graders_read(one) for one in group]
        return [
            utility_of(one.facts, score, costs) if isinstance(score, pt.Score) else score
            for one, score in zip(group, grade(answers), strict=True)
        ]

    return utilities


def as_graders_read(rollout: pt.Rollout) -> pt.Rollout:
    """The rollout as graders read one: the query, its truth, and the answer as its last reply."""
    query = rollout.task.truth
    task = replace(rollout.task, prompt=query.messages, truth=query.truth)
    reply = pt.Reply(rollout.facts.answer, torch.zeros(0), None)
    return pt.Rollout(task, [pt.Turn(pt.Ask(query.messages), reply)])


def utility_of(found: Execution, correct: pt.Score, costs: Costs) -> pt.Score:
    graph = found.graph
    parts = {"correct": correct.value, "edges": float(graph.edges), "agents": float(len(graph.agents))}
    parts |= {"tokens": float(found.tokens), "adversaries": float(found.adversaries)}
    cost = costs.edge_cost * graph.edges + costs.agent_cost * len(graph.agents) + costs.token_cost * found.tokens
    return pt.Score(correct.value - cost, parts)


def accuracy(grade: pt.Reward) -> pt.Reward:
    """The answer alone, with the same parts: what is reported, and what the published baselines learn from."""
    return utility(grade, Costs(0.0, 0.0, 0.0))
