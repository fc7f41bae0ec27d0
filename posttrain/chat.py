"""Messages to tokens, token-exact over turns.

What the model sampled is never tokenized again. An assistant message made by `assistant(reply)` carries its
reply, and a later prompt that contains it is built from the reply's own tokens:

    turn 1   prompt tokens P1, sampled tokens C1
    turn 2   P1 C1 E1      E1: only what the template adds after the reply, tokenized by itself

This needs a template that leaves the past as it was. One that rewrites it (drops old thinking, moves the system
prompt) is rendered afresh for that turn, which `Policy.extends` then sees: the turn opens a row of its own.
"""

from __future__ import annotations

import json
import re
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
THINKING = r"think|thinking|thought|reasoning"  # names of the tags
OPENED = re.compile(rf"<({THINKING})>\s*$")  # a prompt whose reply begins inside of the thinking
THOUGHT = re.compile(rf"\s*<({THINKING})>(.*?)</\1>\s*(.*)", re.DOTALL)
MARK = "SENTINEL"
SAMPLE: tuple[Message, ...] = ({"role": "user", "content": "hi"}, {"role": "assistant", "content": MARK})
STANDING_IN = 0x10F000  # private characters from here on stand for control tokens that a user has written
HIDDEN = ("reply", "tools")  # keys of a message that are not the template's


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
            tokenizer.chat_template = self.named_template(template)
        if not tokenizer.chat_template:
            raise ValueError(
                f"the tokenizer {tokenizer.name_or_path!r} has no chat template: pass `template=chatml`, "
                "`template=plain` or a Jinja file"
            )
        self.thinking = thinking_field(str(tokenizer.chat_template))
        self.in_parts = False  # some templates render text only as parts of a content
        self.in_parts = MARK not in self.text(SAMPLE, prompt=False)
        self.end = self.end_text()

    def named_template(self, name: str) -> str:
        """One of `TEMPLATES`, behind the BOS that the tokenizer itself would put first, or a Jinja file."""
        if name not in TEMPLATES:
            return template_file(name)
        bos = self.tokenizer.bos_token_id
        begins = bos is not None and self.tokenizer("a")["input_ids"][:1] == [bos]
        return ("{{ bos_token }}" if begins else "") + TEMPLATES[name]

    def text(self, messages: Sequence[Message], prompt: bool = True) -> str:
        """The messages as the template renders them, ready for the assistant's reply if `prompt`.

        The tools that the first message names (`tools`) go to the template. Raises ValueError when it refuses.
        """
        from jinja2.exceptions import TemplateError

        tools = tools_offered(messages)
        options = {"tools": tools} if tools else {}
        plain = [self.template_message(message) for message in messages]
        try:
            text = self.tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=prompt, **options)
        except TemplateError as error:
            roles = ", ".join(str(message["role"]) for message in messages)
            raise ValueError(f"the chat template refuses a conversation of {roles}: {error}") from error
        called = [call for message in messages for call in message.get("tool_calls") or ()]
        for tool in (*(tools or ()), *called):
            if (name := str((tool.get("function") or tool).get("name"))) not in text:
                raise ValueError(f"the chat template drops the tool {name!r}: give another `template`, or no tools")
        return text

    def template_message(self, message: Message) -> dict[str, Any]:
        """A message as templates expect it: arguments of tool calls as objects, control tokens disarmed."""
        plain: dict[str, Any] = {key: value for key, value in message.items() if key not in HIDDEN}
        plain["content"] = self.disarmed(self.template_content(plain.get("content")))
        reply = message.get("reply")
        opened = opened_thinking(reply) if reply else ""
        if opened and isinstance(plain["content"], str):
            plain["content"] = opened + plain["content"]
        elif self.thinking and message["role"] == "assistant":
            thought = THOUGHT.match(plain["content"]) if isinstance(plain["content"], str) else None
            plain |= {self.thinking: thought[2].strip(), "content": thought[3]} if thought else {}
        if self.in_parts and isinstance(plain["content"], str):
            plain["content"] = [{"type": "text", "text": plain["content"]}]
        if plain.get("tool_calls"):
            plain["tool_calls"] = [call_with_object(call) for call in plain["tool_calls"]]
        return plain

    def template_content(self, content: Any) -> Any:
        """A message's content for the template. Raises ValueError for what is no text: other policies are shown it."""
        if isinstance(content, list) and any(part.get("type") in UNSEEN for part in content):
            raise ValueError("the prompt holds a picture, and the model, or posttrain with this model, sees none")
        strange = [part.get("type") for part in content if "text" not in part] if isinstance(content, list) else []
        if strange:
            raise ValueError(f"the prompt holds a part of type {strange[0]!r}, for which the model has no encoder")
        return "" if content is None else content

    @cached_property
    def control(self) -> list[str]:
        """Every special token by its text: what a user writes must not become one."""
        added = self.tokenizer.added_tokens_decoder.values()
        return sorted({str(one) for one in added if one.special} | {*self.tokenizer.all_special_tokens})

    @cached_property
    def control_pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, sorted(self.control, key=len, reverse=True))) or r"(?!)")

    def disarmed(self, content: Any) -> Any:
        """Content in which a private character stands for every control token; `encode` spells it out as text."""
        if isinstance(content, str):
            return self.control_pattern.sub(lambda found: chr(STANDING_IN + self.control.index(found[0])), content)
        if isinstance(content, list):
            return [{**part, "text": self.disarmed(part["text"])} if part.get("text") else part for part in content]
        return content

    def encode(self, text: str) -> list[int]:
        """Raises ValueError for text that has no UTF-8."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"the text holds a lone surrogate, {text[error.start]!r}: it is no valid Unicode"
            ) from None
        ids: list[int] = []
        for piece in re.split(f"([{chr(STANDING_IN)}-{chr(STANDING_IN + len(self.control))}])", text):
            stands = len(piece) == 1 and ord(piece) >= STANDING_IN
            said = self.control[ord(piece) - STANDING_IN] if stands else piece
            options = {"split_special_tokens": True} if stands else {}
            ids += self.tokenizer(said, add_special_tokens=False, **options)["input_ids"] if said else []
        return ids

    def end_text(self) -> str:
        """What closes an assistant's turn: the special token that follows its content."""
        tail = self.text(SAMPLE, prompt=False).rpartition(MARK)[2]
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
            tail = text_after_reply(text, trace, self.disarmed(trace.said)) if ours else None
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

    def demonstration_tokens(self, messages: tuple[Message, ...], reply: str | Message) -> Tokens:
        """The trace of a reply that somebody else wrote, as the template itself renders it behind these messages.

        reply  its text, or an assistant's message with its tool calls
        Raises ValueError when the template renders it in another way than it opens a reply.
        """
        message: Message = {"role": "assistant", "content": reply} if isinstance(reply, str) else reply
        content = self.without_end(message.get("content"))
        ids, before = self.prompt(messages)
        whole = self.text([*messages, {**message, "content": content}], prompt=False)
        said = self.reply_text(before, whole, self.disarmed(content) if isinstance(content, str) else "")
        end = [self.tokenizer.convert_tokens_to_ids(self.end)] if self.end else []
        return Tokens(ids, (*self.encode(said), *end), messages, before, said, self.fingerprint)

    def without_end(self, content: Any) -> Any:
        """A reply's content without the end of turn that its author has put behind it."""
        if isinstance(content, str):
            for end in filter(None, (self.end, self.tokenizer.eos_token)):
                content = content.removesuffix(end)
        return content

    def reply_text(self, before: str, whole: str, content: str) -> str:
        """What a reply says behind the prompt `before` in the template's rendering `whole`, without its end of turn."""
        shared = next((i for i, pair in enumerate(zip(before, whole, strict=False)) if pair[0] != pair[1]), None)
        shared = min(len(before), len(whole)) if shared is None else shared
        mark = OPENED.search(before)
        if mark and mark.start() < shared < len(before[: mark.end()].rstrip()):  # a reply may begin with < too
            shared = mark.start()
        opened, rest = before[shared:], whole[shared:]
        rest = rest.rpartition(self.end)[0] if self.end and self.end in rest else rest.rstrip()
        if not opened:
            return rest
        if not opened.strip():  # the template trims what it opens a reply with
            return rest.lstrip()
        if mark and opened == mark[0]:
            thought, closing, answer = content.partition(f"</{mark[1]}>")
            if closing:  # the template has dropped the thinking
                return re.sub(rf"^\s*<{mark[1]}>\n?", "", thought) + closing + answer
            return f"\n</{mark[1]}>\n\n{rest}"
        behind = rest.removeprefix(end_of_prompt(opened, rest))
        if behind != rest and content.strip() in behind:  # the template puts the system prompt elsewhere
            return behind
        if content.strip() and content.strip() in rest:
            return rest[rest.rindex(content.strip()) :]
        raise ValueError(
            f"the chat template opens a reply with {before[-40:]!r} and renders this one as {rest[:60]!r}, so it "
            "cannot be learned: give another `template`"
        )


