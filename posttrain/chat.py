"""Messages to tokens, token-exact over turns.

What the model sampled is never tokenized again. An assistant message made by `assistant(reply)` carries its
reply, and a later prompt that contains it is built from the reply's own tokens:

    turn 1   prompt tokens P1, sampled tokens C1
    turn 2   P1 C1 E1      E1: only what the template adds after the reply, tokenized by itself

This needs a template that leaves the past as it was. One that rewrites it (drops old thinking, moves the system
prompt) is rendered afresh for that turn, which `Policy.extends` then sees: the turn opens a row of its own.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from posttrain.core import Message, Reply, Turn

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PLAIN = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
)
UNSEEN = ("image", "image_url", "video", "video_url")  # types of parts that templates of text drop without a word
TEMPLATES = {"chatml": CHATML, "plain": PLAIN}


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """The trace of a text reply."""

    prompt: tuple[int, ...]
    reply: tuple[int, ...]  # [N] the stop token included, if the model emitted it
    asked: tuple[Message, ...]  # the messages that `prompt` renders
    before: str  # their text
    said: str  # the text of `reply`, without the stop token
    vocabulary: int  # of the tokenizer that made them: to another one they mean nothing
    entropy: Tensor | None = None  # [N] nats, at the temperature of the reply


class Chat:
    """One tokenizer with its template.

    `template` names one of `TEMPLATES` or a Jinja file; None takes the tokenizer's own.
    Raises ValueError when there is none, or when it cannot render a user message.
    """

    def __init__(self, tokenizer: Any, template: str | None = None):
        self.tokenizer = tokenizer
        if template is not None:
            tokenizer.chat_template = TEMPLATES.get(template) or template_file(template)
        if not tokenizer.chat_template:
            raise ValueError(
                f"the tokenizer {tokenizer.name_or_path!r} has no chat template: pass `template=chatml`, "
                "`template=plain` or a Jinja file"
            )
        self.end = self.end_text()

    def text(self, messages: Sequence[Message], prompt: bool = True) -> str:
        """The messages as the template renders them, ready for the assistant's reply if `prompt`."""
        plain = [
            {
                key: self.template_content(value) if key == "content" else value
                for key, value in message.items()
                if key != "reply"
            }
            for message in messages
        ]
        return self.tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=prompt)

    def template_content(self, content: Any) -> Any:
        """A message's content for the template. Raises ValueError for pictures, which only a `VisionPolicy` sees."""
        if isinstance(content, list) and any(part.get("type") in UNSEEN for part in content):
            raise ValueError("the prompt holds a picture, and the model, or posttrain with this model, sees none")
        return content

    def encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def end_text(self) -> str:
        """What closes an assistant's turn: the special token that follows its content."""
        mark = "SENTINEL"
        rendered = self.text([{"role": "user", "content": "hi"}, {"role": "assistant", "content": mark}], prompt=False)
        tail = rendered.rpartition(mark)[2]
        for special in sorted(self.tokenizer.get_added_vocab(), key=len, reverse=True):
            if tail.lstrip().startswith(special):
                return special
        return self.tokenizer.eos_token or ""

    def end_ids(self) -> set[int]:
        """Tokens that end a reply, by the template and the tokenizer."""
        ids = {self.tokenizer.eos_token_id} if self.tokenizer.eos_token_id is not None else set()
        if self.end:
            ids.add(self.tokenizer.convert_tokens_to_ids(self.end))
        return ids

    def prompt(self, messages: tuple[Message, ...]) -> tuple[tuple[int, ...], str]:
        """The tokens and the text of a prompt, which continues its last sampled reply wherever the template allows."""
        text = self.text(messages)
        for i in range(len(messages) - 1, -1, -1):
            reply = messages[i].get("reply")
            if reply is None:
                continue
            trace = reply.trace
            ours = isinstance(trace, Tokens) and trace.vocabulary == self.fingerprint and trace.asked == messages[:i]
            tail = text_after_reply(text, trace) if ours else None
            if tail is not None:
                return self.continued_prompt(trace, tail), text
        return tuple(self.encode(text)), text

    def continued_prompt(self, trace: Tokens, tail: str) -> tuple[int, ...]:
        """The sampled tokens, then what the template adds; a stop token the model emitted is not added twice."""
        if trace.reply and trace.reply[-1] in self.end_ids():
            stop = self.tokenizer.decode([trace.reply[-1]])
            tail = tail.removeprefix(stop) if tail.startswith(stop) else tail.lstrip().removeprefix(stop)
        return (*trace.prompt, *trace.reply, *self.encode(tail))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a reply, without its stop token and other special tokens."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    @cached_property
    def fingerprint(self) -> int:
        """The same for the same vocabulary, in every process: of tokens whose ids mean the same."""
        return zlib.crc32(repr(sorted(self.tokenizer.get_vocab().items())).encode())

    @cached_property
    def vocabulary(self) -> list[str]:
        """[V] the text of every token inside a reply."""
        marks = self.tokenizer.convert_ids_to_tokens(list(range(len(self.tokenizer))))
        texts = self.tokenizer.batch_decode(
            [[i] for i in range(len(marks))], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        spaced = [str(mark).startswith("\u2581") for mark in marks]  # SentencePiece's space, not decoded in front
        return [" " + text.lstrip(" ") if space else text for space, text in zip(spaced, texts, strict=True)]

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Each token as a person reads it."""
        return [self.tokenizer.decode([i], clean_up_tokenization_spaces=False) for i in ids]

    def demonstration_tokens(self, messages: tuple[Message, ...], reply: str) -> Tokens:
        """The trace of a reply that somebody else wrote, closed as the template closes it."""
        ids, before = self.prompt(messages)
        closed = self.encode(reply) + ([self.tokenizer.convert_tokens_to_ids(self.end)] if self.end else [])
        return Tokens(ids, tuple(closed), messages, before, reply, self.fingerprint)


def readable_content(content: Any) -> str:
    """A message's content for a person to read: its text, with `<image>` for a picture."""
    if not isinstance(content, list | tuple):
        return str(content)
    parts = [part if isinstance(part, Mapping) else {"text": part} for part in content]
    return "".join(str(part.get("text", f"<{part.get('type')}>")) for part in parts)


def text_after_reply(text: str, trace: Tokens) -> str | None:
    """What the template adds after a sampled reply; None when it does not leave the past as it was.

    Space around the reply may differ (some templates trim it, some put a blank before it): the sampled tokens stand.
    """
    if not text.startswith(trace.before):
        return None
    rest, core = text[len(trace.before) :].lstrip(), trace.said.strip()
    if not rest.startswith(core):
        return None
    return rest[len(core) :].removeprefix(trace.said[len(trace.said.rstrip()) :])


def template_file(name: str) -> str:
    path = Path(name)
    if not path.is_file():
        raise ValueError(f"template {name!r} is neither one of {sorted(TEMPLATES)} nor a Jinja file that exists")
    return path.read_text()


def trace(reply: Reply) -> Tokens:
    """The reply's tokens. Raises TypeError for a reply that no text policy made."""
    if not isinstance(reply.trace, Tokens):
        raise TypeError(f"a text policy cannot score a reply whose trace is {type(reply.trace).__name__}, not Tokens")
    return reply.trace


def continues(last: Turn, turn: Turn) -> bool:
    """Whether a turn's prompt begins with the prompt and the reply of the last one, token by token."""
    before = trace(last.reply).prompt + trace(last.reply).reply
    return trace(turn.reply).prompt[: len(before)] == before


def unroll(turns: Sequence[Turn]) -> tuple[list[int], list[int]]:
    """Turns that extend one another as one sequence [T], and the positions in it that were sampled [N]."""
    ids: list[int] = []
    sampled: list[int] = []
    for turn in turns:
        tokens = trace(turn.reply)
        ids += tokens.prompt[len(ids) :]
        sampled += range(len(ids), len(ids) + len(tokens.reply))
        ids += tokens.reply
    return ids, sampled
