"""Episodes of outside agents, written while they happen: every prompt and reply with its tokens and log-probabilities.

An agent says what belongs together by the headers `x-session-id` and `x-posttrain-task`; without them a request
that continues a recorded conversation belongs to its episode. What it sends back as text is put back as what was
sampled, so that the next prompt continues the very tokens, and the episode becomes one training row.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from posttrain.chat import Tokens, trace
from posttrain.core import Ask, Message, Reply, Rollout, Task, Turn
from posttrain.episode import assistant

REMEMBERED, REMEMBERED_BYTES = 10_000, 2**28  # replies that may still be continued, and their prompts' size


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
        self.held = 0  # bytes, about, of what is remembered
        self.episodes = 0
        self.named: set[str] = set()  # episodes of this process
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.episodes = sum(1 for _ in path.open()) if path.is_file() else 0

    def restore_replies(self, messages: Sequence[Mapping[str, Any]]) -> tuple[tuple[Message, ...], KnownReply | None]:
        """The messages, those that were sampled here with their replies; and the last of these."""
        out: list[Any] = []
        last = None
        for message, key in zip(messages, conversation_keys(messages), strict=True):
            with self.lock:
                found = self.known.get(key) if message["role"] == "assistant" else None
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
            *_, key = conversation_keys([*messages, answer])
            self.known[key] = KnownReply(reply, episode, task)
            self.held += size_of(reply)
            while len(self.known) > REMEMBERED or self.held > REMEMBERED_BYTES:
                self.held -= size_of(self.known.popitem(last=False)[1].reply)
            tokens = trace(reply)
            self.write(
                {
                    "episode": episode,
                    "task": task or episode,
                    "messages": list(messages),
                    "content": reply.content,
                    "prompt_token_ids": list(tokens.prompt),
                    "token_ids": list(tokens.reply),
                    "logprobs": reply.logp.tolist(),
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


def size_of(reply: Reply) -> int:
    """Bytes, about, that remembering a reply takes: most of them are its prompt's."""
    tokens = trace(reply)
    return 40 * (len(tokens.prompt) + len(tokens.reply)) + 4 * len(tokens.before)


def conversation_keys(messages: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A key for every message, of all that was said up to it: one pass, however long the conversation is."""
    digest = hashlib.blake2b(digest_size=16)
    for message in messages:
        digest.update(json.dumps([message["role"], message.get("content") or "", called(message)]).encode() + b"\n")
        yield digest.hexdigest()


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
    prompt, said = tuple(line["prompt_token_ids"]), tuple(line["token_ids"])
    tokens = Tokens(prompt, said, messages, "", line["content"], line["vocabulary"])
    logp = torch.tensor(line["logprobs"], dtype=torch.float32)
    reply = Reply(line["content"], logp, tokens, line["stop"], line["version"], line["temperature"])
    return Turn(Ask(messages), reply)