def readable_content(content: Any) -> str:
    """A message's content for a person to read: its text, with `<image>` for a picture."""
    if not isinstance(content, list | tuple):
        return str(content)
    parts = [part if isinstance(part, Mapping) else {"text": part} for part in content]
    return "".join(str(part.get("text", f"<{part.get('type')}>")) for part in parts)


def tools_offered(messages: Sequence[Message]) -> list[Any]:
    """The tools that a conversation may call, as its first message names them."""
    return next((list(tools) for message in messages if (tools := message.get("tools"))), [])


def end_of_prompt(opened: str, rest: str) -> str:
    """The longest end of `opened`, not of space alone, with which `rest` begins; nothing if there is none."""
    ends = (opened[i:] for i in range(len(opened.rstrip())))
    return next((end for end in ends if rest.startswith(end)), "")


def text_after_reply(text: str, trace: Tokens, said: str) -> str | None:
    """What the template adds after a reply that `said` this; None when it does not leave the past as it was.

    Space around the reply may differ (some templates trim it, some put a blank before it): the sampled tokens stand.
    """
    if not text.startswith(trace.before):
        return None
    rest, core = text[len(trace.before) :].lstrip(), said.strip()
    if not rest.startswith(core):
        return None
    return rest[len(core) :].removeprefix(said[len(said.rstrip()) :])


