"""The user's own reward, from a file: `--grade rewards.py:brevity`."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from posttrain.chat import readable_content
from posttrain.core import Group, Invalid, Reward, Rollout, Score
from posttrain.deadline import CallLimit, DeadlinePassed, deadline
from posttrain.grade.waiting import result_of
from posttrain.reward import as_score
from posttrain.user_code import function_in

VIEWS: dict[str, Callable[[Rollout], Any]] = {
    "rollout": lambda rollout: rollout,
    "reply": lambda rollout: rollout.turns[-1].reply.content if rollout.turns else "",
    "answer": lambda rollout: rollout.task.truth,
    "prompt": lambda rollout: readable_content(rollout.task.prompt[-1]["content"]) if rollout.task.prompt else "",
}
TIMEOUT_S = 300.0


def own(function: Callable[..., Any], timeout_s: float = TIMEOUT_S) -> Reward:
    """A plain function as a reward, `async` or not; its parameters say what it looks at.

        def brevity(group): ...                           all samples of a task; returns one number each
        def brevity(rollout): ...                         one sample, with all of its turns
        def brevity(reply, answer, difficulty=1): ...     any of reply (text, or the picture that was drawn), answer,
                                                          prompt, and columns of the data by their names
        def brevity(completions, prompts, **columns): ... TRL's form: lists over the samples of a task

    A parameter with a default keeps it where the data has no such column; `**columns` gets all others. What is given to
    an `async` function is graded side by side, the groups of a step too. If a call takes longer than `timeout_s`
    seconds, its samples are `Invalid`. Raises ValueError for a parameter that is neither, when it is called.
    """
    parameters, name = inspect.signature(function).parameters, getattr(function, "__name__", "reward")
    waits, limit = inspect.iscoroutinefunction(function), CallLimit(timeout_s, f"the reward {name}")
    if not parameters:
        raise ValueError(f"the reward {name}() takes nothing: give it `reply`, `answer` or `rollout`")
    if "completions" in parameters or (list(parameters) == ["group"] and not waits):

        def of_group(group: Group) -> Sequence[Score | Invalid]:
            try:
                with deadline(limit):
                    if "completions" not in parameters:
                        return function(group)
                    found = resolved(function(**trl_arguments(parameters, group)))
            except DeadlinePassed as passed:
                return [given_up(passed, limit)] * len(group)
            return [score_of(one) for one in found]

        return of_group

    def each_sample(group: Group) -> list[Score | Invalid]:
        calls = [arguments(function, parameters, rollout) for rollout in group]
        if waits:
            with deadline(CallLimit(math.inf, limit.what)):  # each call has its own in the loop
                found = result_of(gathered([function(**call) for call in calls], limit))
            return [as_score(one) for one in found]
        return [graded_in_time(function, call, limit) for call in calls]

    each_sample.waits = waits  # type: ignore[attr-defined]
    return each_sample


def graded_in_time(function: Callable[..., Any], call: Mapping[str, Any], limit: CallLimit) -> Score | Invalid:
    try:
        with deadline(limit):
            return as_score(function(**call))
    except DeadlinePassed as passed:
        return given_up(passed, limit)


def given_up(passed: DeadlinePassed, limit: CallLimit) -> Invalid:
    """What a call is worth that took too long. Raises the deadline of another call, within which it was."""
    if passed.limit is not limit:
        raise passed
    return Invalid(str(passed))


def arguments(
    function: Callable[..., Any], parameters: Mapping[str, inspect.Parameter], rollout: Rollout
) -> dict[str, Any]:
    """What a reward is called with for one sample. Raises ValueError naming a parameter that the data does not have."""
    columns, found = rollout.task.columns, dict[str, Any]()
    for name, parameter in parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            found |= {key: value for key, value in columns.items() if key not in parameters and key not in VIEWS}
        elif name in VIEWS:
            found[name] = VIEWS[name](rollout)
        elif name in columns:
            found[name] = columns[name]
        elif parameter.default is inspect.Parameter.empty:
            known = ", ".join(map(repr, columns)) or "none"
            raise ValueError(
                f"the reward {function.__name__} asks for `{name}`, which is neither reply, answer, prompt nor a "
                f"column of the data (there are {known}): rename it, or give it a default"
            )
    return found


def trl_arguments(parameters: Mapping[str, inspect.Parameter], group: Group) -> dict[str, Any]:
    """Lists over the samples: text where the prompt is one, chat messages where it is a conversation."""
    task = group[0].task
    talk = len(task.prompt) != 1 or not isinstance(task.prompt[0]["content"], str)
    replies = [VIEWS["reply"](rollout) for rollout in group]
    known: dict[str, list[Any]] = {key: [value] * len(group) for key, value in task.columns.items()}
    known["prompts"] = [list(task.prompt) if talk else task.prompt[0]["content"]] * len(group)
    known["completions"] = [[{"role": "assistant", "content": reply}] for reply in replies] if talk else replies
    known.setdefault("answer", [task.truth] * len(group))
    everything = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
    return known if everything else {name: known[name] for name in parameters if name in known}


def score_of(value: Any) -> Score | Invalid:
    """TRL's rewards say None where they have no opinion."""
    return Invalid("the reward returned None") if value is None else as_score(value)


def resolved(scores: Any) -> Any:
    return result_of(awaited(scores)) if inspect.isawaitable(scores) else scores


async def awaited(thing: Any) -> Any:
    return await thing


async def gathered(calls: Sequence[Any], limit: CallLimit) -> list[Any]:
    """Side by side, each with its own deadline."""

    async def in_time(call: Any) -> Any:
        clock = asyncio.timeout(limit.seconds)
        try:
            async with clock:
                return await call
        except TimeoutError:
            if clock.expired():
                return Invalid(limit.message)
            raise  # the reward's own

    return list(await asyncio.gather(*map(in_time, calls)))


def reward_file(spec: str, timeout_s: float = TIMEOUT_S) -> Reward:
    """The reward that `file.py:function` names. Raises ValueError when file or function is not there."""
    return own(function_in(spec, "grade"), timeout_s)
