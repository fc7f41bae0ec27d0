"""A policy over graphs for agents and questions of the user's own: train, evaluate."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor

import posttrain as pt
from posttrain.systems.topology_mas import published_recipe, recipe
from posttrain.systems.topology_mas.baselines import Designer, EdgeLogits, Pruning
from posttrain.systems.topology_mas.embedding import Embedder, embedder
from posttrain.systems.topology_mas.execution import Execution, Query, Team, execution, with_graph
from posttrain.systems.topology_mas.graph import STRUCTURES, named_graph
from posttrain.systems.topology_mas.network import GraphChoices
from posttrain.systems.topology_mas.pool import PoolOptions, profiles, tasks_of, with_profiles
from posttrain.systems.topology_mas.reward import Costs, accuracy, utility

REASON = (
    "a policy over graphs is too small to shard, and its agents, which are not trained, are asked wherever they run"
)
AT_ONCE = 32  # questions that are evaluated together
LINES, MEASURES = "answers.jsonl", "measures.json"
MEASURED = ("correct", "agents", "edges", "tokens", "adversaries")
Drawing: TypeAlias = GraphChoices | EdgeLogits | Designer  # the networks of policies over graphs
Method = Literal["learned", "gptswarm", "agentprune", "g-designer"]


@dataclass(frozen=True)
class GraphOptions:
    """Which policy draws the graphs, and how it learns."""

    method: Method = "learned"
    """learned: selection, structure and edges; or the rule of gptswarm, agentprune (two rounds) or g-designer."""
    samples: int = 8
    """Graphs of one question, compared with one another; the published rules draw one."""
    entropy: float = 0.01
    """Weight of the entropy bonus."""
    hidden: int = 64
    """Width of the network."""
    selection: bool = True
    """Choose who takes part; all do if not."""
    structure: bool = True
    """Choose a structure; every edge is free if not."""
    edges: bool = True
    """Choose among the structure's edges; all are taken if not."""

    def __post_init__(self):
        pt.at_least(2, samples=self.samples)
        pt.at_least(1, hidden=self.hidden)
        pt.at_least(0, entropy=self.entropy)
        for name in ("selection", "structure", "edges"):
            if self.method != "learned" and not getattr(self, name):
                raise ValueError(f"`{name}=False` is an option of `method=learned`; {self.method} has no such stage")

    def network(self, values: Tensor, query: int, rounds: int, seed: int) -> Drawing:
        """For agents of these profiles, [A, F]."""
        agents, features = values.shape
        if self.method == "gptswarm":
            return EdgeLogits(agents, rounds, decisions=True)
        if self.method == "agentprune":
            return EdgeLogits(agents, rounds)
        torch.manual_seed(pt.mix(seed, "graphs") % 2**32)
        if self.method == "g-designer":
            return with_profiles(Designer(agents, features, query, hidden=self.hidden), values)
        stages = {"selection": self.selection, "structure": self.structure, "edges": self.edges}
        return with_profiles(GraphChoices(agents, features, query, self.hidden, rounds, **stages), values)

    def recipe(
        self, network: pt.Choices, grade: pt.Reward, costs: Costs, env: pt.Env, players: Mapping[str, pt.Sampler]
    ) -> pt.Recipe:
        """The published rules learn from correctness alone."""
        right = accuracy(grade)
        if self.method == "learned":
            options: dict[str, Any] = {"samples": self.samples, "entropy": self.entropy, "evaluation": right}
            return recipe(utility(grade, costs), env, players, **options)
        if self.method == "agentprune":
            assert isinstance(network, EdgeLogits)
            return published_recipe(right, env, players, Pruning(network))
        return published_recipe(right, env, players)


