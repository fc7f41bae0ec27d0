"""What the agent is shown of a step: the goal, what it has done, and the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import posttrain as pt

Prompt: TypeAlias = "tuple[pt.Message, ...]"
Writer: TypeAlias = Callable[[str, Sequence[str], str, str], Prompt]  # goal, history, observation, last error

INSTRUCTIONS = """You operate a web browser for a user. Elements of the page have ids in brackets. Reply with your \
reasoning and with one action:

<think>
what is still to be done, and which element does it
</think>
<action>
click('12')
</action>

The actions are:
click('id'), dblclick('id'), hover('id'), focus('id')
fill('id', 'text'), clear('id'), press('id', 'Enter')
select_option('id', 'option'), check('id'), uncheck('id')
scroll(0, 200), goto('address'), go_back(), noop()
keyboard_press('Enter'), keyboard_type('text')
send_msg_to_user('the answer, when the user asked for one')
report_infeasible('why it cannot be done')

Write nothing behind the action."""


def request(goal: str, history: Sequence[str], observation: str, error: str = "") -> Prompt:
    """Ours: the paper's wording is not public."""
    done = "\n".join(f"{number}. {one}" for number, one in enumerate(history, 1)) or "nothing yet"
    failed = f"\n\nYour last action failed:\n{error}" if error else ""
    return (
        pt.system(INSTRUCTIONS),
        pt.user(f"The goal:\n{goal}\n\nWhat you have done:\n{done}{failed}\n\nThe page:\n{observation}"),
    )


def fitting_request(
    write: Writer,
    tokens: Callable[[Prompt], int],
    most: int,
    step: tuple[str, Sequence[str], str, str],
    needed: str = "",
) -> Prompt | None:
    """The prompt of a step in at most so many tokens: lines at the end of the observation are left out, and counted.

    needed  an id that must stay in view
    None where it does not, or where nothing of the page would be left.
    """
    goal, history, observation, error = step
    lines = observation.splitlines()

    def prompt(count: int) -> Prompt:
        left = len(lines) - count
        return write(goal, history, "\n".join([*lines[:count], *([f"({left} more)"] if left else [])]), error)

    if tokens(prompt(len(lines))) <= most:
        return prompt(len(lines))
    low, high = 0, len(lines)  # the most lines that fit are in [low, high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if tokens(prompt(middle)) <= most else (low, middle)
    in_view = not needed or any(f"[{needed}]" in line for line in lines[:low])
    return prompt(low) if low and in_view else None
