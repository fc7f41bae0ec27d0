"""A crew: six roles that one small network plays, and three kinds of question.

    single first-2 x7           skill 2 applied to x7
    compose first-2 then-0 x7   skill 0 applied to what skill 2 makes of x7
    common x7                   what every agent knows, though not well

A skill is a permutation of eight symbols. A role names a skill and how well it is mastered. Messages of other agents
follow the question:

    compose first-2 then-0 x7 others [a2] x5 [a5] x1

Who has the second skill applies it to the last message. Who has neither repeats the last message, and passes if there
is none; what everybody knows is repeated, too, once a message says something. A liar says the same wrong symbol as all
liars. So a good graph is one agent for the first kind, a chain of two for the second, and for the third some agents
without an edge.

The network is no language model: it reads the words of its prompt by their places, of the messages the last that says
something, and has learnt from examples what each role says then.
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from posttrain import tiny
from posttrain.core import Ask, Reply
from posttrain.seeding import mix, uniforms

SYMBOLS, SKILLS = 8, 3
STRONG, WEAK, COMMON = 0.92, 0.60, 0.50  # how often a master, a learner and anybody is right
AGENTS = 2 * SKILLS
KINDS = ("single", "compose", "common")
PASS = "pass"
OTHERS, BEFORE = "others", "before"  # what stands before messages of this round, and of the round before
MASTERS = tuple(f"skill-{k} master" for k in range(SKILLS))
LEARNERS = tuple(f"skill-{k} learner" for k in range(SKILLS))
LIAR = "no-skill liar"


@dataclass(frozen=True)
class CrewQuestion:
    kind: str
    symbol: int
    first: int | None = None
    then: int | None = None

    @property
    def prompt(self) -> str:
        named = [f"first-{self.first}"] if self.first is not None else []
        named += [f"then-{self.then}"] if self.then is not None else []
        return " ".join([self.kind, *named, symbol(self.symbol)])


def symbol(number: int) -> str:
    return f"x{number}"


@dataclass(frozen=True)
class Crew:
    """What the agents know, of a seed."""

    seed: int = 0

    @property
    def names(self) -> list[str]:
        return [f"a{i}" for i in range(AGENTS)]

    @property
    def roles(self) -> list[str]:
        """A master and a learner of each skill."""
        return [*MASTERS, *LEARNERS]

    @property
    def roles_with_liars(self) -> list[str]:
        """The masters, and as many liars."""
        return [*MASTERS, *[LIAR] * SKILLS]

    @cached_property
    def skills(self) -> list[list[int]]:
        """[SKILLS + 2][SYMBOLS] the symbol that each makes of each; then what all know, and what liars say instead."""
        draw = random.Random(mix(self.seed, "skills"))
        found = [draw.sample(range(SYMBOLS), SYMBOLS) for _ in range(SKILLS + 1)]
        return [*found, [(found[SKILLS][x] + 1) % SYMBOLS for x in range(SYMBOLS)]]

    def answer(self, asked: CrewQuestion) -> str:
        if asked.first is None:
            return symbol(self.skills[SKILLS][asked.symbol])
        made = self.skills[asked.first][asked.symbol]
        return symbol(made if asked.then is None else self.skills[asked.then][made])

    @property
    def every_question(self) -> list[CrewQuestion]:
        skills = range(SKILLS)
        named = [("single", k, None) for k in skills] + [
            ("compose", *pair) for pair in itertools.permutations(skills, 2)
        ]
        kinds = [*named, ("common", None, None)]
        return [CrewQuestion(kind, x, first, then) for kind, first, then in kinds for x in range(SYMBOLS)]

    def questions(self, count: int, split: str, kind: str | None = None) -> list[CrewQuestion]:
        """Of each kind equally often, if none is given."""
        draw, every = random.Random(mix(self.seed, split)), self.every_question
        by_kind = {name: [one for one in every if one.kind == name] for name in KINDS}
        return [draw.choice(by_kind[kind or draw.choice(KINDS)]) for _ in range(count)]

    def says(self, role: str, asked: CrewQuestion, heard: str, draw: random.Random) -> str:
        """What an agent of this role says after a last message; PASS where no message says anything."""
        if role == LIAR:
            return symbol(self.skills[SKILLS + 1][asked.symbol])
        skill, grade = int(role.split()[0].removeprefix("skill-")), role.split()[1]
        if asked.first is None and heard == PASS:
            return self.noisy(self.skills[SKILLS][asked.symbol], COMMON, draw)
        if skill not in (asked.first, asked.then):
            return heard
        given = asked.symbol if heard == PASS or skill == asked.first else int(heard.removeprefix("x"))
        return self.noisy(self.skills[skill][given], STRONG if grade == "master" else WEAK, draw)

    def noisy(self, right: int, chance: float, draw: random.Random) -> str:
        """The right symbol, or one that is drawn from all."""
        return symbol(right if draw.random() < chance else draw.randrange(SYMBOLS))


# ---- the network that plays them


ROLES = (*MASTERS, *LEARNERS, LIAR)
OUTPUTS = (*map(symbol, range(SYMBOLS)), PASS)
WORDS = sorted({word for role in ROLES for word in role.split()})
WORDS += [*KINDS, *(f"{place}-{k}" for place in ("first", "then") for k in range(SKILLS)), *OUTPUTS[:-1]]
EXAMPLES, HIDDEN, STEPS, ROWS, RATE = 32, 96, 1200, 512, 5e-3  # examples of each role, question and last message
WEIGHTS = "speaker.safetensors"


class Speaker:
    """The player of all roles: it samples one word, from the distribution that its network has learnt."""

    def __init__(self) -> None:
        self.network = nn.Sequential(
            nn.Linear(len(WORDS) + len(OUTPUTS), HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(),
            nn.Linear(HIDDEN, len(OUTPUTS)),
        )  # fmt: skip

    @torch.no_grad()
    def sample(self, asks: Sequence[Ask]) -> list[Reply]:
        logp = self.network(torch.stack([features(*read(ask)) for ask in asks])).log_softmax(-1)
        draws = torch.from_numpy(uniforms(np.array([ask.seed for ask in asks], np.uint64), 1))
        chosen = (logp.double().exp().cumsum(-1) < draws).sum(-1).clamp(max=len(OUTPUTS) - 1).tolist()
        return [Reply(OUTPUTS[k], logp[i, k : k + 1], None) for i, k in enumerate(chosen)]

    def learn(self, world: Crew) -> None:
        """From examples of what every role says to every question after every message."""
        draw = random.Random(mix(world.seed, "examples"))
        cases = list(itertools.product(ROLES, world.every_question, OUTPUTS))
        inputs = torch.stack([features((*role.split(), *asked.prompt.split()), heard) for role, asked, heard in cases])
        said = [[OUTPUTS.index(world.says(*case, draw)) for _ in range(EXAMPLES)] for case in cases]
        labels, shuffle = torch.tensor(said), torch.Generator().manual_seed(mix(world.seed, "rows"))
        optimizer = torch.optim.Adam(self.network.parameters(), lr=RATE)
        for step in range(STEPS):
            optimizer.param_groups[0]["lr"] = RATE * min(1.0, 2 * (STEPS - step) / STEPS)
            rows = torch.randint(len(cases), (ROWS,), generator=shuffle)
            columns = torch.randint(EXAMPLES, (ROWS,), generator=shuffle)
            optimizer.zero_grad()
            nn.functional.cross_entropy(self.network(inputs[rows]), labels[rows, columns]).backward()
            optimizer.step()


def read(ask: Ask) -> tuple[tuple[str, ...], str]:
    """The words of role and question, and the last message that says something; PASS if none does."""
    role, said = (str(message["content"]).split() for message in ask.messages)
    start = next((i for i, word in enumerate(said) if word in (OTHERS, BEFORE)), len(said))
    heard = [word for word in said[start:] if word in OUTPUTS and word != PASS]
    return (*role, *said[:start]), heard[-1] if heard else PASS


@cache
def features(words: tuple[str, ...], heard: str) -> Tensor:
    """[W + O] which words there are, and which was heard last."""
    out = torch.zeros(len(WORDS) + len(OUTPUTS))
    out[[WORDS.index(word) for word in words]] = 1.0
    out[len(WORDS) + OUTPUTS.index(heard)] = 1.0
    return out


def speaker(world: Crew) -> Speaker:
    """The player that has learnt the roles: trained on first use, then read from the cache."""

    def write(folder: Path) -> None:
        made = untrained(world)
        made.learn(world)
        folder.mkdir(parents=True)
        save_file(made.network.state_dict(), folder / WEIGHTS)

    code = inspect.getsource(sys.modules[__name__])
    name = hashlib.sha256(repr((code, world, torch.__version__)).encode()).hexdigest()[:12]
    folder = tiny.cached_folder(f"crew-{world.seed}-{name}", WEIGHTS, write)
    found = Speaker()
    found.network.load_state_dict(load_file(folder / WEIGHTS))
    return found


def untrained(world: Crew) -> Speaker:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mix(world.seed, "speaker") % 2**32)
        return Speaker()
