"""Recorded single steps: what an oracle did, and what it saw before.

    {"instance": "form/12", "goal": "...", "history": ["click('12')"], "observation": "[42] textbox 'Owner' ...",
     "action": "fill('42', 'Ann')", "needed": ["select_option('17', 'Open')"], "thought": "Owner is empty"}

`history`, `needed`, `thought` and `kind` may be left out. An action may also stand as WorkArena's
`extract_finetuning_traces.py` records it: playwright's method as `action`, with `bid`, `args` and `kwargs`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import posttrain as pt
from posttrain.browser.actions import Action, parse_action
from posttrain.long_prompts import Fitted
from posttrain.records import Place, column, records, with_unique_keys
from posttrain.systems.workforceagent_r1.prompts import Prompt, Writer, fitting_request
from posttrain.systems.workforceagent_r1.reply import reply_text
from posttrain.systems.workforceagent_r1.reward import Truth

KEYBOARD = "keyboard"  # WorkArena's bid of an action on no element


@dataclass(frozen=True, slots=True)
class Step:
    """One step of an episode; `instance` is the task that the episode solved."""

    key: str
    instance: str
    kind: str
    goal: str
    history: tuple[str, ...]
    observation: str
    truth: Truth
    thought: str = ""

    @property
    def line(self) -> dict[str, Any]:
        """As a line of a file."""
        return {
            "id": self.key,
            "instance": self.instance,
            "kind": self.kind,
            "goal": self.goal,
            "history": list(self.history),
            "observation": self.observation,
            "action": str(self.truth.action),
            "needed": list(map(str, self.truth.needed)),
            "thought": self.thought,
        }


def steps_of(data: str, limit: int | None = None, split: str = "train") -> list[Step]:
    """The steps of a file or dataset. Raises ValueError naming file and line of one that is no step."""
    return with_unique_keys((place, step_of(place, record)) for place, record in records(data, limit, split))


def step_of(place: Place, record: Mapping[str, Any]) -> Step:
    history, needed = record.get("history") or [], record.get("needed") or []
    for name, value in (("history", history), ("needed", needed)):
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise ValueError(f"{place}: `{name}` is no list of actions")
    texts = {name: column(record, name, place, name) for name in ("instance", "goal", "observation")}
    for name, value in texts.items():
        if not isinstance(value, str | int) or not str(value).strip():
            raise ValueError(f"{place}: `{name}` is no text")
    truth = Truth(recorded_action(place, record), tuple(action_at(place, one) for one in needed))
    key = str(record.get("id") or f"{texts['instance']}/{place.line}")
    more = {"kind": str(record.get("kind") or ""), "thought": str(record.get("thought") or "")}
    return Step(
        key,
        str(texts["instance"]),
        more["kind"],
        str(texts["goal"]),
        tuple(history),
        str(texts["observation"]),
        truth,
        more["thought"],
    )


def action_at(place: Place, text: str) -> Action:
    try:
        return parse_action(text)
    except ValueError as error:
        raise ValueError(f"{place}: the action {text[:80]!r} cannot be read: {error}") from error


def recorded_action(place: Place, record: Mapping[str, Any]) -> Action:
    """An action in BrowserGym's syntax, or a call of playwright's in WorkArena's columns."""
    text = column(record, "action", place, "action")
    if not isinstance(text, str):
        raise ValueError(f"{place}: `action` is no text")
    if "bid" not in record:
        return action_at(place, text)
    return action_at(
        place, browsergym_call(text, str(record["bid"]), record.get("args") or [], record.get("kwargs") or {})
    )


def browsergym_call(method: str, bid: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Playwright's `set_checked(True)` on an element is BrowserGym's `check`; typing into an element is filling it."""
    if bid == KEYBOARD:
        return f"keyboard_{method}({', '.join(map(repr, args))})"
    values = [*args, *(value for name, value in kwargs.items() if name in ("value", "text", "key", "label", "checked"))]
    if method == "set_checked":
        return f"{'check' if values and values[0] else 'uncheck'}({bid!r})"
    if method in ("click", "dblclick"):
        name = "dblclick" if kwargs.get("click_count") == 2 else method
        return f"{name}({', '.join(map(repr, [bid, *filter(None, [kwargs.get('button')])]))})"
    name = "fill" if method == "type" else method
    return f"{name}({', '.join(map(repr, [bid, *values[:1]]))})"


def split_by_instance(steps: Sequence[Step], share: float, seed: int) -> tuple[list[Step], list[Step]]:
    """Steps to learn from, and steps of instances none of which is learnt from: about `share` of them.

    Which instances these are depends on their names and the seed alone, not on the file around them.
    """
    held = [pt.mix(seed, "held out", one.instance) % 10_000 < share * 10_000 for one in steps]
    return (
        [one for one, out in zip(steps, held, strict=True) if not out],
        [one for one, out in zip(steps, held, strict=True) if out],
    )


def fitted_tasks(steps: Sequence[Step], write: Writer, tokens: Callable[[Prompt], int], most: int) -> Fitted:
    """The steps as tasks with prompts of at most so many tokens.

    A longer one loses lines at the end of its page; it is left out when the element to act on is among them.
    Raises ValueError when nothing is left.
    """
    fitted = Fitted([], [], [])
    for one in steps:
        asked = (one.goal, one.history, one.observation, "")
        prompt = fitting_request(write, tokens, most, asked, bid_of(one.truth.action))
        if prompt is None:
            fitted.dropped.append(one.key)
            continue
        if prompt != write(*asked):
            fitted.cut.append(one.key)
        fitted.tasks.append(pt.Task(one.key, prompt, one.truth, {"kind": one.kind}))
    if not fitted.tasks:
        raise ValueError(f"not one of {len(steps)} steps fits in {most} tokens: give a larger `most_prompt`")
    return fitted


def bid_of(action: Action) -> str:
    """The id of the element that it acts on; empty for an action on none."""
    from posttrain.browser.actions import PARAMETERS

    return str(action.arguments[0]) if PARAMETERS[action.name][:1] == ("bid",) else ""


def demonstrations_of(steps: Sequence[Step], tasks: Sequence[pt.Task], thoughtful: bool) -> Iterator[pt.Demonstration]:
    """What is learnt by supervision: the recorded action, after its recorded thought where that is wanted."""
    thoughts = {one.key: one.thought for one in steps}
    for task in tasks:
        reply = reply_text(task.truth.action, thoughts[task.key] if thoughtful else "")
        yield pt.Demonstration((*task.prompt, pt.assistant(reply)))
