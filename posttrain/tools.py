"""Tools in a conversation: the calls that a reply makes, and the messages that answer them.

A reply that calls tools stays what was sampled: put it back with `assistant(reply)`, whose text holds the calls, so
that the next prompt continues its very tokens, and answer every call with `tool`.

    def with_tools(task):
        messages = [{**task.prompt[0], "tools": TOOLS}]
        for _ in range(4):
            reply = yield from pt.ask(messages)
            if not (calls := pt.tool_calls(reply.content)):
                break
            messages += [pt.assistant(reply), *(pt.tool(run(call.name, call.arguments), call) for call in calls)]
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.grade.stated import without_thinking

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


def tool_calls(text: str) -> list[ToolCall]:
    """The calls of a reply, in order; none of those that are only thought of, or are not well formed.

    Read are `<tool_call>` with JSON (Hermes, Qwen 2.5 and 3) or with `<function=...>` (Qwen 3.5, Nemotron 3) in it, and
    a reply that is nothing but `{"name": ..., "parameters": ...}` (Llama 3).
    """
    found = list(named_calls(without_thinking(text)))
    return [ToolCall(f"call_{i}", name, arguments) for i, (name, arguments) in enumerate(found)]


def named_calls(said: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    blocks = BLOCK.findall(said)
    for block in blocks or [said.strip()]:
        functions = FUNCTION.findall(block)
        for name, inner in functions:
            yield name, {key: value_of(value) for key, value in PARAMETER.findall(inner)}
        if not functions and (call := json_call(block)):
            yield call


def json_call(text: str) -> tuple[str, Mapping[str, Any]] | None:
    try:
        call = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(call, Mapping) or not isinstance(call.get("name"), str):
        return None
    arguments = next((call[key] for key in ARGUMENTS if key in call), None)
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return None
    return (call["name"], arguments) if isinstance(arguments, Mapping) else None


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
    """Calls that a server gives apart, as OpenAI's interface has them, written as `tool_calls` reads them."""
    found = [json_call(json.dumps(call["function"])) for call in calls]
    named = [{"name": call[0], "arguments": call[1]} for call in found if call]
    return "".join(f"\n<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in named)
