"""Episodes of outside agents, written while they happen: every prompt and reply with its tokens and log-probabilities.

An agent says what belongs together by the headers `x-posttrain-episode` and `x-posttrain-task`; without them a request
that continues a recorded conversation belongs to its episode. What it sends back as text is put back as what was
sampled, so that the next prompt continues the very tokens, and the episode becomes one training row.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from posttrain.chat import Tokens, trace
from posttrain.core import Ask, Message, Reply, Rollout, Task, Turn
from posttrain.episode import assistant

REMEMBERED = 10_000  # replies that may still be continued


@dataclass(frozen=True, slots=True)
class KnownReply:
    """A reply that was given, and the episode that it belongs to."""

    reply: Reply
    episode: str
    task: str


class Recorder:
    """Remembers replies, and writes them to a JSON lines file if there is one."""

    def __init__(self, path: Path | None):
        self.path, self.lock = path, threading.Lock()
        self.known: OrderedDict[str, KnownReply] = OrderedDict()
        self.episodes = 0
        self.named: set[str] = set()  # episodes of this process
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.episodes = sum(1 for _ in path.open()) if path.is_file() else 0

    def restore_replies(self, messages: Sequence[Mapping[str, Any]]) -> tuple[tuple[Message, ...], KnownReply | None]:
        """The messages, those that were sampled here with their replies; and the last of these."""
        out: list[Any] = []
        last = None
        with self.lock:
            for i, message in enumerate(messages):
                found = self.known.get(key_of(messages[: i + 1])) if message["role"] == "assistant" else None
                last = found or last
                out.append(assistant(found.reply) if found else dict(message))
        return tuple(out), last

    def note(
        self,
        messages: Sequence[Mapping[str, Any]],
        answer: Mapping[str, Any],
        asked: Ask,
        reply: Reply,
        episode: str,
        task: str,
    ) -> str:
        """Remember a reply, which the agent has seen as `answer`, and write it down; returns its episode's name."""
        with self.lock:
            if not episode:
                episode, self.episodes = f"episode-{self.episodes}", self.episodes + 1
            self.named.add(episode)
            self.known[key_of([*messages, answer])] = KnownReply(reply, episode, task)
            if len(self.known) > REMEMBERED:
                self.known.popitem(last=False)
            tokens = trace(reply)
            self.write(
                {
                    "episode": episode,
                    "task": task or episode,
                    "messages": list(messages),
                    "content": reply.content,
                    "prompt_ids": list(tokens.prompt),
                    "ids": list(tokens.reply),
                    "logp": reply.logp.tolist(),
                    "stop": reply.stop,
                    "version": reply.version,
                    "temperature": reply.temperature,
                    "vocabulary": tokens.vocabulary,
                }
            )
        return episode

    def reward(self, episode: str, reward: float) -> bool:
        """What the agent's own judge says of an episode; False: there is none of that name."""
        with self.lock:
            if episode in self.named:
                self.write({"episode": episode, "reward": reward})
            return episode in self.named

    def write(self, line: Mapping[str, Any]) -> None:
        if self.path:
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")


def key_of(messages: Sequence[Mapping[str, Any]]) -> str:
    return json.dumps([[message["role"], message.get("content") or "", called(message)] for message in messages])


def called(message: Mapping[str, Any]) -> list[Any]:
    """The calls of a message by their ids: clients change other details, such as the space in their JSON."""
    return [call.get("id") for call in message.get("tool_calls") or ()]


def read_episodes(path: str | Path) -> list[Rollout]:
    """The recorded episodes as rollouts; `facts` is the reward that was reported, or None.

    Grade and train on them as on any others: rollouts of one task (`rollout.task.key`) are a group.
    Raises ValueError naming the line that cannot be read.
    """
    found: dict[str, Rollout] = {}
    for number, text in enumerate(Path(path).read_text().splitlines(), 1):
        try:
            line = json.loads(text)
            if "reward" in line:
                found[line["episode"]].facts = line["reward"]
                continue
            turn = turn_of(line)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {number}: not a recorded reply: {type(error).__name__} {error}") from error
        task: Task = Task(line["task"], turn.ask.messages, None)
        found.setdefault(line["episode"], Rollout(task, [])).turns.append(turn)
    return list(found.values())


def turn_of(line: Mapping[str, Any]) -> Turn:
    messages = tuple(line["messages"])
    tokens = Tokens(tuple(line["prompt_ids"]), tuple(line["ids"]), messages, "", line["content"], line["vocabulary"])
    logp = torch.tensor(line["logp"], dtype=torch.float32)
    reply = Reply(line["content"], logp, tokens, line["stop"], line["version"], line["temperature"])
    return Turn(Ask(messages), reply)
