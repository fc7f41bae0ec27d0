"""The user's own reward, from a file: `--grade rewards.py:brevity`."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from posttrain.chat import in_words
from posttrain.core import Reward, Rollout
from posttrain.reward import each


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
        "prompt": lambda rollout: in_words(rollout.task.prompt[-1]["content"]) if rollout.task.prompt else "",
    }
    if not names or set(names) - set(views):
        raise ValueError(
            f"the reward {function.__name__}({', '.join(names)}) must take `group`, or `rollout`, or some of `reply`, "
            "`answer` and `prompt`, by these names"
        )
    return each(lambda rollout: function(**{name: views[name](rollout) for name in names}))


def reward_file(spec: str) -> Reward:
    """The reward that `file.py:function` names. Raises ValueError when file or function is not there."""
    file, _, name = spec.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"--grade {spec}: there is no file {file}")
    module = imported(path, f"--grade {spec}")
    function = getattr(module, name, None)
    if not callable(function):
        near = difflib.get_close_matches(name, [n for n in vars(module) if not n.startswith("_")], n=1)
        raise ValueError(
            f"--grade {spec}: {file} has no function {name}" + (f"; did you mean {near[0]}?" if near else "")
        )
    return own(function)


def imported(path: Path, option: str) -> ModuleType:
    """A file as Python imports one: what lies beside it can be imported, and its classes and functions be pickled.

    Raises ValueError, with the line, when it cannot be executed.
    """
    folder, name = str(path.parent.absolute()), path.stem
    if folder not in sys.path:
        sys.path.append(folder)
    if name in sys.modules and getattr(sys.modules[name], "__file__", None) != str(path.absolute()):
        name = f"{name} of {folder}"  # another module has the name
    spec = importlib.util.spec_from_file_location(name, path.absolute())
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        where = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == spec.origin]
        line = where[-1] if where else getattr(error, "lineno", None)
        raise ValueError(
            f"{option}: {path}{f', line {line}' if line else ''}: {type(error).__name__}: {error}"
        ) from error
    return module
