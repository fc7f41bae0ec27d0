"""Episodes: environments that ask for replies and know nothing of how they are made.

An environment is a generator. It yields asks, is sent replies, and returns its facts:

    def guess(task):
        messages = [*task.prompt]
        for _ in range(10):
            reply = yield from ask(messages)
            messages += [assistant(reply), user(hint(reply.content, task.truth))]
            if reply.content == task.truth:
                return True
        return False

No model is needed to test it: drive it by hand with `next` and `.send`.
"""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from posttrain.background import prefetch
from posttrain.concurrency import results_as_completed
from posttrain.core import (
    Ask,
    Env,
    Episode,
    EpisodeFailed,
    Failure,
    Group,
    Message,
    RemoteSampler,
    Reply,
    Rollout,
    Sampler,
    StreamingSampler,
    Task,
    Turn,
)
from posttrain.deadline import CallLimit, DeadlinePassed, deadline
from posttrain.seeding import mix

if TYPE_CHECKING:
    from posttrain.tools import ToolCall


DEADLINE_S = 1800.0  # of an episode that is played beside others, or of one move of an environment


def user(content: Any) -> Message:
    """What the user, or the environment, says."""
    return {"role": "user", "content": content}


def system(content: Any) -> Message:
    """Instructions that stand before a conversation."""
    return {"role": "system", "content": content}


def tool(content: Any, call: ToolCall | None = None) -> Message:
    """What a tool returned to `call`: text, or parts of a message, as they are, and anything else as JSON."""
    parts = isinstance(content, list) and bool(content) and all(isinstance(p, Mapping) and "type" in p for p in content)
    said = content if parts or isinstance(content, str) else json.dumps(content)
    answered = {"name": call.name, "tool_call_id": call.id} if call else {}
    return cast(Message, {"role": "tool", "content": said, **answered})


def assistant(said: Reply | str) -> Message:
    """What was said. Give the reply itself, and the next prompt continues its very tokens; a string is tokenized."""
    if isinstance(said, Reply):
        return {"role": "assistant", "content": said.content, "reply": said}
    return {"role": "assistant", "content": said}


def ask(messages: Sequence[Message], who: str = "policy", **options: Any) -> Generator[list[Ask], list[Reply], Reply]:
    """Ask one player for one reply; `options` are those of `Ask` (temperature, max_new, stop)."""
    [reply] = yield [Ask(tuple(messages), who, **options)]
    return reply


def ask_all(asks: Sequence[Ask]) -> Generator[list[Ask], list[Reply], list[Reply]]:
    """Ask for several replies at once, of one player or of several."""
    return (yield list(asks))


def single_turn(task: Task) -> Episode:
    """Ask for one reply to the task's prompt."""
    yield from ask(task.prompt)


def decoded_with(env: Env, temperature: float | None = None, max_new: int | None = None) -> Env:
    """The environment with this temperature and length limit in the policy's asks that name none."""

    def wrapped(task: Task) -> Episode:
        episode = env(task)
        try:
            asks = next(episode)
            while True:
                replies = yield [with_defaults(ask, temperature, max_new) for ask in asks]
                asks = episode.send(replies)
        except StopIteration as over:
            return over.value

    return wrapped


def with_defaults(ask: Ask, temperature: float | None, max_new: int | None) -> Ask:
    if ask.who != "policy":
        return ask
    warm = temperature if ask.temperature is None else ask.temperature
    return replace(ask, temperature=warm, max_new=max_new if ask.max_new is None else ask.max_new)


