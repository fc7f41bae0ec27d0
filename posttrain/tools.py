"""Tools in a conversation: the calls that a reply makes, and the messages that answer them.

A reply that calls tools stays what was sampled: put it back with `assistant(reply)`, whose text holds the calls, so
that the next prompt continues its very tokens, and answer every call with `tool`.

    def with_tools(task):
        messages = [{**task.prompt[0], "tools": TOOLS}]
        for _ in range(4):
            reply = yield from pt.ask(messages)
            if not (calls := pt.tool_calls(reply)):
                break
            messages += [pt.assistant(reply), *(pt.tool(run(call.name, call.arguments), call) for call in calls)]
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.chat import opened_thinking, without_thinking
from posttrain.core import Reply

BLOCK = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)
FUNCTION = re.compile(r"<function=([\w.-]+)>(.*?)</function>", re.DOTALL)
PARAMETER = re.compile(r"<parameter=([\w.-]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
ARGUMENTS = ("arguments", "parameters")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that a reply makes."""

    id: str
    name: str
    arguments: Mapping[str, Any]

    def openai(self) -> dict[str, Any]:
        """As OpenAI's interface has it, the arguments as JSON."""
        function = {"name": self.name, "arguments": json.dumps(self.arguments)}
        return {"id": self.id, "type": "function", "function": function}


def tool_calls(said: Reply | str) -> list[ToolCall]:
    """The calls of a reply, in order; none of those that are only thought of, or are not well formed.

    Read are `<tool_call>` with JSON (Hermes, Qwen 2.5 and 3) or with `<function=...>` (Qwen 3.5, Nemotron 3) in it, and
    a reply that is nothing but `{"name": ..., "parameters": ...}` (Llama 3). Of a reply, rather than its text, it is
    known whether its prompt had opened the thinking.
    """
    text = opened_thinking(said) + str(said.content) if isinstance(said, Reply) else said
    found = list(named_calls(without_thinking(text)))
    return [ToolCall(call_id or f"call_{i}", name, arguments) for i, (call_id, name, arguments) in enumerate(found)]


def named_calls(said: str) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Ids, which are mostly empty, names and arguments."""
    blocks = BLOCK.findall(said)
    for block in blocks or [said.strip()]:
        functions = FUNCTION.findall(block)
        for name, inner in functions:
            yield "", name, {key: value_of(value) for key, value in PARAMETER.findall(inner)}
        if not functions and (call := json_call(block)):
            yield call


def json_call(text: str) -> tuple[str, str, Mapping[str, Any]] | None:
    try:
        call = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(call, Mapping) or not isinstance(call.get("name"), str):
        return None
    arguments = next((call[key] for key in ARGUMENTS if key in call), None)
    if isinstance(arguments, str) and arguments.strip():
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return None
    known = str(call.get("id") or "")
    return (known, call["name"], arguments) if isinstance(arguments, Mapping) else None


def value_of(text: str) -> Any:
    """A parameter written as text: JSON where it is, else the text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def text_beside_calls(text: str) -> str:
    """What a reply says besides its calls."""
    return "" if not BLOCK.search(text) and tool_calls(text) else BLOCK.sub("", text).strip()


def calls_as_text(calls: Sequence[Mapping[str, Any]]) -> str:
    """Calls that a server gives apart, as OpenAI's interface has them, written as `tool_calls` reads them, ids too.

    Raises ValueError for one whose arguments are no JSON object.
    """
    return "".join(f"\n<tool_call>\n{json.dumps(plain_call(call))}\n</tool_call>" for call in calls)


def plain_call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    given = function.get("arguments") or {}
    arguments = json.loads(given) if isinstance(given, str) and given.strip() else given or {}
    if not isinstance(arguments, Mapping):
        raise ValueError(f"the arguments of the tool call {function.get('name')!r} are no object: {given!r}")
    return {"name": function["name"], "arguments": arguments, "id": call.get("id") or ""}


def message_with_calls(message: Mapping[str, Any]) -> dict[str, Any]:
    """An assistant's message whose text holds calls, with these apart, as a server wants its own replies back."""
    said = message.get("content")
    if message["role"] != "assistant" or not isinstance(said, str) or not (calls := tool_calls(said)):
        return dict(message)
    apart = {"content": text_beside_calls(said) or None, "tool_calls": [call.openai() for call in calls]}
    return {**message, **apart}
