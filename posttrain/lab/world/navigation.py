"""A walk through states: from the signs on the way one must infer the actions, and carry them out.

    s0 p0 c1 p3 c0 p2 c4 p1 :   ->   a2 s4 a0 s1 a3 s1      k = 3 actions

The move p0 -> p3 names one action, from a permutation for every sign: inferring it is to plan. The action leads from
one state to the next, by a table: that is to execute. The context c is drawn by the action, a spurious cue. In the
demonstrations actions follow a prior of the state, Dirichlet(alpha), and contexts of the action, Dirichlet(beta); in
problems for reinforcement and in tests both are uniform: the cue is worth nothing, and rare pairs of state and action
are as likely as any. The published task (arXiv:2505.22756) with a word for a number and its letter together.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from posttrain.core import Rollout, Task
from posttrain.data import Demonstration
from posttrain.lab.world.words import demonstration_of, task
from posttrain.seeding import mix


@dataclass(frozen=True)
class Walk:
    """A problem: the states, actions, signs and contexts on the way."""

    states: tuple[int, ...]  # [k + 1]
    actions: tuple[int, ...]  # [k]
    signs: tuple[int, ...]  # [k + 1]
    contexts: tuple[int, ...]  # [k]

    @property
    def prompt(self) -> str:
        way = " ".join(f"c{c} p{p}" for c, p in zip(self.contexts, self.signs[1:], strict=True))
        return f"s{self.states[0]} p{self.signs[0]} {way} :"

    @property
    def reply(self) -> str:
        return " ".join(f"a{a} s{s}" for a, s in zip(self.actions, self.states[1:], strict=True))


@dataclass(frozen=True)
class Navigation:
    """`symbols` of every kind, `length` actions, `taught` different demonstrations."""

    seed: int = 0
    alpha: float = 0.3
    beta: float = 0.3
    symbols: int = 5
    length: int = 3
    taught: int = 12_000

    @property
    def longest(self) -> int:
        return 2 * self.length + 1

    @property
    def vocabulary(self) -> list[str]:
        return [f"{letter}{i}" for letter in "spca" for i in range(self.symbols)] + [":"]

    @cached_property
    def tables(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """next state [s, a], next sign [p, a], prior of actions [s, a], prior of contexts [a, c]."""
        draw, n = np.random.default_rng(mix(self.seed, "tables")), self.symbols
        return (
            draw.integers(0, n, (n, n)),
            np.stack([draw.permutation(n) for _ in range(n)]),
            draw.dirichlet([self.alpha] * n, n),
            draw.dirichlet([self.beta] * n, n),
        )

    def walk(self, draw: random.Random, natural: bool) -> Walk:
        follow, sign, actions, contexts = self.tables
        n = range(self.symbols)
        states, signs = [draw.randrange(self.symbols)], [draw.randrange(self.symbols)]
        done: list[int] = []
        seen: list[int] = []
        for _ in range(self.length):
            action = draw.choices(n, actions[states[-1]])[0] if natural else draw.randrange(self.symbols)
            seen.append(draw.choices(n, contexts[action])[0] if natural else draw.randrange(self.symbols))
            done.append(action)
            states.append(int(follow[states[-1], action]))
            signs.append(int(sign[signs[-1], action]))
        return Walk(tuple(states), tuple(done), tuple(signs), tuple(seen))

    def demonstration(self, draw: random.Random) -> Demonstration:
        walk = self.walk(random.Random(mix(self.seed, "taught", draw.randrange(self.taught))), natural=True)
        return demonstration_of(walk.prompt, walk.reply)

    def problems(self, count: int, split: str) -> list[Task]:
        """Uniform actions and contexts; every split has a stream of its own, whatever the size of the others."""
        walks = [self.walk(random.Random(mix(self.seed, split, i)), natural=False) for i in range(count)]
        return [task(f"{split}-{i}", walk.prompt, walk) for i, walk in enumerate(walks)]

    def expected_counts(self) -> np.ndarray:
        """[s, a] how often the demonstrations hold each pair of state and action."""
        counts: Counter[tuple[int, int]] = Counter()
        for i in range(self.taught):
            walk = self.walk(random.Random(mix(self.seed, "taught", i)), natural=True)
            counts.update(zip(walk.states[:-1], walk.actions, strict=True))
        return np.array([[counts[s, a] for a in range(self.symbols)] for s in range(self.symbols)])

    def out_of_reach(self, tasks: list[Task], least: int = 10) -> float:
        """The share of problems with a pair of state and action that was shown fewer than `least` times."""
        counts = self.expected_counts()
        pairs = [zip(task.truth.states[:-1], task.truth.actions, strict=True) for task in tasks]
        return float(np.mean([any(counts[s, a] < least for s, a in of_one) for of_one in pairs]))

    # ---- what a reply got right

    def parse(self, text: str) -> list[tuple[int, int]] | None:
        """(action, state) after action; None when the reply is not of that form."""
        words = text.split()
        formed = len(words) == 2 * self.length and all(
            word[0] == "as"[i % 2] and word[1:].isdigit() for i, word in enumerate(words)
        )
        numbers = [int(word[1:]) for word in words] if formed else []
        return list(zip(numbers[::2], numbers[1::2], strict=True)) if formed else None

    def plan_is_right(self, rollout: Rollout) -> float:
        """Plan: every action is the right one."""
        steps = self.parse(rollout.text)
        return float(steps is not None and tuple(a for a, _ in steps) == rollout.task.truth.actions)

    def execution_is_right(self, rollout: Rollout) -> float:
        """Execute: every state follows from the one before by the action that was named, right or wrong."""
        steps, state = self.parse(rollout.text), rollout.task.truth.states[0]
        if steps is None:
            return 0.0
        for action, reached in steps:
            if int(self.tables[0][state, action]) != reached:
                return 0.0
            state = reached
        return 1.0


def is_right(rollout: Rollout) -> float:
    """The whole answer, not just the last state: that would let wrong plans pass."""
    return float(rollout.text.strip() == rollout.task.truth.reply)
