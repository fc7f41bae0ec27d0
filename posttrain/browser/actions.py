"""BrowserGym's actions: parsed as Python and never run, compared by value, performed on a page.

fill('42', 'Ann')  ==  fill(bid="42", value="Ann")  ==  fill(42, 'Ann')
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from posttrain.browser.chromium import Page, first_line
from posttrain.core import EpisodeFailed

if TYPE_CHECKING:
    from playwright.async_api import ElementHandle

Value: TypeAlias = str | float | bool | tuple[str, ...]
PARAMETERS: Mapping[str, tuple[str, ...]] = {
    "click": ("bid",),
    "dblclick": ("bid",),
    "hover": ("bid",),
    "check": ("bid",),
    "uncheck": ("bid",),
    "clear": ("bid",),
    "focus": ("bid",),
    "fill": ("bid", "value"),
    "select_option": ("bid", "options"),
    "press": ("bid", "key_comb"),
    "scroll": ("delta_x", "delta_y"),
    "keyboard_press": ("key",),
    "keyboard_down": ("key",),
    "keyboard_up": ("key",),
    "keyboard_type": ("text",),
    "goto": ("url",),
    "go_back": (),
    "send_msg_to_user": ("text",),
    "report_infeasible": ("reason",),
    "noop": ("wait_ms",),
}
OPTIONAL: Mapping[str, Mapping[str, Value]] = {
    "noop": {"wait_ms": 1000.0},
    "click": {"button": "left"},
    "dblclick": {"button": "left"},
}
LONGEST, LONGEST_WAIT_MS = 5_000, 3_000  # characters of an action; milliseconds
BUTTONS = ("left", "middle", "right")


@dataclass(frozen=True, slots=True, eq=False)
class Action:
    """A call by its name and the values of its arguments in their order, without defaults at the end.

    Equal to any other spelling of the same, and to one whose texts differ in white space alone.
    """

    name: str
    arguments: tuple[Value, ...] = ()

    @property
    def compared(self) -> tuple[Value, ...]:
        return (self.name, *(" ".join(one.split()) or one if isinstance(one, str) else one for one in self.arguments))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Action) and self.compared == other.compared

    def __hash__(self) -> int:
        return hash(self.compared)

    def __str__(self) -> str:
        return f"{self.name}({', '.join(map(spelling, self.arguments))})"


def spelling(value: Value) -> str:
    return repr(list(value)) if isinstance(value, tuple) else repr(value)


def parse_action(text: str) -> Action:
    """The one action that a text is. Raises ValueError with the reason, for a policy to read.

    Several actions are refused: only the first would have been chosen with this page in view. Texts are compared with
    single blanks, ids as text, numbers as numbers; an option that is a list of one is that one.
    """
    call = call_of(text)
    name = call.func.id if isinstance(call.func, ast.Name) else ""
    if name not in PARAMETERS:
        raise ValueError(f"there is no action {name[:40]!r}, only {', '.join(PARAMETERS)}")
    required, optional = PARAMETERS[name], OPTIONAL.get(name, {})
    names = tuple(dict.fromkeys([*required, *optional]))
    if len(call.args) > len(names):
        raise ValueError(f"{name} takes {len(names)} arguments, not {len(call.args)}")
    given = dict(zip(names, call.args, strict=False))
    for keyword in call.keywords:
        if keyword.arg not in names or keyword.arg in given:
            raise ValueError(f"{name} has no argument {keyword.arg!r}, or has it twice")
        given[keyword.arg] = keyword.value
    if missing := [one for one in required if one not in given and one not in optional]:
        raise ValueError(f"{name} needs {', '.join(missing)}")
    values = {**optional, **{one: value_of(node, one) for one, node in given.items()}}
    if names and values[names[-1]] == optional.get(names[-1]):
        names = names[:-1]
    return Action(name, tuple(values[one] for one in names))


def call_of(text: str) -> ast.Call:
    if len(text) > LONGEST:
        raise ValueError(f"an action has at most {LONGEST} characters")
    try:
        body = ast.parse(text.strip().replace("\x00", ""), mode="exec").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"this is no action: {first_line(error)}") from error
    if len(body) > 1:
        raise ValueError("only one action at a time")
    only = body[0].value if body and isinstance(body[0], ast.Expr) else None
    if not isinstance(only, ast.Call):
        raise ValueError("this is no action: write name('argument', ...)")
    return only


def value_of(node: ast.expr, name: str) -> Value:
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"`{name}` is no plain value") from error
    if name == "options":
        several = value if isinstance(value, list | tuple) else [value]
        texts = tuple(plain_text(one, name) for one in several)
        return texts[0] if len(texts) == 1 else texts
    if name in ("delta_x", "delta_y", "wait_ms"):
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e6:
            raise ValueError(f"`{name}` is a number")
        return float(value)
    return plain_text(value, name)


def plain_text(value: object, name: str) -> str:
    """Raises ValueError for what is no text; numbers are read as text, since ids are often written so."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"`{name}` is a text")
    try:
        text = str(value)
        text.encode()
    except ValueError as error:  # half a character, or a number of too many digits
        raise ValueError(f"`{name}` is no text that a page can hold") from error
    return text.strip() if name == "bid" else text