def play(
    tasks: Sequence[Task],
    env: Env,
    samplers: Mapping[str, Sampler],
    seeds: Sequence[int] = (),
    ended: Callable[[int, Rollout], None] = lambda i, rollout: None,
) -> list[Rollout]:
    """Play one episode per task, in lock step: every round is one batch per sampler.

    An episode goes on, and is handed to `ended` when it is over, while the sampler is at the replies of others. One
    that a server fails, that raises `EpisodeFailed`, or whose environment takes longer than `DEADLINE_S` between two
    asks, has `Failure` as its facts and harms no other.
    Episode i draws from `seeds[i]` (its index when none are given), whatever else is played beside it.
    Raises ValueError when an episode asks a player that is not there, TypeError when `env` is not a generator.
    """
    rollouts = [Rollout(task, []) for task in tasks]
    episodes = [start_episode(env, task) for task in tasks]
    asks_made = [0] * len(tasks)
    wanted: dict[int, list[Ask]] = {}

    limit = CallLimit(DEADLINE_S, f"the environment {environment_name(env)}")

    def advance(i: int, move: Callable[[], list[Ask]]) -> None:
        try:
            asks = moved(move, limit)
        except (StopIteration, EpisodeFailed) as over:
            rollouts[i].facts = over.value if isinstance(over, StopIteration) else failure(over)
            ended(i, rollouts[i])
            return
        except SystemExit as error:  # it would end the run as if it were done
            raise RuntimeError(f"the environment raised {error!r} in an episode of task {tasks[i].key!r}") from error
        seed = seeds[i] if seeds else i
        wanted[i] = [replace(ask, seed=mix(seed, asks_made[i] + j)) for j, ask in enumerate(asks)]
        asks_made[i] += len(asks)

    for i, episode in enumerate(episodes):
        advance(i, partial(next, episode))
    while wanted:
        asked, wanted = wanted, {}
        for i, replies in replies_by_episode(asked, samplers):
            rollouts[i].turns += [
                Turn(ask, reply) for ask, reply in zip(asked[i], replies, strict=True) if ask.who == "policy"
            ]
            advance(i, partial(next_asks, episodes[i], replies))
    return rollouts


def play_concurrently(
    tasks: Sequence[Task],
    env: Env,
    samplers: Mapping[str, Sampler],
    seeds: Sequence[int] = (),
    ended: Callable[[int, Rollout], None] = lambda i, rollout: None,
    *,
    at_once: int = 256,
    deadline_s: float = DEADLINE_S,
    retries: int = 1,
) -> list[Rollout]:
    """As `play`, for samplers that answer side by side: no episode waits for another, `at_once` are under way.

    Each is begun again up to `retries` times when a server fails or it raises `EpisodeFailed`; one that still fails, or
    takes longer than `deadline_s`, has `Failure` as its facts and harms no other. Anything else that an environment
    raises is a mistake and is raised here, with the task's key. Rollouts come back in the order of the tasks.
    """
    shared = {who: one if isinstance(one, RemoteSampler) else LockedSampler(one) for who, one in samplers.items()}
    rollouts = [Rollout(task, []) for task in tasks]

    def attempt(i: int) -> Rollout:
        return play_alone(tasks[i], env, shared, seeds[i] if seeds else i)

    passing = (EpisodeFailed, ConnectionError, TimeoutError)
    for i, found in results_as_completed(attempt, len(tasks), at_once, deadline_s, retries, passing):
        if isinstance(found, Rollout):
            rollouts[i] = found
        elif isinstance(found, passing):
            rollouts[i].facts = failure(found)
        else:
            found.add_note(f"raised by the episode of task {tasks[i].key!r}")
            raise found
        ended(i, rollouts[i])
    return rollouts


def play_alone(task: Task, env: Env, samplers: Mapping[str, Sampler], seed: int) -> Rollout:
    """One episode, from its beginning to its end."""
    rollout, asked = Rollout(task, []), 0
    episode = start_episode(env, task)
    limit = CallLimit(DEADLINE_S, f"the environment {environment_name(env)}")
    try:
        asks = moved(partial(next, episode), limit)
        while True:
            asks = [replace(ask, seed=mix(seed, asked + j)) for j, ask in enumerate(asks)]
            asked += len(asks)
            replies = next((replies for _, replies in replies_by_episode({0: asks}, samplers)))
            rollout.turns += [Turn(ask, got) for ask, got in zip(asks, replies, strict=True) if ask.who == "policy"]
            asks = moved(partial(next_asks, episode, replies), limit)
    except StopIteration as stop:
        rollout.facts = stop.value
    return rollout


def next_asks(episode: Episode, replies: list[Reply]) -> list[Ask]:
    """What the episode asks next. Raises EpisodeFailed, and ends it, when a player could not answer."""
    for reply in replies:
        if isinstance(reply.content, Failure):
            episode.close()
            raise EpisodeFailed(reply.content.reason)
    return episode.send(replies)


