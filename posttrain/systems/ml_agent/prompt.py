"""How a state is put to a policy: the problem, the tools, and the dialogue, of which the last three steps stand whole.

Earlier steps are a line each. An observation of more than 5,000 characters is cut in its middle, in the place of the
published summary by a model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import posttrain as pt
from posttrain.systems.ml_agent.actions import FIELDS, Action, parse, tools
from posttrain.systems.ml_agent.problem import Problem
from posttrain.systems.ml_agent.workspace import State

WHOLE_STEPS, MOST_OBSERVED = 3, 5000
MOST_EARLIER = 200  # characters of an earlier step
CODE = re.compile(r"```[\w+-]*[ \t]*\n(.*?)```", re.DOTALL)


class Dialect(Protocol):
    """How states are told and replies are read: at full scale as in MLAgentBench, in a tiny world in a few words."""

    @property
    def stop(self) -> tuple[str, ...]: ...  # strings that end a reply
    def messages(self, problem: Problem, state: State, ideas: Sequence[str] = ()) -> tuple[pt.Message, ...]: ...
    def action(self, problem: Problem, reply: str) -> Action: ...  # raises Refused


@dataclass(frozen=True)
class InFields:
    """MLAgentBench's format. `editor`: a second model edits scripts."""

    editor: bool = True
    stop: tuple[str, ...] = ("Observation:",)

    def messages(self, problem: Problem, state: State, ideas: Sequence[str] = ()) -> tuple[pt.Message, ...]:
        """`ideas` are what an expert is told to try; nobody else is."""
        told = [task_text(problem), tools_text(self.editor)]
        if ideas:
            told.append("Try these ideas:\n" + "\n".join(f"- {one}" for one in ideas))
        earlier, last = state.steps[:-WHOLE_STEPS], state.steps[-WHOLE_STEPS:]
        if earlier:
            lines = [
                f"{i + 1}. {cut(one.action, MOST_EARLIER)}: metric {one.metric:g}" for i, one in enumerate(earlier)
            ]
            told.append("Earlier steps:\n" + "\n".join(lines))
        told.append(f"The script {problem.script} has the metric {state.metric:g}.")
        messages = [pt.user("\n\n".join(told))]
        for one in last:
            messages += [pt.assistant(one.reply), pt.user(f"Observation:\n{one.observation}")]
        return tuple(messages)

    def action(self, problem: Problem, reply: str) -> Action:
        return parse(reply, tools(self.editor))


def task_text(problem: Problem) -> str:
    better = "higher" if problem.higher else "lower"
    return (
        f"You improve a machine learning script, {problem.script}, step by step.\n\n{problem.description}\n\n"
        f"A {better} metric is better. In the beginning it is {problem.start:g}. "
        f"Files: {', '.join(sorted(problem.files))}"
    )


def tools_text(editor: bool) -> str:
    listed = "\n".join(
        f"- {name}: {tool.purpose}. Input: {json.dumps({key: f'[{what}]' for key, what in tool.arguments.items()})}"
        for name, tool in tools(editor).items()
    )
    shape = "\n".join(f"{name}: [...]" for name in FIELDS)
    return f"Actions:\n{listed}\n\nReply with one action, in this form; the input is JSON:\n{shape}"


def cut(text: str, most: int = MOST_OBSERVED) -> str:
    """The head and the tail of a text that is longer, with a line that says so."""
    if len(text) <= most:
        return text
    gap = f"\n... {len(text) - most} characters are left out ...\n"
    head = max((most - len(gap)) // 2, 0)
    return text[:head] + gap + text[len(text) - max(most - len(gap) - head, 0) :]


def edit_request(text: str, instruction: str) -> tuple[pt.Message, ...]:
    """What a second model is asked that edits a script."""
    return (
        pt.user(
            f"Edit this Python script as the instruction says, and change nothing else. Reply with the whole edited "
            f"script in one ```python block.\n\nInstruction: {instruction}\n\n```python\n{text}\n```"
        ),
    )


def question(text: str, what: str) -> tuple[pt.Message, ...]:
    """What a second model is asked about a text."""
    return (pt.user(f"{what}\n\n```\n{cut(text, 4 * MOST_OBSERVED)}\n```"),)


def code_in(reply: pt.Reply) -> str | None:
    """The first block of code of a reply that was not cut off."""
    found = CODE.search(str(reply.content))
    return found[1] if found and reply.stop != "length" else None
