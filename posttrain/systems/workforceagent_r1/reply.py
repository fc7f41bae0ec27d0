"""What a reply says: a thought in tags, one action in tags, and nothing behind it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from posttrain.browser.actions import Action, parse_action
from posttrain.chat import without_thinking

BLOCK = re.compile(r"<action>(.*?)</action>", re.DOTALL)
THOUGHT = re.compile(r"\A\s*<think>(.*?)</think>", re.DOTALL)
NAME = re.compile(r"\s*(\w+)\s*\(")
MOST_BEHIND = 10  # characters behind the action of a reply that stops there; ours


@dataclass(frozen=True, slots=True)
class Stated:
    """The first action of a reply, or why it is none; its name, if only that can be read; the thought before it."""

    action: Action | None
    name: str
    reason: str
    thought: str
    stops: bool  # nothing of any length stands behind the action


def stated(text: str) -> Stated | None:
    """Of a whole reply; None without a complete `<action>...</action>` behind its thinking.

    What is only thought of is no action, and a thinking that is never closed hides all that follows.
    """
    behind = without_thinking(text)
    block = BLOCK.search(behind)
    if block is None:
        return None
    thought = THOUGHT.match(text)
    name = NAME.match(block[1])
    about = {
        "thought": thought[1].strip() if thought else "",
        "stops": len(behind[block.end() :].strip()) <= MOST_BEHIND,
    }
    try:
        action = parse_action(block[1])
    except ValueError as error:
        return Stated(None, name[1] if name else "", str(error), **about)
    return Stated(action, action.name, "", **about)


def reply_text(action: Action | str, thought: str = "") -> str:
    """A reply of this action, after a thought if there is one."""
    return (f"<think>\n{thought}\n</think>\n" if thought else "") + f"<action>\n{action}\n</action>"