def perform(page: Page, action: Action) -> str:
    """Do it; an empty string, or what a policy did wrong, for it to read. Raises EpisodeFailed when the browser fails.

    Messages to the user are no business of the page: nothing is done.
    """
    if action.name in ("send_msg_to_user", "report_infeasible"):
        return ""
    try:
        return page.browser.wait(act(page, action))
    except ValueError as error:
        return str(error)


async def act(page: Page, action: Action) -> str:
    from playwright.async_api import Error

    try:
        if action.name == "goto":
            await page.load(str(action.arguments[0]), page.browser.action_s)
        elif action.name == "scroll":
            await page.page.mouse.wheel(*map(float, action.arguments))  # type: ignore[arg-type]
        elif action.name == "noop":
            wait_ms, *_ = (*action.arguments, OPTIONAL["noop"]["wait_ms"])
            await page.page.wait_for_timeout(min(max(float(wait_ms), 0.0), LONGEST_WAIT_MS))  # type: ignore[arg-type]
        elif action.name == "go_back":
            await page.page.go_back()
        elif action.name.startswith("keyboard_"):
            refuse_clipboard(action)
            await getattr(page.page.keyboard, action.name.removeprefix("keyboard_"))(str(action.arguments[0]))
        else:
            await act_on(await element(page, str(action.arguments[0])), action)
    except Error as error:
        if is_fatal(error) or page.page.is_closed():
            raise EpisodeFailed(f"the browser failed: {first_line(error)}") from error
        return first_line(error)
    return ""


def is_fatal(error: Exception) -> bool:
    """The page or the browser is gone."""
    return any(sign in str(error) for sign in ("has been closed", "crashed", "Connection closed", "was closed"))


async def element(page: Page, bid: str) -> ElementHandle:
    """The element with this id in the last observation. Raises ValueError when there is none, or no more."""
    number = next((number for number, known in page.bids.items() if known == bid), None)
    if number is None:
        raise ValueError(f"there is no element with bid {bid[:40]!r}")
    from playwright.async_api import Error

    mark = f"{page.seed}-{page.loaded}-{bid}"
    try:
        found = await page.session.send("DOM.resolveNode", {"backendNodeId": number})
        await page.session.send(
            "Runtime.callFunctionOn",
            {
                "objectId": found["object"]["objectId"],
                "functionDeclaration": "function(mark) { this.setAttribute('bid', mark) }",
                "arguments": [{"value": mark}],
            },
        )
    except Error as error:
        if is_fatal(error):
            raise
        raise ValueError(f"the element with bid {bid!r} is not there any more") from error
    for frame in page.page.frames:
        if handle := await frame.query_selector(f"[bid={mark!r}]"):
            return handle
    raise ValueError(f"the element with bid {bid!r} is not there any more")


def refuse_clipboard(action: Action) -> None:
    """Raises ValueError for keys that copy or paste: episodes share the browser's clipboard, and nothing else."""
    keys = {one.casefold() for one in str(action.arguments[-1]).split("+")}
    held = keys & {"control", "controlleft", "controlright", "controlormeta", "meta", "metaleft", "metaright"}
    alone = action.name == "keyboard_down" and held
    copies = action.name in ("press", "keyboard_press") and ((held and keys & set("cxv")) or "insert" in keys)
    if alone or copies:
        raise ValueError("the clipboard cannot be used here")


async def act_on(found: ElementHandle, action: Action) -> None:
    second = action.arguments[1] if len(action.arguments) > 1 else ""
    match action.name:
        case "click" | "dblclick":
            if (mouse_button := second or "left") not in BUTTONS:
                raise ValueError(f"`button` is one of {', '.join(BUTTONS)}")
            await getattr(found, action.name)(button=mouse_button)
        case "clear":
            await found.fill("")
        case "select_option":
            await found.select_option(label=list(second) if isinstance(second, tuple) else str(second))
        case "fill" | "press":
            refuse_clipboard(action)
            await getattr(found, action.name)(str(second))
        case _:  # hover, focus, check, uncheck
            await getattr(found, action.name)()
