"""What an agent can do, and how a reply says it: the response format and the tools of MLAgentBench (arXiv:2310.03302).

Edits are by a second model, which is given the script and an instruction, or by the policy, which writes the new text
into its action. Both have the same tools otherwise.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from posttrain.systems.ml_agent.workspace import Refused

FIELDS = ("Reflection", "Research Plan and Status", "Fact Check", "Thought", "Action", "Action Input")
HEADING = re.compile(rf"^\**({'|'.join(FIELDS)})\**:\**[ \t]*", re.MULTILINE)
FENCED = re.compile(r"^```(?:json)?(.*)```$", re.DOTALL)
MOST_LINES = 100  # that can be inspected at once
LIST, COPY, UNDO, EXECUTE = "List Files", "Copy File", "Undo Edit Script", "Execute Script"
UNDERSTAND, INSPECT, REFLECT, ANSWER = "Understand File", "Inspect Script Lines", "Reflection", "Final Answer"
EDIT, EDIT_SEGMENT = "Edit Script (AI)", "Edit Script Segment (AI)"


@dataclass(frozen=True, slots=True)
class Tool:
    """What it does, and its arguments with what each is; those in `NUMBERS` are whole numbers, the others texts."""

    purpose: str
    arguments: Mapping[str, str]


NUMBERS = ("start_line_number", "end_line_number")
SCRIPT = {"script_name": "a script, by its path"}
LINES = {"start_line_number": "the first line, from 1", "end_line_number": "the last line"}
WISH = {"edit_instruction": "what is to be changed, in detail", "save_name": "the path to save the edited script to"}
TEXT = {"new_text": "the new text, in full", "save_name": "the path to save the edited script to"}
COMMON: Mapping[str, Tool] = {
    LIST: Tool("lists the files below a folder", {"dir_path": "a folder, such as ."}),
    COPY: Tool("copies a script", {"source": "its path", "destination": "the path of the copy"}),
    UNDO: Tool("undoes the last edit of a script", SCRIPT),
    EXECUTE: Tool("executes a script and shows what it prints", SCRIPT),
    UNDERSTAND: Tool("tells what is in a file", {"file_name": "its path", "things_to_look_for": "what to look for"}),
    INSPECT: Tool(f"shows lines of a script, at most {MOST_LINES}", {**SCRIPT, **LINES}),
    REFLECT: Tool("looks back over what was done so far", {"things_to_reflect_on": "what to think about"}),
    ANSWER: Tool("ends the work", {"final_answer": "what was achieved"}),
}


def tools(editor: bool) -> dict[str, Tool]:
    """All of them by name. `editor`: a second model edits, by an instruction."""
    how = WISH if editor else TEXT
    by = "has a script edited by an assistant" if editor else "replaces a script"
    part = "has some lines of a script edited by an assistant" if editor else "replaces some lines of a script"
    ends = "; it is executed, and the difference and its output are shown"
    return {
        **COMMON,
        EDIT: Tool(by + ends, {**SCRIPT, **how}),
        EDIT_SEGMENT: Tool(part + ends, {**SCRIPT, **LINES, **how}),
    }


@dataclass(frozen=True, slots=True)
class Action:
    """A tool and its arguments."""

    name: str
    arguments: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.name} {json.dumps(dict(self.arguments))}"

    def text(self, name: str) -> str:
        return str(self.arguments[name])

    def lines(self) -> tuple[int, int]:
        """The first line and the last. Raises Refused where there is none between them."""
        first, last = (int(self.arguments[name]) for name in NUMBERS)
        if not 1 <= first <= last:
            raise Refused(f"There are no lines {first} to {last}.")
        return first, last


def parse(reply: str, known: Mapping[str, Tool]) -> Action:
    """The action of a reply that has the six fields in their order. Raises Refused naming what is wrong."""
    _, *pieces = HEADING.split(reply)
    names, texts = pieces[::2], [text.strip() for text in pieces[1::2]]
    if tuple(names) != FIELDS:
        missing = [name for name in FIELDS if name not in names]
        wrong = f"{missing[0]} is missing" if missing else "one comes twice, or they are out of order"
        raise Refused(f"The reply must have the fields {', '.join(FIELDS)}, each once: {wrong}.")
    name, given = texts[-2].strip("[]*` "), texts[-1]
    if name not in known:
        raise Refused(f"There is no action {name[:80]!r}. Actions: {', '.join(known)}")
    fenced = FENCED.match(given)
    try:
        arguments = json.loads(fenced[1] if fenced else given)
    except (ValueError, RecursionError) as error:
        raise Refused(f"The Action Input is no JSON: {error}") from None
    return checked_action(name, arguments, known[name])


def checked_action(name: str, arguments: Any, tool: Tool) -> Action:
    """Raises Refused for other arguments than the tool's, or of other kinds."""
    if not isinstance(arguments, dict) or set(arguments) != set(tool.arguments):
        raise Refused(f"The Action Input of {name} is an object with {', '.join(tool.arguments)}.")
    for key, value in arguments.items():
        number = key in NUMBERS
        if number and isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value):
            arguments[key] = value = int(value)
        if isinstance(value, bool) or not isinstance(value, int if number else str):
            raise Refused(f"{key} of {name} must be {'a whole number' if number else 'a text'}.")
        if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise Refused(f"{key} of {name} holds half a character.")
    return Action(name, arguments)
