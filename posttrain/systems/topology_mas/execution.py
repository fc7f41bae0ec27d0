"""Executing a graph: the environment in which the policy decides first, and the agents then speak, round by round.

An agent is a role and a model that plays it. Those of one level of the graph are asked side by side, and agents of one
model in one batch. Each sees the query, what those it reads have said, and with temporal edges what they said in the
round before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import posttrain as pt
from posttrain.chat import readable_content
from posttrain.systems.topology_mas.graph import Graph

Rule = Literal["vote", "last", "refer"]


@dataclass(frozen=True, slots=True)
class Agent:
    """A member of the pool."""

    name: str
    role: str  # what its model is told it is, as the system's message
    model: str = "agents"  # the player that speaks for it
    adversary: bool = False


REFEREE = Agent("referee", "You read what several agents have answered, and give the answer that is right.")


@dataclass(frozen=True, slots=True)
class Query:
    """What the agents are asked, and the truth that a grader compares their answer with."""

    messages: tuple[pt.Message, ...]
    truth: Any


@dataclass(frozen=True, slots=True)
class Wording:
    """What stands around the messages of others. The words are ours."""

    others: str = "The other agents say:"
    before: str = "In the round before, the agents said:"
    yourself: str = "you"
    between: str = "\n\n"


@dataclass(frozen=True, slots=True)
class Execution:
    """What became of an episode."""

    graph: Graph
    answer: str  # empty: nobody decided
    outputs: tuple[tuple[int, str], ...]  # [calls] who said what, in the order of the rounds
    tokens_in: int
    tokens_out: int
    adversaries: int  # adversaries that were read or that decided

    @property
    def tokens(self) -> int:
        return self.tokens_in + self.tokens_out


@dataclass(frozen=True, slots=True)
class Team:
    """A pool of agents and how their outputs are made an answer.

    rule     vote: the commonest output among those that decide, the first of several; last: the one that comes last;
             refer: the referee reads all of them and answers
    answer   what of an output is voted on; None: it does not vote
    length   tokens of a text; the same for every model, so that costs can be compared
    """

    agents: Sequence[Agent]
    rule: Rule = "vote"
    referee: Agent = REFEREE
    wording: Wording = Wording()
    answer: Callable[[str], Hashable | None] = str.strip
    length: Callable[[str], int] = lambda text: len(text.split())

    def messages(self, agent: Agent, query: Query, others: Sequence[str], before: Sequence[str]) -> list[pt.Message]:
        """The prompt of an agent: its role, and the query with what it reads at the end of its last message."""
        *earlier, last = query.messages
        said = [readable_content(last["content"])]
        said += ["\n".join([self.wording.before, *before])] if before else []
        said += ["\n".join([self.wording.others, *others])] if others else []
        return [pt.system(agent.role), *earlier, pt.user(self.wording.between.join(said))]


def execution(team: Team, graph_of: Callable[[Sequence[int]], Graph]) -> pt.Env:
    """The environment. A task shows its features to the policy; its truth is a `Query`, the facts are an `Execution`.

    graph_of  the graph that a reply of the policy stands for
    """

    def play(task: pt.Task[Query]) -> pt.Episode:
        reply = yield from pt.ask(task.prompt)
        return (yield from execute(team, graph_of(reply.content), task.truth))

    return play


def with_graph(team: Team, graph: Graph) -> pt.Env:
    """The environment in which nothing is decided: every query is given to the same graph."""

    def play(task: pt.Task[Query]) -> pt.Episode:
        return (yield from execute(team, graph, task.truth))

    return play


def execute(team: Team, graph: Graph, query: Query) -> Generator[list[pt.Ask], list[pt.Reply], Execution]:
    """Run all rounds, level by level, and decide."""
    said: dict[int, str] = {}
    heard: list[tuple[int, str]] = []
    tokens_in = tokens_out = 0

    def lines(speakers: Sequence[int], texts: Mapping[int, str], reader: int | None = None) -> list[str]:
        names = [team.wording.yourself if i == reader else team.agents[i].name for i in speakers if i in texts]
        return [f"[{name}] {texts[i]}" for name, i in zip(names, (i for i in speakers if i in texts), strict=True)]

    for _ in range(graph.rounds):
        before, said = said, {}
        for level in graph.levels:
            asks = []
            for j in level:
                others = lines(graph.read_by(j, graph.spatial), said)
                earlier = lines(graph.read_by(j, graph.temporal), before, j)
                prompt = team.messages(team.agents[j], query, others, earlier)
                asks.append(pt.Ask(tuple(prompt), team.agents[j].model))
            for j, ask, reply in zip(level, asks, (yield from pt.ask_all(asks)), strict=True):
                said[j] = str(reply.content)
                heard.append((j, said[j]))
                tokens_in += sum(team.length(str(message["content"])) for message in ask.messages)
                tokens_out += team.length(said[j])
    votes = [said[i] for i in graph.deciders]
    if team.rule == "refer":
        prompt = team.messages(team.referee, query, lines(graph.deciders, said), [])
        verdict = yield from pt.ask(prompt, team.referee.model)
        tokens_in += sum(team.length(str(message["content"])) for message in prompt)
        tokens_out += team.length(str(verdict.content))
        votes = [str(verdict.content)]
    answer = commonest(votes, team.answer) if team.rule == "vote" else "".join(votes[-1:])
    return Execution(graph, answer, tuple(heard), tokens_in, tokens_out, count_adversaries(team, graph))


def commonest(votes: Sequence[str], answer: Callable[[str], Hashable | None]) -> str:
    """The first of the outputs whose answer is given most often; empty if none has one."""
    answers = [answer(vote) for vote in votes]
    counts = Counter(found for found in answers if found is not None)
    if not counts:
        return ""
    return votes[answers.index(counts.most_common(1)[0][0])]


def count_adversaries(team: Team, graph: Graph) -> int:
    """Adversaries that an agent reads or that decide."""
    heard = {i for i, _ in graph.spatial | graph.temporal} | set(graph.deciders)
    return sum(team.agents[i].adversary for i in heard)