def call_with_object(call: Mapping[str, Any]) -> dict[str, Any]:
    """A tool call with its arguments as an object: OpenAI's interface has them as JSON, templates expect the object."""
    function = dict(call.get("function") or {})
    if isinstance(function.get("arguments"), str):
        try:
            function["arguments"] = json.loads(function["arguments"])
        except json.JSONDecodeError as error:
            name, said = function.get("name"), function["arguments"][:60]
            raise ValueError(f"the arguments of the tool call {name!r} are not JSON: {said!r}") from error
    return {**call, "function": function} if function else dict(call)


def thinking_field(template: str) -> str | None:
    """The key of a message in which a template wants the thinking; None if it knows none."""
    if re.search(r"\.thinking\b|['\"]thinking['\"]", template) and "reasoning_content" not in template:
        return "thinking"
    return "reasoning_content" if "reasoning_content" in template else None


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


def opened_thinking(reply: Reply) -> str:
    """The tag that the prompt of a reply has left open, as DeepSeek-R1's does: the reply begins inside its thinking."""
    found = OPENED.search(reply.trace.before) if isinstance(reply.trace, Tokens) else None
    return found[0] if found else ""


def without_thinking(text: str) -> str:
    """What follows the last `</think>`; nothing of a reply whose thinking is still open."""
    after = re.split(rf"</(?:{THINKING})>", text, flags=re.IGNORECASE)[-1]
    return re.split(rf"<(?:{THINKING})>", after, flags=re.IGNORECASE)[0]


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
