"""Chains of thought of a teacher, in four styles, and which of them are kept.

A style is an episode with the teacher that returns the chain that a student shall learn. A chain is kept when
its last reply is right (rejection sampling); of a reflection, also only when its first reply is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import posttrain as pt

RIGHT = 0.5  # a reward from which on an answer is right
AGAIN = "Your answer is wrong. Re-evaluate the problem and your steps, and answer again in full."
DESCRIBE = "Describe the picture in detail, with everything that the question needs. Do not answer it yet."
CRITICISE = "Criticise your solution: which steps are wrong or not justified?"
REVISE = "Write a revised solution in full, by this critique."


def own_chain(task: pt.Task) -> pt.Episode:
    """Distilled-CoT: the teacher's own."""
    reply = yield from pt.ask(task.prompt)
    return str(reply.content)


def reflection(task: pt.Task) -> pt.Episode:
    """Reflection-CoT: a wrong attempt, a second look, a right one."""
    first = yield from pt.ask(task.prompt)
    second = yield from pt.ask([*task.prompt, pt.assistant(first), pt.user(AGAIN)])
    return f"{first.content}\n\nWait, let me re-evaluate.\n\n{second.content}"


def caption(task: pt.Task) -> pt.Episode:
    """Caption-CoT: what is to be seen, then the solution."""
    seen = yield from pt.ask([*task.prompt[:-1], with_text(task.prompt[-1]["content"], DESCRIBE)])
    solved = yield from pt.ask(
        [*task.prompt[:-1], with_text(task.prompt[-1]["content"], f"The picture: {seen.content}")]
    )
    return f"{seen.content}\n\n{solved.content}"


def critic(task: pt.Task) -> pt.Episode:
    """Self-Critic-CoT: a draft, its critique, the revised solution."""
    draft = yield from pt.ask(task.prompt)
    messages = [*task.prompt, pt.assistant(draft), pt.user(CRITICISE)]
    critique = yield from pt.ask(messages)
    revised = yield from pt.ask([*messages, pt.assistant(critique), pt.user(REVISE)])
    return f"{draft.content}\n\n{critique.content}\n\n{revised.content}"


STYLES: Mapping[str, pt.Env] = {
    "distilled": own_chain,
    "reflection": reflection,
    "caption": caption,
    "critic": critic,
}


def with_text(content: Any, words: str) -> Any:
    """A user's message, pictures and all, with more text after it."""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
    return pt.user([*parts, {"type": "text", "text": f"\n\n{words}"}])


def right_chains(
    teacher: pt.Sampler,
    tasks: Sequence[pt.Task],
    verify: pt.Reward,
    style: str = "distilled",
    candidates: int = 4,
    seed: int = 0,
) -> dict[str, pt.Demonstration]:
    """The chain that is kept of each task, by its key; tasks without one are left out."""
    groups = pt.rollout(STYLES[style], tasks, {"policy": teacher}, candidates, seed)
    found = [(group[0].task.key, choose(group, verify, style).chain) for group in groups]
    return {key: chain for key, chain in found if chain is not None}


@dataclass(frozen=True, slots=True)
class Choice:
    """The chain of a problem that is kept, if one is, and why candidates could not be graded."""

    chain: pt.Demonstration | None
    ungraded: tuple[str, ...]


def choose(group: pt.Group, verify: pt.Reward, style: str) -> Choice:
    """The first of a problem's chains that is right and whole."""
    marks = pt.group_scores(verify, group)
    first = pt.group_scores(verify, [pt.Rollout(one.task, one.turns[:1], one.facts) for one in group])
    good = (
        one
        for one, mark, before in zip(group, marks, first, strict=True)
        if is_right(mark)
        and not any(turn.reply.stop == "length" for turn in one.turns)
        and (style != "reflection" or (isinstance(before, pt.Score) and not is_right(before)))
    )
    one = next(good, None)
    chain = None if one is None else pt.Demonstration((*one.task.prompt, pt.assistant(str(one.facts))))
    return Choice(chain, tuple(mark.reason for mark in marks if isinstance(mark, pt.Invalid)))


def is_right(mark: Any) -> bool:
    return isinstance(mark, pt.Score) and mark.value >= RIGHT
