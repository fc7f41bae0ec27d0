"""Messages that hold parts of other types than text, and how these stand among the tokens of a prompt.

    user([{"type": "image", "image": "triangle.png"}, {"type": "text", "text": "How large is the angle?"}])

Among the tokens of a prompt a part stands as its name, a negative number, once for each token that it takes. Prompts
of equal tokens are then prompts with equal parts, so that whatever compares tokens (the samples of a prompt, rows that
share one, turns that extend one another) is right without knowing of parts. Names become what the model reads only
when it is called.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from posttrain.chat import Chat, Tokens, trace
from posttrain.core import Ask, Message, Reply, Task, Turn
from posttrain.policy.fast.dense import Dense
from posttrain.policy.fast.generate import Sample, SampleRequest, TransformersRows, generate
from posttrain.policy.text import TextPolicy


@runtime_checkable
class Part(Protocol):
    """What a part of a message has become once it is read."""

    @property
    def name(self) -> int: ...  # negative; the same for the same content
    @property
    def tokens(self) -> int: ...  # that it takes in a prompt


@dataclass(frozen=True, slots=True)
class Kind:
    """How parts of one type are read, and written into a prompt.

    read         a part of a message; raises ValueError for one that cannot be read
    placeholder  the token that stands for the part in the rendered text, once, whatever the part's size
    text         what a message's text has in the part's place; None: the chat template writes it
    """

    read: Callable[[Mapping[str, Any]], Part]
    placeholder: int
    text: str | None = None


class PartChat(Chat):
    """A chat whose messages may hold parts of several kinds.

    kinds  by the type that a part names
    never  all tokens that stand for parts: no text may hold them
    """

    def __init__(self, tokenizer: Any, template: str | None, kinds: Mapping[str, Kind], never: Sequence[int]):
        self.kinds = kinds
        self.marks = [mark for mark in tokenizer.convert_ids_to_tokens(list(never)) if mark]
        super().__init__(tokenizer, template)

    def read_parts(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """The messages with every part read. Raises ValueError for one that cannot be."""
        return tuple(self.with_parts(message) for message in messages)

    def with_parts(self, message: Message) -> Message:
        content = message["content"]
        if isinstance(content, str | None):
            return message
        return {**message, "content": [self.part(part) for part in content]}

    def part(self, part: Any) -> dict[str, Any]:
        kind = str(part.get("type")) if isinstance(part, Mapping) else type(part).__name__
        if kind == "text":
            return {"type": "text", "text": str(part.get("text", ""))}
        if kind not in self.kinds:
            taken = " and ".join(map(repr, ("text", *self.kinds)))
            raise ValueError(f"a part of a message is of type {kind!r}; this model takes {taken}")
        known = part.get(kind)  # samples of a task share what was read once
        return {"type": kind, kind: known if isinstance(known, Part) else self.kinds[kind].read(part)}

    def check_text(self, text: str) -> None:
        """Raises ValueError for a text that spells what stands for a part: in a task that is a mistake.

        In a reply it is text like any other, since control tokens are disarmed.
        """
        for mark in self.marks:
            if mark in text:
                kinds = " or ".join(self.kinds)
                raise ValueError(
                    f"a message's text has {mark}, which stands for parts of type {kinds}: no text may contain it"
                )

    def template_content(self, content: Any) -> Any:
        if isinstance(content, str | None):
            return content
        return [part if part.get("type") == "text" else {"type": part.get("type")} for part in content]

    def template_message(self, message: Message) -> dict[str, Any]:
        """As `Chat.template_message`, with the text of the kinds that the template does not know."""
        plain = super().template_message(message)
        if not isinstance(plain["content"], list):
            return plain
        texts = {name: kind.text for name, kind in self.kinds.items()}
        parts = [
            {"type": "text", "text": texts[part["type"]]} if texts.get(part["type"]) is not None else part
            for part in plain["content"]
        ]
        if not self.in_parts and all(part["type"] == "text" for part in parts):
            return {**plain, "content": "".join(part["text"] for part in parts)}
        return {**plain, "content": parts}

    def prompt(self, messages: tuple[Message, ...]) -> tuple[tuple[int, ...], str]:
        """As `Chat.prompt`, with a part's name for each of its tokens."""
        messages = self.read_parts(messages)
        ids, text = super().prompt(messages)
        return self.expand_placeholders(ids, list(parts_of(messages))), text

    def expand_placeholders(self, ids: Sequence[int], shown: Sequence[tuple[str, Part]]) -> tuple[int, ...]:
        """Names in the place of placeholders, for the parts that a prompt continued from earlier turns lacks."""
        waiting, held = list(shown), sum(i < 0 for i in ids)
        while held > 0 and waiting:
            held -= waiting.pop(0)[1].tokens
        for name, kind in self.kinds.items():
            wanted, there = sum(one == name for one, _ in waiting), ids.count(kind.placeholder)
            if held or wanted != there:
                token = self.tokenizer.convert_ids_to_tokens(kind.placeholder)
                raise ValueError(
                    f"{wanted} parts of type {name!r} are to be shown, and the rendered prompt has {there} "
                    f"placeholders {token}: the chat template must write one for each, and no text may contain it"
                )
        left = iter(waiting)
        placeholders = {kind.placeholder for kind in self.kinds.values()}
        return tuple(i for id in ids for i in (part_names(next(left)[1]) if id in placeholders else (id,)))

    def demonstration_tokens(self, messages: tuple[Message, ...], reply: str | Message) -> Tokens:
        return super().demonstration_tokens(self.read_parts(messages), reply)


