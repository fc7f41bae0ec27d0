"""A process that plays: it takes the newest weights, plays a task, grades the group, and hands it over."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from queue import SimpleQueue
from threading import Lock
from typing import Any, TypeAlias, cast

from posttrain.advantage import raw
from posttrain.core import Ask, Group, Invalid, Metrics, Reply, Sampler, Score, StreamingSampler, Task
from posttrain.episode import indexed_replies, ordered_replies
from posttrain.group import GradedGroup, play_and_grade
from posttrain.policy.text import TextPolicy
from posttrain.recipe import Recipe
from posttrain.sampler.weights import Engine, Twin, Weights, synchronise

Build: TypeAlias = "Callable[[], tuple[TextPolicy, Recipe]]"  # what every process makes for itself


@dataclass(frozen=True, slots=True)
class Draw:
    """A task to be played, and what its draws depend on: the same whoever plays it, and however often."""

    task: Task
    step: int  # of the run that it is drawn for
    attempt: int  # 0, or the round in which it replaces a group that was not admitted
    place: int  # among the tasks of its step and attempt
    seed: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """A group as it was played."""

    graded: GradedGroup
    metrics: Metrics


class GroupInterrupted(Exception):
    """The learner no longer wants the group that was being played."""


class Player:
    """Engines with the recipe's environment and reward. Made in a process of its own, by `build`.

    kind      "policy": the policy itself, in this process; "vllm": a vLLM server that it starts
    at_once   groups played side by side, in threads: by as many copies of the policy, or by the one server
    """

    def __init__(self, build: Build, kind: str = "policy", options: Mapping[str, Any] | None = None, at_once: int = 1):
        policy, recipe = build()
        self.recipe = replace(recipe, reference=None, advantage=raw)  # those are the learner's, and large
        self.free: SimpleQueue[Engine] = SimpleQueue()
        self.stack, self.lock, self.grading = ExitStack(), Lock(), Lock()
        if kind == "vllm":
            from posttrain.sampler.vllm import vllm

            policy.model.to("cpu")  # it renders prompts and reads replies; the GPU is vLLM's
            engine = self.stack.enter_context(vllm(policy, options=options, at_once=256, shared=False))
            engines: list[Engine] = [engine] * at_once
        else:
            engines = [Twin(policy), *(Twin(build()[0]) for _ in range(at_once - 1))]
        for engine in engines:
            self.free.put(engine)
        self.broken: set[int] = set()

    def play(self, number: int, draw: Draw, weights: Callable[[], Weights], version: int) -> Outcome:
        """Raises SyncError when the weights did not arrive, Interrupted after `interrupt(number)`."""
        engine = self.free.get()
        try:
            with self.lock:
                gap = synchronise(engine, weights()) if engine.version < version else {}
            players = {"policy": self.interruptible(engine, number), **self.recipe.others}
            [graded], seconds = play_and_grade(
                [draw.task], self.recipe.env, self.grade, players, self.recipe.samples, draw.seed, [draw.place]
            )
        finally:
            self.broken.discard(number)
            self.free.put(engine)
        return Outcome(graded, seconds | gap)

    def grade(self, group: Group) -> Sequence[Score | Invalid]:
        """The reward, one group at a time: it may remember."""
        with self.grading:
            return self.recipe.reward(group)

    def interrupt(self, number: int) -> None:
        self.broken.add(number)

    def interruptible(self, engine: Engine, number: int) -> Sampler:
        """An engine that raises Interrupted at its next reply once the group is not wanted."""
        watch = InterruptibleSampler(engine, lambda: number in self.broken)
        at_once = getattr(engine, "at_once", 0)
        return cast(Sampler, InterruptibleServer(watch, at_once)) if at_once else watch


@dataclass(frozen=True, slots=True)
class InterruptibleSampler:
    """A sampler that looks, before each of its replies, whether anybody still wants them."""

    engine: Engine
    unwanted: Callable[[], bool]

    def sample(self, asks: Sequence[Ask]) -> list[Reply]:
        return ordered_replies(self.stream(asks))

    def stream(self, asks: Sequence[Ask]) -> Iterator[tuple[int, Reply]]:
        sampler = self.engine.policy if isinstance(self.engine, Twin) else self.engine
        for found in sampler.stream(asks) if isinstance(sampler, StreamingSampler) else indexed_replies(sampler, asks):
            if self.unwanted():
                raise GroupInterrupted
            yield found


@dataclass(frozen=True, slots=True)
class InterruptibleServer:
    """The same for an engine that answers from many threads."""

    watched: InterruptibleSampler
    at_once: int

    def sample(self, asks: Sequence[Ask]) -> list[Reply]:
        return self.watched.sample(asks)
