"""Functions of the user's own files, named `file.py:function`: rewards, environments, recipes, parts, systems."""

from __future__ import annotations

import difflib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any


def function_in(spec: str, argument: str) -> Callable[..., Any]:
    """The function that `file.py:function` names; `argument` is what errors call it.

    Raises ValueError when the file cannot be executed or has no such function.
    """
    file, _, name = spec.rpartition(":")
    path, given = Path(file), f"`{argument}={spec}`"
    if not path.is_file():
        raise ValueError(f"{given}: there is no file {file}")
    module = module_of(path, given)
    function = getattr(module, name, None)
    if not callable(function):
        near = difflib.get_close_matches(name, [n for n in vars(module) if not n.startswith("_")], n=1)
        raise ValueError(f"{given}: {file} has no function {name}" + (f"; did you mean {near[0]}?" if near else ""))
    return function


def module_of(path: Path, given: str) -> ModuleType:
    """A file as Python imports one: what lies beside it can be imported, and its classes and functions be pickled.

    Raises ValueError beginning with `given`, with the line, when the file cannot be executed.
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
            f"{given}: {path}{f', line {line}' if line else ''}: {type(error).__name__}: {error}"
        ) from error
    return module
