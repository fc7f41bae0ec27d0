"""A chat completion as it grows: which text can be sent when, and the events that carry it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

CHUNK = "chat.completion.chunk"


class Pieces:
    """A reply's text as it grows: what of it can be sent, in order.

    Held back are characters that are not whole yet, and what may be the beginning of a stop string.
    """

    def __init__(self, decode: Callable[[list[int]], str], stop: tuple[str, ...]):
        self.decode, self.stop = decode, stop
        self.ids: list[int] = []
        self.start = self.read = 0  # tokens whose text is a context for the next, and those whose text is in `text`
        self.text = ""
        self.sent = 0  # characters

    def add(self, token: int) -> str:
        """What can be sent now that the reply has this token too."""
        self.ids.append(token)
        before, now = (self.decode(self.ids[self.start : end]) for end in (self.read, len(self.ids)))
        if len(now) <= len(before) or now.endswith("\ufffd"):
            return ""
        self.text += now[len(before) :]
        self.start, self.read = self.read, len(self.ids)
        whole = min((at for s in self.stop if (at := self.text.find(s)) >= 0), default=len(self.text))
        held = max((n for s in self.stop for n in range(1, len(s)) if self.text.endswith(s[:n])), default=0)
        end = max(self.sent, min(whole, len(self.text) - held))
        piece, self.sent = self.text[self.sent : end], end
        return piece


def rest_of(message: Mapping[str, Any], sent: int) -> dict[str, Any]:
    """What of a message a client has not been sent yet."""
    rest = {**message, "content": message["content"][sent:] if message["content"] else message["content"]}
    if calls := message.get("tool_calls"):
        rest["tool_calls"] = [{"index": i, **call} for i, call in enumerate(calls)]
    return rest


def event(plain: Mapping[str, Any], index: int, delta: Mapping[str, Any], reason: str | None = None) -> str:
    """One piece of a streamed chat completion."""
    choice = {"index": index, "delta": delta, "finish_reason": reason}
    return f"data: {json.dumps({**plain, 'object': CHUNK, 'choices': [choice]})}\n\n"
