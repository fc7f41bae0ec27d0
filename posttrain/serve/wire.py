"""Conversations, rows and tensors as JSON: whatever a model would make of the original, it makes of the copy."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from posttrain.chat import Tokens, trace, unroll
from posttrain.core import Ask, Message, Reply, Row, Turn

TOKENS = ("prompt", "reply", "before", "said", "vocabulary")  # of the trace of a reply in a conversation


def as_text(values: Tensor) -> str:
    """A float32 tensor as base64 of its bytes, little-endian; `as_tensor` gives back the same bits, as [N]."""
    return base64.b64encode(values.detach().cpu().numpy().astype("<f4").tobytes()).decode()


def as_tensor(text: str) -> Tensor:
    return torch.from_numpy(np.frombuffer(base64.b64decode(text), "<f4").astype(np.float32))


def conversation_json(messages: Sequence[Message], reply: str, vocabulary: int) -> dict[str, Any]:
    """`vocabulary` is of the tokenizer that reads it: of replies that it sampled, the tokens go over too."""
    return {"messages": [message_json(messages, i, vocabulary) for i in range(len(messages))], "reply": reply}


def message_json(messages: Sequence[Message], i: int, vocabulary: int) -> dict[str, Any]:
    """Raises ValueError for content that is not text: another machine does not have our pictures."""
    message = messages[i]
    check_text(message["content"])
    out: dict[str, Any] = {key: value for key, value in message.items() if key != "reply"}
    tokens = message["reply"].trace if "reply" in message else None
    if isinstance(tokens, Tokens) and tokens.vocabulary == vocabulary and tokens.asked == tuple(messages[:i]):
        out["tokens"] = {name: getattr(tokens, name) for name in TOKENS}
    return out


def check_text(content: Any) -> None:
    parts = content if isinstance(content, list | tuple) else [{"type": "text", "text": content}]
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if kind != "text" or not isinstance(part.get("text"), str | None):
            raise ValueError(f"a message has a part of type {kind!r}: a model that scores elsewhere is sent text only")


def conversation_of(data: Mapping[str, Any], size: int) -> tuple[tuple[Message, ...], str]:
    """The inverse of `conversation_json`. Raises ValueError for tokens that a model of `size` tokens does not have."""
    messages: tuple[Any, ...] = ()
    for one in data["messages"]:
        check_text(one["content"])
        message: dict[str, Any] = {key: value for key, value in one.items() if key not in ("tokens", "reply")}
        if tokens := one.get("tokens"):
            found = Tokens(
                tuple(tokens["prompt"]),
                tuple(tokens["reply"]),
                messages,
                tokens["before"],
                tokens["said"],
                tokens["vocabulary"],
            )
            check_ids((*found.prompt, *found.reply), size)
            message["reply"] = Reply(one["content"], torch.zeros(len(found.reply)), found)
        messages = (*messages, message)
    return messages, str(data["reply"])


def check_ids(ids: Sequence[int], size: int) -> None:
    """On a GPU one such token would end the process for everybody."""
    if unknown := [i for i in ids if not 0 <= i < size]:
        raise ValueError(f"token {unknown[0]}: the model has {size} tokens")


def row_json(row: Row) -> dict[str, Any]:
    """Its tokens, and where each turn's prompt and reply end in them."""
    tokens = [trace(turn.reply) for turn in row.turns]
    ids, _ = unroll(row.turns)
    return {"ids": ids, "ends": [[len(one.prompt), len(one.prompt) + len(one.reply)] for one in tokens]}


def row_of(data: Mapping[str, Any], vocabulary: int, size: int) -> Row:
    """The inverse of `row_json`, without what was said, for a model of so many tokens.

    Raises ValueError for tokens that it does not have, and for ends that are not within the tokens.
    """
    ids, turns = tuple(map(int, data["ids"])), list(turns_of(data, vocabulary))
    check_ids(ids, size)
    decisions = sum(len(turn.reply.logp) for turn in turns)
    if not decisions or len(unroll(turns)[0]) != len(ids):
        raise ValueError(f"a row of {len(ids)} tokens whose turns end at {data['ends']}")
    return Row(turns, torch.zeros(decisions))


def turns_of(data: Mapping[str, Any], vocabulary: int) -> Iterator[Turn]:
    ids, last = tuple(map(int, data["ids"])), 0
    for start, stop in data["ends"]:
        if not last <= start <= stop <= len(ids):
            raise ValueError(f"a row of {len(ids)} tokens whose turns end at {data['ends']}")
        last = stop
        tokens = Tokens(ids[:start], ids[start:stop], (), "", "", vocabulary)
        yield Turn(Ask(()), Reply("", torch.zeros(stop - start), tokens))
