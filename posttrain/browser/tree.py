"""What a page shows: its accessibility tree as text, with an id for every element that can be acted on.

    heading 'Incidents'
    [42] textbox 'Owner' value='Ann'
    [17] combobox 'State' value='Open' options='Open', 'Closed'
      StaticText '3 open'

The ids ("bids", as in BrowserGym) are drawn anew for each page that is loaded: there is nothing to learn by heart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.browser.chromium import Page
from posttrain.core import EpisodeFailed

INTERACTIVE = {
    *("button", "checkbox", "combobox", "gridcell", "link", "listbox", "menuitem", "menuitemcheckbox"),
    *("menuitemradio", "option", "radio", "searchbox", "slider", "spinbutton", "switch", "tab", "textbox", "treeitem"),
}
STRUCTURE = {"alert", "article", "cell", "columnheader", "dialog", "heading", "img", "row", "rowheader", "StaticText"}
STATES = ("checked", "selected", "expanded", "pressed", "disabled")
WITH_OPTIONS = ("combobox", "listbox")
MOST_LINES, MOST_CHARACTERS = 400, 20_000


@dataclass(frozen=True, slots=True)
class Node:
    """One element of the tree. `number` is the browser's own; `depth` counts the elements that are shown above it."""

    number: int
    role: str
    name: str
    value: str
    states: tuple[str, ...]
    options: tuple[str, ...]
    depth: int


def observe(page: Page, *, lines: int = MOST_LINES, characters: int = MOST_CHARACTERS) -> str:
    """The tree of the page and its frames, in page order; what does not fit is left out, and a line says so.

    Raises EpisodeFailed when the browser fails.
    """
    try:
        nodes = list(shown_nodes(page.browser.wait(raw_trees(page))))
    except RecursionError as error:
        raise EpisodeFailed("the page is nested too deeply to be read") from error
    page.bids = bids_of([node.number for node in nodes if node.role in INTERACTIVE], page)
    text = [line(node, page.bids) for node in nodes[:lines]]
    size = 0
    for count, one in enumerate(text):
        size += len(one) + 1
        if size > characters:
            text = text[:count]
            break
    left_out = len(nodes) - len(text)
    return "\n".join([*text, *([f"({left_out} more)"] if left_out else [])])


async def raw_trees(page: Page) -> list[list[dict[str, Any]]]:
    """The nodes of the main frame and of each frame of its process, as Chromium's protocol gives them."""
    frames = (await page.session.send("Page.getFrameTree"))["frameTree"]
    return [
        (await page.session.send("Accessibility.getFullAXTree", {"frameId": frame}))["nodes"]
        for frame in frame_ids(frames)
    ]


def frame_ids(tree: Mapping[str, Any]) -> Iterator[str]:
    yield tree["frame"]["id"]
    for child in tree.get("childFrames", ()):
        yield from frame_ids(child)


def shown_nodes(trees: Sequence[Sequence[dict[str, Any]]]) -> Iterator[Node]:
    """Depth-first: the protocol lists nodes breadth-first, in which page order is lost."""
    for nodes in trees:
        if nodes:
            known = {node["nodeId"]: node for node in nodes}
            yield from walk(nodes[0], known, 0, "")


def walk(raw: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]], depth: int, above: str) -> Iterator[Node]:
    """The nodes that are shown of this one and those below it; `above` is the name of the last one shown above."""
    role, name = content(raw, "role"), content(raw, "name")
    children = [known[child] for child in raw.get("childIds", ()) if child in known]
    repeats = role == "StaticText" and (not name or name == above)  # the text of a button, a label or a heading
    shown = not raw.get("ignored") and not repeats and (role in INTERACTIVE or (role in STRUCTURE and bool(name)))
    if shown:
        options = tuple(option_names(children, known)) if role in WITH_OPTIONS else ()
        yield Node(
            raw.get("backendDOMNodeId") or 0, role, name, content(raw, "value"), tuple(states(raw)), options, depth
        )
        if role in WITH_OPTIONS or role in ("textbox", "searchbox", "StaticText"):
            return  # what is in it is its options or its value
    for child in children:
        yield from walk(child, known, depth + shown, name if shown else above or label(raw, children))


def label(raw: Mapping[str, Any], children: Sequence[Mapping[str, Any]]) -> str:
    """The text of a label, which its field repeats as its name."""
    if content(raw, "role") != "LabelText":
        return ""
    return next((content(child, "name") for child in children if content(child, "role") == "StaticText"), "")


def option_names(children: Sequence[Mapping[str, Any]], known: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for child in children:
        if content(child, "role") == "option":
            yield from filter(None, [content(child, "name")])
        else:
            yield from option_names([known[one] for one in child.get("childIds", ()) if one in known], known)


def states(raw: Mapping[str, Any]) -> Iterator[str]:
    for one in raw.get("properties", ()):
        value = one["value"].get("value")
        if one["name"] in STATES and value not in (None, False, "false"):
            yield one["name"]


def content(raw: Mapping[str, Any], name: str) -> str:
    """A text of a node, with single blanks."""
    return " ".join(str((raw.get(name) or {}).get("value") or "").split())


def bids_of(numbers: Sequence[int], page: Page) -> dict[int, str]:
    """An id for each node: its own as long as it is there, else a new one from the page's seed."""
    known = {number: page.bids[number] for number in numbers if number in page.bids}
    used = set(known.values())
    top = max(100, 10 ** len(str(2 * len(numbers))))
    for number in numbers:
        while number not in known:
            if (bid := str(page.draw.randrange(10, top))) not in used:
                known[number] = bid
                used.add(bid)
    return known


def line(node: Node, bids: Mapping[int, str]) -> str:
    parts = [f"[{bids[node.number]}]"] if node.number in bids else []
    parts += [node.role, repr(node.name)]
    parts += [f"value={node.value!r}"] if node.value else []
    parts += [f"options={', '.join(map(repr, node.options))}"] if node.options else []
    return "  " * node.depth + " ".join([*parts, *node.states])