class PartsPolicy(TextPolicy):
    """A policy that is shown parts besides text. Their placeholders are never sampled and have no density."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.head.never = torch.tensor(self.never, device=self.device)

    @property
    def kinds(self) -> Mapping[str, Kind]:
        """Of parts, by the type that a message names."""
        return {}

    @property
    def never(self) -> list[int]:
        """Tokens that stand for parts, and what surrounds them."""
        return []

    def conversation(self, template: str | None) -> PartChat:
        return PartChat(self.tokenizer, template, self.kinds, self.never)

    def check(self, tasks: Sequence[Task]) -> None:
        """As `TextPolicy.check`, also for texts that spell what stands for a part."""
        for task in tasks:
            for message in task.prompt:
                content = message["content"]
                texts = (
                    [content or ""]
                    if isinstance(content, str | None)
                    else [str(part.get("text", "")) for part in content if isinstance(part, Mapping)]
                )
                for text in texts:
                    try:
                        self.chat.check_text(text)  # type: ignore[attr-defined]
                    except ValueError as error:
                        raise ValueError(f"task {task.key!r}: {error}") from error
        super().check(tasks)

    # ---- sampling

    def stream(self, asks: Sequence[Ask]) -> Iterator[tuple[int, Reply]]:
        seen: dict[int, tuple[Message, ...]] = {}  # samples of one task share their messages, and so their parts
        for ask in asks:
            if id(ask.messages) not in seen:
                seen[id(ask.messages)] = self.chat.read_parts(ask.messages)  # type: ignore[attr-defined]
        yield from super().stream([replace(ask, messages=seen[id(ask.messages)]) for ask in asks])

    def sample_request(self, ask: Ask, prompt: tuple[int, ...]) -> SampleRequest:
        return replace(super().sample_request(ask, prompt), parts=tuple(part for _, part in parts_of(ask.messages)))

    def sample_tokens(self, wanted: Sequence[SampleRequest]) -> Iterator[tuple[int, Sample]]:
        embed = self.embedding({part.name: part for one in wanted for part in one.parts})
        dense = partial(Dense, self.head, torch.bfloat16 if self.bf16 else torch.float32, embed) if self.dense else None
        return generate(self.head, wanted, self.stops, dense, self.mode, plain=partial(self.plain_rows, wanted, embed))

    def embedding(self, shown: Mapping[int, Part]) -> Callable[[Tensor], Tensor] | None:
        """What embeds prompts that have these parts, by name; None: the model does so itself."""
        return None

    def plain_rows(
        self, wanted: Sequence[SampleRequest], embed: Callable[[Tensor], Tensor] | None, head: Any
    ) -> TransformersRows:
        """What samples where there is no fast pass."""
        return TransformersRows(head, embed)

    def demonstrate(self, messages: Sequence[Message], reply: str | Message) -> Turn:
        """Raises ValueError for a reply with a placeholder in it, which the model can never say."""
        turn = super().demonstrate(messages, reply)
        if bad := set(self.never) & set(trace(turn.reply).reply):
            raise ValueError(
                f"the reply to be learned holds {self.chat.pieces(sorted(bad))[0]}, which stands for parts of a prompt"
            )
        return turn

    # ---- the rest

    def record(self, reply: Reply) -> dict[str, Any]:
        found = super().record(reply)
        standing = {part.name: self.kinds[kind].placeholder for kind, part in parts_of(trace(reply).asked)}
        return {**found, "prompt_ids": [standing[i] if i < 0 else i for i in found["prompt_ids"]]}


def parts_of(messages: Iterable[Message]) -> Iterator[tuple[str, Any]]:
    """The parts of messages that were read, in order, with their types; of text there are none."""
    for message in messages:
        if not isinstance(message["content"], str | None):
            yield from ((part["type"], part[part["type"]]) for part in message["content"] if part["type"] != "text")


def part_names(part: Part) -> tuple[int, ...]:
    return (part.name,) * part.tokens


def content_name(kind: str, content: bytes) -> int:
    """A negative number, the same for the same content, for all practical purposes different for any other."""
    digest = hashlib.blake2b(kind.encode() + content, digest_size=8)
    return -(int.from_bytes(digest.digest()) >> 2) - 1