@pt.one_process(REASON)
def train(
    pool: PoolOptions,
    task: pt.TaskOptions,
    graphs: GraphOptions,
    costs: Costs,
    run: pt.Run = pt.Run("runs/topology", steps=200, tasks=8, lr=1e-3),
    held_out: tuple[str, ...] = (),
) -> pt.Session:
    """Learn which of your agents should answer a question, and who should read whom.

    held_out  questions that are only evaluated, by their accuracy: FILE, or NAME=FILE
    """
    team, embed = pool.team(), embedder(pool.encoder, pool.device)
    found, tests = questions(task, held_out, embed)
    network = graphs.network(profiles(team, embed), width(found), rounds_of(pool, graphs), run.seed)
    players = {} if run.dry_run else pool.players(team)
    made = graphs.recipe(network, task.reward(), costs, execution(team, network.layout.graph), players)
    return pt.train(pt.DecisionPolicy(network), found, made, run, held_out=tests)


def questions(
    task: pt.TaskOptions, held_out: Sequence[str], embed: Embedder
) -> tuple[list[pt.Task[Query]], dict[str, list[pt.Task[Query]]]]:
    """Those that are trained on, and the held-out ones by name. Raises ValueError for answers that cannot be graded."""
    found, tests = task.tasks(), task.tests(held_out)
    for some in (found, *tests.values()):
        task.check_answers(some)
    return tasks_of(found, embed), {name: tasks_of(some, embed) for name, some in tests.items()}


def width(found: Sequence[pt.Task[Query]]) -> int:
    """Q, numbers of a question."""
    return len(found[0].prompt[0]["content"][-1]["features"]["query"])


def rounds_of(pool: PoolOptions, graphs: GraphOptions) -> int:
    """Raises ValueError for AgentPrune without a second round: it has no temporal edges to prune."""
    if graphs.method == "agentprune" and pool.rounds < 2:
        raise ValueError(f"`rounds={pool.rounds}`: agentprune prunes edges between rounds too; give `rounds=2`")
    if graphs.method == "g-designer" and pool.rounds > 1:
        raise ValueError(f"`rounds={pool.rounds}`: g-designer has one round")
    return pool.rounds


@pt.one_process(REASON)
def evaluate(
    pool: PoolOptions,
    task: pt.TaskOptions,
    output: pt.Output = pt.Output("runs/topology-evaluation"),
    policy: str | None = None,
    structure: str | None = None,
    drawn: bool = False,
) -> Path:
    """Accuracy, agents, edges, tokens and adversaries that were heard, in OUT/measures.json; every answer beside it.

    policy     folder of a trained policy: runs/topology/model
    structure  in its place, one structure for every question: independent, chain, star, tree, layered or full, over
               all agents in the order of their file
    drawn      draw graphs as in training; the likeliest graph of each question if not
    """
    team, embed = pool.team(), embedder(pool.encoder, pool.device)
    found, _ = questions(task, (), embed)
    env, players = environment(team, pool, embed, policy, structure), pool.players(team)
    out, settings = Path(output.out), {"seed": output.seed, **output.settings}
    pt.prepare_folder(out, "evaluation", [LINES, MEASURES], settings, resume=output.resume, overwrite=output.overwrite)
    lines = pt.Lines(out / LINES, output.resume)
    with pt.progress_bar("questions", len(found), output.quiet) as step:
        step(len(lines.found))
        for start in range(len(lines.found), len(found), AT_ONCE):
            some = found[start : start + AT_ONCE]
            options = {"seed": pt.mix(output.seed, start), "temperature": None if drawn else 0.0}
            graded = pt.evaluate({**players, **env.players}, some, accuracy(task.reward()), env.play, **options)
            lines.add(*(line(team, one, mark) for one, mark in zip(graded.rollouts, graded.marks, strict=True)))
            step(len(some))
    write_measures(lines.found, out)
    return out


@dataclass(frozen=True, slots=True)
class Setting:
    """An environment, and the policy that it asks."""

    play: pt.Env
    players: Mapping[str, pt.Sampler]


