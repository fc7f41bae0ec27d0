"""Tasks whose prompts are too long: left out or made shorter by a rule, and counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from posttrain.core import Task

if TYPE_CHECKING:
    from posttrain.policy.text import TextPolicy


@dataclass
class Fitted:
    """Tasks whose prompts fit, and what became of the others."""

    tasks: list[Task]
    dropped: list[str]  # keys
    cut: list[str]

    def __str__(self) -> str:
        parts = [f"{len(self.tasks)} questions"]
        parts += [f"{len(self.cut)} cut to fit"] if self.cut else []
        parts += [f"{len(self.dropped)} dropped, their prompts being too long"] if self.dropped else []
        return ", ".join(parts)


def fit(
    tasks: Sequence[Task],
    length: Callable[[Task], int],
    most: int,
    cut: Callable[[Task], Task | None] = lambda task: None,
    hint: str = "",
) -> Fitted:
    """The tasks whose prompts have at most so many tokens, in order.

    length  of a task's prompt
    cut     a shorter task in the place of one that is too long, or None: then it is left out
    hint    what else may be given, for the error
    Raises ValueError when nothing is left.
    """
    out = Fitted([], [], [])
    for task in tasks:
        shown: Task | None = task
        if length(task) > most:
            shown = cut(task)
            (out.dropped if shown is None else out.cut).append(task.key)
        out.tasks += [] if shown is None else [shown]
    if not out.tasks:
        raise ValueError(
            f"not one of {len(tasks)} prompts fits in {most} tokens: give a larger `most_prompt`, or where the model's "
            f"context is the limit a smaller `max_new`{hint}"
        )
    return out


def prompt_tokens(policy: TextPolicy) -> Callable[[Task], int]:
    """The length of a task's prompt as the policy's template renders it."""
    return lambda task: len(policy.chat.prompt(task.prompt)[0])


def room(policy: TextPolicy, most_prompt: int) -> int:
    """Most tokens of a prompt: as many as were asked for, and as leave the policy's context room for its reply."""
    return min(most_prompt, policy.context - policy.sampling.max_new)
