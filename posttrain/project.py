"""A project in one file: its tasks, its environment or tools, its reward, and what else it has.

    tasks = [{"prompt": "2 + 3", "answer": "5", "difficulty": 1}, ...]     or a function that returns them

    def reward(reply, answer, difficulty): ...                             sync or async

`posttrain new mytask` writes one. Every command that takes `--data` takes it: `posttrain train mytask.py --out runs/x`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from posttrain.user_code import module_of

KNOWN = ("tasks", "held_out", "demonstrations", "pairs", "env", "tools", "reward", "recipe")
SUFFIX = ".py"


class Project:
    """What a project's file has, by these names:

    tasks           records with a prompt, an answer and any other columns, or `posttrain.Task`s
    held_out        the same, that are only evaluated; or several such lists by name
    demonstrations  records with a prompt and a response, for `posttrain sft`
    pairs           records with a prompt, chosen and rejected, for `posttrain prefer`
    env             an environment, where a reply is not all that happens
    tools           functions that the policy may call, in place of an environment
    reward          a function of the reply, the answer and columns (docs/rewards.md)
    recipe          a function of policy, reward and samples that returns a `posttrain.Recipe`

    All but `env`, `reward` and `recipe` may also be functions without arguments. Raises ValueError for a file that
    cannot be executed, or has none of these.
    """

    def __init__(self, file: str | Path):
        self.file = Path(file)
        if not self.file.is_file():
            raise ValueError(f"`data={file}`: there is no such file; `posttrain new {self.file.stem}` writes one")
        self.module = module_of(self.file, f"`data={file}`")
        if not any(hasattr(self.module, name) for name in KNOWN):
            raise ValueError(f"`data={file}`: it has none of {', '.join(KNOWN)}, so it is no project")

    def find(self, name: str) -> Any:
        """What the file calls `name`, or what its function of that name returns; None if there is none."""
        found = getattr(self.module, name, None)
        return found() if callable(found) else found

    def items(self, name: str) -> Sequence[Any]:
        """Its records of a kind. Raises ValueError when it has none."""
        found = self.find(name)
        if not found:
            raise ValueError(f"`data={self.file}`: it has no {name}; define `{name}`, a list or a function")
        return list(found)

    @property
    def held_out(self) -> dict[str, Sequence[Any]]:
        """Its sets of held-out records by name; one alone has none."""
        found = self.find("held_out") or {}
        return dict(found) if isinstance(found, Mapping) else {"": list(found)}

    @property
    def reward(self) -> Callable[..., Any] | None:
        return getattr(self.module, "reward", None)

    @property
    def recipe(self) -> Callable[..., Any] | None:
        return getattr(self.module, "recipe", None)

    @cached_property
    def env(self) -> Any:
        """Its environment; None for a single turn. Raises ValueError for one beside tools."""
        tools = self.find("tools")
        env = getattr(self.module, "env", None)
        if env is not None and tools:
            raise ValueError(f"`data={self.file}`: it has `env` and `tools`; leave one out")
        if tools:
            from posttrain.tool_use import with_tools

            return with_tools(*tools)
        return env


def project_in(file: str) -> Project:
    """The project of a file, which is executed once, and again when it has changed."""
    path = Path(file)
    return executed(file, path.absolute(), path.stat().st_mtime_ns if path.is_file() else 0)


@cache
def executed(file: str, path: Path, changed: int) -> Project:
    return Project(file)


def is_project(data: Any) -> bool:
    """Whether it names a project, and not data."""
    return isinstance(data, str) and data.endswith(SUFFIX)