def moved(move: Callable[[], list[Ask]], limit: CallLimit) -> list[Ask]:
    """What an episode asks after a move of its environment. Raises EpisodeFailed for one that takes too long."""
    try:
        with deadline(limit):
            return move()
    except DeadlinePassed as passed:
        if passed.limit is not limit:
            raise
        raise EpisodeFailed(limit.message) from passed


def environment_name(env: Env) -> str:
    return getattr(env, "__name__", repr(env))


def failure(error: Exception) -> Failure:
    return Failure(f"{type(error).__name__}: {error}")


class LockedSampler:
    """A sampler that answers one thread at a time, among others that need not."""

    def __init__(self, sampler: Sampler):
        self.sampler, self.lock = sampler, threading.Lock()

    def sample(self, asks: Sequence[Ask]) -> list[Reply]:
        with self.lock:
            return self.sampler.sample(asks)


def start_episode(env: Env, task: Task) -> Episode:
    episode = env(task)
    if not isinstance(episode, Generator):
        raise TypeError(
            f"the environment {environment_name(env)} returned {type(episode).__name__} for task {task.key!r}, not a "
            "generator: write `reply = yield from ask(messages)` in it, not `reply = ask(messages)`"
        )
    return episode


def replies_by_episode(
    asked: Mapping[int, list[Ask]], samplers: Mapping[str, Sampler]
) -> Iterator[tuple[int, list[Reply]]]:
    """Each episode with the replies to its asks, as soon as it has all of them.

    Each sampler is called once, with all that is addressed to it; one that can `stream` samples in a thread of its own.
    """
    mail: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for i, asks in asked.items():
        for j, ask in enumerate(asks):
            mail[ask.who].append((i, j))
    for who in mail:
        if who not in samplers:
            raise ValueError(
                f"an episode asked {who!r}, but only {sorted(samplers)} are playing: name it in `Recipe(others=...)`"
            )
    replies: dict[int, dict[int, Reply]] = defaultdict(dict)
    yield from ((i, []) for i, asks in asked.items() if not asks)
    for who, slots in mail.items():
        player, asks = samplers[who], [asked[i][j] for i, j in slots]
        for k, reply in (
            prefetch(player.stream(asks)) if isinstance(player, StreamingSampler) else indexed_replies(player, asks)
        ):
            i, j = slots[k]
            replies[i][j] = reply
            if len(replies[i]) == len(asked[i]):
                yield i, [replies[i][j] for j in range(len(asked[i]))]


def ordered_replies(found: Iterable[tuple[int, Reply]]) -> list[Reply]:
    """The replies of a stream by their indices: `sample` of a sampler that can `stream`."""
    return [reply for _, reply in sorted(found, key=lambda pair: pair[0])]


def indexed_replies(player: Sampler, asks: Sequence[Ask]) -> Iterator[tuple[int, Reply]]:
    """A plain sampler's replies with their indices. Raises ValueError when there is not one for each ask."""
    replies = player.sample(asks)
    if len(replies) != len(asks):
        raise ValueError(f"{type(player).__name__}.sample returned {len(replies)} replies to {len(asks)} asks")
    return enumerate(replies)


def rollout(
    env: Env,
    tasks: Sequence[Task],
    samplers: Mapping[str, Sampler],
    samples: int,
    seed: int = 0,
    ended: Callable[[int, Group], None] = lambda i, group: None,
    numbers: Sequence[int] = (),
) -> list[Group]:
    """[P] tasks -> [P] groups of `samples` rollouts; `ended` is handed each group when its last episode is over.

    What task i draws depends on `seed` and `numbers[i]` (i when none are given): its place among more tasks than these.
    """
    groups: list[dict[int, Rollout]] = [{} for _ in tasks]

    def place(i: int, one: Rollout) -> None:
        group = groups[i // samples]
        group[i % samples] = one
        if len(group) == samples:
            ended(i // samples, [group[j] for j in range(samples)])

    seeds = [mix(seed, i, j) for i in numbers or range(len(tasks)) for j in range(samples)]
    player = samplers.get("policy")
    drive = partial(play_concurrently, at_once=player.at_once) if isinstance(player, RemoteSampler) else play
    played = drive([task for task in tasks for _ in range(samples)], env, samplers, seeds, place)
    return [played[i : i + samples] for i in range(0, len(played), samples)]