def environment(team: Team, pool: PoolOptions, embed: Embedder, policy: str | None, structure: str | None) -> Setting:
    """Raises ValueError unless exactly one of the two is given, and for a policy of other agents."""
    if (policy is None) == (structure is None):
        raise ValueError("give either a trained `policy` or a `structure`")
    if structure is not None:
        name = pt.check_choice(structure, STRUCTURES, "structure")
        return Setting(with_graph(team, named_graph(name, range(len(team.agents)), pool.rounds)), {})
    assert policy is not None
    network = cast(Drawing, pt.load_network(policy, GraphChoices, EdgeLogits, Designer, argument="policy"))
    layout = network.layout
    if (layout.agents, layout.rounds) != (len(team.agents), pool.rounds):
        raise ValueError(
            f"`policy={policy}`: it draws graphs of {layout.agents} agents and {layout.rounds} rounds, not of "
            f"{len(team.agents)} and {pool.rounds}"
        )
    if not isinstance(network, EdgeLogits) and not torch.equal(network.profiles, profiles(team, embed)):
        raise ValueError(f"`policy={policy}`: it was trained with other agents, or another `encoder`")
    return Setting(execution(team, layout.graph), {"policy": pt.DecisionPolicy(network)})


def line(team: Team, rollout: pt.Rollout, mark: pt.Score | pt.Invalid) -> dict[str, Any]:
    """What became of a question."""
    about: dict[str, Any] = {"id": rollout.task.key}
    if isinstance(mark, pt.Invalid):
        return {**about, "invalid": mark.reason}
    found: Execution = rollout.facts
    names = [one.name for one in team.agents]
    edges = [[names[i], names[j]] for i, j in sorted(found.graph.spatial)]
    about |= {"answer": found.answer, "agents": [names[i] for i in found.graph.agents], "spatial": edges}
    about |= {"temporal": [[names[i], names[j]] for i, j in sorted(found.graph.temporal)]}
    about |= {"outputs": [[names[i], text] for i, text in found.outputs]}
    return {**about, "measures": {name: mark.parts[name] for name in MEASURED}}


def write_measures(lines: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Raises ValueError when not one question could be answered."""
    answered = [one["measures"] for one in lines if "measures" in one]
    if not answered:
        raise ValueError(f"not one of {len(lines)} questions could be answered; {out / LINES} says why")
    found = {name: statistics.fmean(one[name] for one in answered) for name in MEASURED}
    pt.write_json(out / MEASURES, {**found, "questions": len(answered), "invalid": len(lines) - len(answered)})
    for name, value in found.items():
        print(f"{name:>12} {value:9.3f}")
    if len(answered) < len(lines):
        print(f"{len(lines) - len(answered)} of {len(lines)} questions could not be answered, and are left out")


@pt.one_process("it trains a policy over graphs in seconds")
def laptop(
    costs: Costs,
    liars: bool = False,
    run: pt.Run = pt.Run("runs/topology", steps=220, tasks=16, lr=3e-3),
) -> pt.Session:
    """Six roles of a small network, and questions for one agent, for a chain of two, and for a vote.

    liars  half of the agents say what is wrong
    """
    from posttrain.lab.world.crew import KINDS, Crew, speaker
    from posttrain.systems.topology_mas import lab

    world = Crew(run.seed)
    team, players = lab.crew(world, liars), {"agents": speaker(world)}
    network = lab.network(world, team)
    env, right = execution(team, network.layout.graph), accuracy(pt.grade.exact)
    options: dict[str, Any] = {"samples": lab.SAMPLES, "entropy": lab.ENTROPY, "evaluation": right}
    made = recipe(utility(pt.grade.exact, costs), env, players, **options)
    tests = {kind: lab.tasks(world, 48, f"test {kind}", kind) for kind in KINDS}
    return pt.train(pt.DecisionPolicy(network), lab.tasks(world, 2000, "training"), made, run, held_out=tests)


STAGES = {"laptop": laptop, "train": train, "evaluate": evaluate}
