"""The user's own reward, from a file: `--grade rewards.py:brevity`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from posttrain.chat import readable_content
from posttrain.core import Reward, Rollout
from posttrain.reward import each
from posttrain.user_code import function_in


def own(function: Callable[..., Any]) -> Reward:
    """A plain function as a reward; its parameters say what it looks at.

        def brevity(group): ...            all samples of a task; returns one number each
        def brevity(rollout): ...          one sample, with all of its turns
        def brevity(reply, answer): ...    any of reply (text, or the picture that was drawn), answer, prompt

    Raises ValueError for parameters with other names.
    """
    names = list(inspect.signature(function).parameters)
    if names == ["group"]:
        return function
    if names == ["rollout"]:
        return each(function)
    views: dict[str, Callable[[Rollout], Any]] = {
        "reply": lambda rollout: rollout.turns[-1].reply.content if rollout.turns else "",
        "answer": lambda rollout: rollout.task.truth,
        "prompt": lambda rollout: readable_content(rollout.task.prompt[-1]["content"]) if rollout.task.prompt else "",
    }
    if not names or set(names) - set(views):
        raise ValueError(
            f"the reward {function.__name__}({', '.join(names)}) must take `group`, or `rollout`, or some of `reply`, "
            "`answer` and `prompt`, by these names"
        )
    return each(lambda rollout: function(**{name: views[name](rollout) for name in names}))


def reward_file(spec: str) -> Reward:
    """The reward that `file.py:function` names. Raises ValueError when file or function is not there."""
    return own(function_in(spec, "grade"))
