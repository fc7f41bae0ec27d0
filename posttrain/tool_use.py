"""Conversations with tools: plain functions that the policy may call before it answers.

def calculator(expression: str) -> str:
    '''The value of a sum.

    Args:
        expression: such as 12+7
    '''

pt.train(policy, tasks, pt.Recipe(reward, env=pt.with_tools(calculator)), run)
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from posttrain.core import Env, Episode, Message, Task
from posttrain.deadline import CallLimit, DeadlinePassed, deadline
from posttrain.episode import ask, assistant, tool
from posttrain.grade.waiting import result_of
from posttrain.tools import ToolCall, tool_calls

MOST_SHOWN = 500  # characters of an error that the model is shown


@dataclass(slots=True)
class ToolUse:
    """The facts of an episode with tools: its calls in order, and those of them that failed, with the reason."""

    calls: list[ToolCall] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)  # by the place of the call


def tool_schema(function: Callable[..., Any]) -> dict[str, Any]:
    """What a chat template shows of a function, from its type hints and docstring, as OpenAI's interface has it.

    Raises ValueError for a function without type hints, or without a docstring that explains its arguments.
    """
    from transformers.utils.chat_template_utils import (
        DocstringParsingException,
        TypeHintParsingException,
        get_json_schema,
    )

    try:
        return get_json_schema(function)
    except (DocstringParsingException, TypeHintParsingException) as error:
        raise ValueError(
            f"the tool {function.__name__}: {error}; give every argument a type hint and a line under `Args:`"
        ) from error


class Tool:
    """A function that is called with arguments that a model has written."""

    def __init__(self, function: Callable[..., Any], timeout_s: float):
        from pydantic import validate_call

        self.name, self.schema = function.__name__, tool_schema(function)
        self.call, self.waits = validate_call(function), inspect.iscoroutinefunction(function)
        self.limit = CallLimit(timeout_s, f"the tool {self.name}")

    def result(self, arguments: Mapping[str, Any]) -> Any:
        """What the function returns, within its time. Raises ToolFailed when it raises or takes too long."""
        try:
            with deadline(self.limit):
                if self.waits:
                    return result_of(asyncio.wait_for(self.call(**arguments), self.limit.seconds))
                return self.call(**arguments)
        except DeadlinePassed as passed:
            if passed.limit is not self.limit:
                raise
            raise ToolFailed(self.limit.message) from passed
        except TimeoutError as error:
            raise ToolFailed(str(error) or self.limit.message) from error
        except Exception as error:
            raise ToolFailed(f"{type(error).__name__}: {str(error)[:MOST_SHOWN]}") from error


class ToolFailed(Exception):
    """A call that has no result: the model is told why."""


def with_tools(*functions: Callable[..., Any], turns: int = 8, timeout_s: float = 60.0) -> Env:
    """An environment in which the policy may call these functions, `async` or not, before it answers.

    Their schemas come from type hints and docstrings, and the chat template shows them. Every call of a reply is
    answered by a message with its id; a call of something else, with wrong arguments, that raises or takes too long is
    answered by what went wrong. The episode ends with a reply that calls nothing; its facts are a `ToolUse`.

    turns      most replies
    timeout_s  that a call may take; one that hangs is named on stderr before
    Raises ValueError for a function that has no schema, and for two of one name.
    """
    tools = {one.name: one for one in (Tool(function, timeout_s) for function in functions)}
    if len(tools) < len(functions) or not tools:
        raise ValueError(f"`with_tools`: give at least one function, each with a name of its own, not {sorted(tools)}")
    schemas = [one.schema for one in tools.values()]

    def conversation(task: Task) -> Episode:
        messages: list[Message] = [cast(Message, {**task.prompt[0], "tools": schemas}), *task.prompt[1:]]
        used = ToolUse()
        for _ in range(turns):
            reply = yield from ask(messages)
            calls = tool_calls(reply)
            if not calls:
                break
            messages += [assistant(reply), *(answer(tools, call, used) for call in calls)]
        return used

    return conversation


def answer(tools: Mapping[str, Tool], call: ToolCall, used: ToolUse) -> Message:
    """The message that answers a call."""
    used.calls.append(call)
    try:
        if call.name not in tools:
            raise ToolFailed(f"there is no tool {call.name!r}, only {', '.join(tools)}")
        return tool(tools[call.name].result(call.arguments), call)
    except ToolFailed as error:
        used.failed[len(used.calls) - 1] = str(error)
        return tool(f"error: {error}", call)
