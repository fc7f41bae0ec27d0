"""What an episode can be taken up from again: the files as they were changed, the dialogue so far, the last metric.

Paths and texts come from a policy. Files are entries of a dictionary and never those of the host: they become real in
the sandbox alone, where a script is executed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

from posttrain.systems.ml_agent.problem import Problem

MOST_FILES, MOST_CHARACTERS, MOST_PATH = 50, 200_000, 200  # that a policy may add, and their sizes
MOST_UNDO = 20  # edits that can be undone


class Refused(Exception):
    """An action that cannot be done, by the policy's mistake; the message is what it observes."""


@dataclass(frozen=True, slots=True)
class Workspace:
    """The files that differ from the problem's own, and what they were before each edit, oldest first."""

    changed: Mapping[str, str] = field(default_factory=dict)
    history: tuple[tuple[str, str | None], ...] = ()  # None: it was the problem's own, or was not there

    def files(self, problem: Problem) -> dict[str, str | bytes]:
        return {**problem.files, **self.changed}

    def read(self, problem: Problem, name: str) -> str:
        """Raises Refused for a path that leads out, no file, or one that is not text."""
        path, files = clean_path(name), self.files(problem)
        if path not in files:
            raise Refused(f"There is no file {path!r}. Files: {', '.join(sorted(files))}")
        held = files[path]
        if isinstance(held, bytes):
            raise Refused(f"{path!r} is not a text file.")
        return held

    def write(self, problem: Problem, name: str, text: str) -> Workspace:
        """Raises Refused for what a policy may not write: a file that is no script, read-only, or too much."""
        path = clean_path(name)
        if not path.endswith(".py") or path in problem.read_only:
            raise Refused(f"{path!r} cannot be written: only Python scripts can, except {list(problem.read_only)}.")
        if len(text) > MOST_CHARACTERS:
            raise Refused(f"{path!r} would have {len(text)} characters, more than {MOST_CHARACTERS}.")
        files = self.files(problem)
        if path not in files and len(self.changed) >= MOST_FILES:
            raise Refused(f"There are {MOST_FILES} files of yours already.")
        if any(one.startswith(f"{path}/") or path.startswith(f"{one}/") for one in files):
            raise Refused(f"{path!r} is a file and a folder at once.")
        history = (*self.history, (path, self.changed.get(path)))[-MOST_UNDO:]
        return Workspace({**self.changed, path: text}, history)

    def undo(self, name: str) -> Workspace:
        """As before the last edit of this file. Raises Refused when there is none."""
        path = clean_path(name)
        last = next((i for i in reversed(range(len(self.history))) if self.history[i][0] == path), None)
        if last is None:
            raise Refused(f"There is no edit of {path!r} to undo.")
        before = self.history[last][1]
        others = {one: text for one, text in self.changed.items() if one != path}
        changed = others if before is None else {**others, path: before}
        return Workspace(changed, (*self.history[:last], *self.history[last + 1 :]))


def clean_path(name: str) -> str:
    """A relative path in its usual form. Raises Refused for one that leads out of the workspace, or is none."""
    path = PurePosixPath(name)
    legal = name.isprintable() and "\\" not in name and name.isascii() and len(name) <= MOST_PATH
    if not legal or path.is_absolute() or ".." in path.parts or not path.parts:
        raise Refused(f"{name[:MOST_PATH]!r} is no path in the workspace.")
    return str(path)


@dataclass(frozen=True, slots=True)
class Step:
    """One action of the dialogue, as it was said, and what was observed."""

    reply: str
    action: str  # its name and arguments in a few words
    observation: str
    metric: float  # of the script as it ran last


@dataclass(frozen=True, slots=True)
class State:
    """Where an episode stands. Rollouts of one action start from such states."""

    problem: str  # its name
    metric: float  # of the script as it ran last
    workspace: Workspace = Workspace()
    steps: tuple[Step, ...] = ()

    def after(self, step: Step, workspace: Workspace | None = None) -> State:
        """The state after a step, which may have changed the workspace."""
        return replace(
            self,
            metric=step.metric,
            workspace=self.workspace if workspace is None else workspace,
            steps=(*self.steps, step),
        )


def snapshot(state: State) -> dict[str, Any]:
    """The state in JSON's types, exactly: `restore` gives it back."""
    return {
        "problem": state.problem,
        "metric": state.metric,
        "changed": dict(state.workspace.changed),
        "history": [list(one) for one in state.workspace.history],
        "steps": [[one.reply, one.action, one.observation, one.metric] for one in state.steps],
    }


def restore(line: Mapping[str, Any]) -> State:
    """Raises ValueError for what is no snapshot."""
    try:
        edits = [(known_path(path), before if before is None else text(before)) for path, before in line["history"]]
        changed = {known_path(path): text(held) for path, held in dict(line["changed"]).items()}
        steps = tuple(Step(text(a), text(b), text(c), number(d)) for a, b, c, d in line["steps"])
        return State(text(line["problem"]), number(line["metric"]), Workspace(changed, tuple(edits)), steps)
    except (KeyError, TypeError, ValueError, AttributeError, Refused) as error:
        raise ValueError(f"not a state of an episode: {error!r}") from error


def known_path(name: str) -> str:
    """Raises ValueError for a path that no workspace has."""
    if clean_path(name) != name:
        raise ValueError(f"{name!r} is no path in a workspace")
    return name


def text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{str(value)[:80]} is no text")
    return value


def number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError(f"{str(value)[:80]} is no number")
    return float(value)
