"""Agents and questions of the user's own, as a team that executes graphs and tasks that the policy is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import posttrain as pt
from posttrain.chat import readable_content
from posttrain.grade.stated import stated_answer
from posttrain.records import Place, Record, column, records
from posttrain.systems.topology_mas.embedding import Embedder
from posttrain.systems.topology_mas.execution import REFEREE, Agent, Query, Rule, Team

KNOWN = ("name", "role", "model", "adversary")


def agents(file: str) -> list[Agent]:
    """The agents of a JSON, JSONL or CSV file: `name`, `role`, `model`, and `adversary` if it is one.

    Raises ValueError naming file and line for what is missing, a name that comes twice, and a column that is not known.
    """
    found: dict[str, Agent] = {}
    for place, record in records(file):
        one = agent(record, place)
        if one.name in found:
            raise ValueError(f"{place}: there are two agents named {one.name!r}")
        found[one.name] = one
    return list(found.values())


def agent(record: Record, place: Place) -> Agent:
    if unknown := [name for name in record if name not in KNOWN]:
        raise ValueError(f"{place}: {unknown[0]!r} is nothing that an agent has, which is {', '.join(KNOWN)}")
    name, role, model = (str(column(record, one, place, one)).strip() for one in KNOWN[:3])
    lies = record.get("adversary") or False
    if lies not in (True, False, "true", "false"):
        raise ValueError(f"{place}: `adversary` is {lies!r}, neither true nor false")
    return Agent(name, role, model, lies in (True, "true"))


@dataclass(frozen=True)
class PoolOptions:
    """The agents, and how their outputs become an answer."""

    agents: str
    """JSON, JSONL or CSV file of the agents: `name`, `role` (its system message), `model` (a chat server, http://...,
    with #MODEL if it has several, a Hub id or a folder), and `adversary`: true for one that is to be found out. One
    that is named referee decides with `rule=refer`."""
    rule: Rule = "vote"
    """vote: the commonest answer of the agents that nobody reads; last: the one that comes last; refer: a referee."""
    rounds: int = 1
    """Rounds; with more than one there are edges from one to the next."""
    max_new: int = 512
    """Most tokens of what an agent says."""
    temperature: float = 1.0
    """Of what agents say."""
    template: str | None = None
    """Chat template for a tokenizer without one: chatml, plain, or a Jinja file."""
    tokenizer: str | None = None
    """Hub id or folder of the tokenizer by which tokens are counted, whatever the agents' own; words if not given."""
    encoder: str = "sentence-transformers/all-MiniLM-L6-v2"
    """Of roles and queries: a Hub id, a folder, or hashed:WIDTH (a bag of words)."""
    device: str | None = None
    """cpu, cuda, cuda:1, mps; the best one here if not given."""

    def __post_init__(self):
        pt.at_least(1, rounds=self.rounds, max_new=self.max_new)
        pt.at_least(0, temperature=self.temperature)

    def team(self) -> Team:
        """Raises ValueError for a pool of fewer than two agents."""
        found = agents(self.agents)
        pool = [one for one in found if one.name != REFEREE.name]
        if len(pool) < 2:
            raise ValueError(f"`agents={self.agents}`: a graph needs two agents at least, besides a referee")
        named = [one for one in found if one.name == REFEREE.name]
        referee = named[0] if named else replace(REFEREE, model=pool[0].model)
        return Team(pool, self.rule, referee, answer=vote, length=self.length())

    def length(self) -> Callable[[str], int]:
        """Tokens of a text."""
        if self.tokenizer is None:
            return lambda text: len(text.split())
        from posttrain.policy.pretrained import checkpoint_path, load_tokenizer

        tokenizer = load_tokenizer(checkpoint_path(self.tokenizer))
        return lambda text: len(tokenizer.encode(text, add_special_tokens=False))

    def players(self, team: Team) -> dict[str, pt.Sampler]:
        """The models by name, each once. Raises ValueError or ServerError when one cannot be loaded or reached."""
        options = pt.ModelOptions(
            template=self.template, max_new=self.max_new, temperature=self.temperature, device=self.device
        )
        wanted = [one.model for one in team.agents] + [team.referee.model] * (team.rule == "refer")
        return {name: options.player(name) for name in dict.fromkeys(wanted)}


def vote(text: str) -> str | None:
    """What of an output is voted on: the answer that it states, else all of it without case; None if it is empty."""
    found = stated_answer(text)
    return (found.text if found else " ".join(text.split()).casefold()) or None


def profiles(team: Team, embedder: Embedder) -> Tensor:
    """[A, F] of names and roles."""
    return embedder.embed([f"{one.name} {one.role}" for one in team.agents])


def tasks_of(found: Iterable[pt.Task[Any]], embedder: Embedder) -> list[pt.Task[Query]]:
    """Each task as the policy is shown it: the embedding of its prompt as `query`, and the prompt for the agents."""
    tasks = list(found)
    texts = ["\n".join(readable_content(message["content"]) for message in one.prompt) for one in tasks]
    vectors: Sequence[Any] = embedder.embed(texts).tolist() if texts else []
    return [
        replace(one, prompt=(pt.show(text, query=vector),), truth=Query(one.prompt, one.truth))
        for one, text, vector in zip(tasks, texts, vectors, strict=True)
    ]


def with_profiles(network: Any, values: Tensor) -> Any:
    """The network with these profiles of its agents."""
    with torch.no_grad():
        network.profiles.copy_(values)
    return network
