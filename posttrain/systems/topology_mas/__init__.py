"""Topology of multi-agent systems: agents, structure and edges as one policy over graphs (arXiv:2505.22467).

The paper is a position and proposes no single algorithm; this is an instantiation. A small network chooses who takes
part, what structure they form and which edges it has, for every query; the graph is executed by language models, and
what it earns is the answer's correctness less the costs of edges, agents and tokens.

graph        graphs that are acyclic by construction, and the structures with a name
network      the policy over graphs: selection, structure profile, order, edges
execution    the environment: the policy decides, then agents speak level by level, round by round
reward       correctness less costs
baselines    the rules of GPTSwarm, AgentPrune and G-Designer, under the same update
embedding    what the policy knows of roles and queries
pool         agents and questions of the user's own
"""

from __future__ import annotations

from collections.abc import Mapping

import posttrain as pt

__all__ = ["PARTS", "published_recipe", "recipe"]


def recipe(
    reward: pt.Reward,
    env: pt.Env,
    players: Mapping[str, pt.Sampler],
    *,
    samples: int = 8,
    entropy: float = 0.01,
    evaluation: pt.Reward | None = None,
) -> pt.Recipe:
    """REINFORCE with the mean over several graphs of the same query as its baseline, and an entropy bonus.

    players  the models of the agents, by name
    The rewards of a group are not divided by their deviation: where all graphs are right, costs alone would count as
    much as a right answer does elsewhere. All numbers are ours.
    """
    loss = pt.total((1.0, pt.clipped()), (entropy, pt.entropy_bonus)) if entropy else pt.clipped()
    options = {"samples": samples, "others": dict(players), "evaluation": evaluation}
    return pt.Recipe(reward, env, advantage=pt.centred, loss=loss, reduce=pt.constant_length(1), **options)


def published_recipe(
    reward: pt.Reward,
    env: pt.Env,
    players: Mapping[str, pt.Sampler],
    advantage: pt.Advantage = pt.raw,
    evaluation: pt.Reward | None = None,
) -> pt.Recipe:
    """The loss of the three baselines, -mean(log P(G) U): one graph of each query, and no baseline."""
    options = {"samples": 1, "others": dict(players), "evaluation": evaluation}
    return pt.Recipe(reward, env, advantage=advantage, reduce=pt.constant_length(1), **options)


PARTS: Mapping[
    str, pt.Part
] = {}  # the idea is a policy that makes graphs: a recipe of a policy that speaks has no place
