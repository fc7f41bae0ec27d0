"""A workplace in seven kinds of tasks, as pages for a real browser: forms, lists, menus, a catalogue, a dashboard.

    Create a record with Owner Ann and State Open        fill, select_option, click Submit
    List records with Owner Ann                          choose a column, fill a value, click Filter
    Sort records by Owner Descending                     two choices, click Sort
    Open Reports of Assets                               open the application, then its module
    Order Two of Laptop                                  open the item, choose how many, click Order
    Look up the Contact of Laptop                        search, then tell what stands there
    Report the value of Open                             tell what stands there

A page is drawn from a seed and judges itself: it compares what was sent off with what was wanted. A shifted layout has
its elements in a random order, and more of them. What the base model has learnt is to find what it is told to act on,
on pages like these: not what a goal asks for.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from posttrain.core import Message
from posttrain.data import Demonstration
from posttrain.episode import assistant, user
from posttrain.seeding import mix

Kind: TypeAlias = Literal["form", "filter", "sort", "menu", "catalogue", "knowledge", "dashboard"]
KINDS: tuple[Kind, ...] = ("form", "filter", "sort", "menu", "catalogue", "knowledge", "dashboard")
TEXTS = ("Owner", "Location", "Company", "Contact")
CHOICES = ("State", "Priority", "Impact", "Category")
NAMES = ("Ann", "Bob", "Cem", "Dag", "Eva", "Fay", "Gus", "Hal", "Ida", "Jon", "Kim", "Leo")
VALUES = ("Open", "Closed", "High", "Low", "New", "Old")
NUMBERS = ("One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight")
APPLICATIONS = ("Assets", "Changes", "Problems", "Requests", "Contracts")
MODULES = ("Reports", "Overview", "Archive", "Settings", "Calendar")
ITEMS = ("Laptop", "Monitor", "Phone", "Tablet", "Printer", "Keyboard")
BUTTONS = ("Submit", "Filter", "Sort", "Order", "Find", "Reset", "Help")
OTHERS = ("By", "Column", "Value", "Direction", "Quantity", "Search", "Ascending", "Descending")
ROLES = (
    "textbox",
    "combobox",
    "searchbox",
    "button",
    "link",
    "heading",
    "rowheader",
    "cell",
    "value",
    "more",
)
VERBS = ("fill", "select_option", "click", "send_msg_to_user")
GRAMMAR = ("<think>", "</think>", "<action>", "</action>", "(", ")", "'", ",", "do", "page", "done", "error")
GOALS = "Create a record with and List records Sort by Open of Order Look up the Report value"
BIDS = tuple(str(number) for number in range(10, 100))
TOLD = 3  # commands about one page
THOUGHTFUL = 0.9  # share of demonstrations that think first

SCRIPT = """
let committed = null;
const fields = () => Object.fromEntries([...document.querySelectorAll('input, select')].map(e => [e.name, e.value]));
const made = (tag, more, text) => Object.assign(document.createElement(tag), more, text ? {textContent: text} : {});
function element(one) {
  if (one.role === 'textbox' || one.role === 'searchbox' || one.role === 'combobox') {
    const label = made('label', {}, one.name + ' ');
    const type = one.role === 'searchbox' ? 'search' : 'text';
    const field = made(one.role === 'combobox' ? 'select' : 'input', {name: one.name});
    if (one.role === 'combobox') for (const text of ['', ...one.options]) field.append(made('option', {}, text));
    else field.type = type;
    label.append(field);
    return label;
  }
  if (one.role === 'cell') {
    const [name, value] = one.name.split(' ');
    const row = made('tr', {});
    row.append(made('th', {scope: 'row'}, name), made('td', {}, value));
    const table = made('table', {});
    table.append(row);
    return table;
  }
  if (one.role === 'heading') return made('h2', {}, one.name);
  const found = made(one.role === 'link' ? 'a' : 'button', one.role === 'link' ? {href: '#'} : {}, one.name);
  found.onclick = event => {
    event.preventDefault();
    if (one.commit) committed = {...one.commit, ...fields()};
    else if (one.find) show('found ' + fields()[one.find]);
    else if (one.go) show(one.go);
  };
  return found;
}
function show(name) {
  document.body.replaceChildren(...(job.screens[name] || job.screens.start).map(element));
}
const sorted = record => JSON.stringify(Object.entries(record).sort());
window.outcome = message => {
  const got = committed || (message === null ? null : {message});
  return got === null ? null : sorted(got) === sorted(job.wanted);
};
show('start');
"""


@dataclass(frozen=True)
class Move:
    """One thing to do: to the element with this role and name, or nothing but a message."""

    verb: str
    role: str = ""
    name: str = ""
    value: str = ""

    @property
    def command(self) -> str:
        return " ".join(filter(None, [self.verb, self.name, self.value]))

    def thought(self, bid: str) -> str:
        """What is to be done, and the id of the element that does it."""
        return " ".join(filter(None, [self.verb, self.role, self.name, bid, self.value]))


@dataclass(frozen=True)
class Job:
    """A task of the workplace. Of the moves of a stage of its plan, any may come first."""

    key: str
    kind: Kind
    goal: str
    plan: tuple[tuple[Move, ...], ...]
    screens: Mapping[str, Sequence[Mapping[str, Any]]]
    wanted: Mapping[str, str]

    @property
    def html(self) -> str:
        data = json.dumps({"screens": self.screens, "wanted": self.wanted})
        return f"<!doctype html><title>{self.kind}</title><body><script>const job = {data};{SCRIPT}</script></body>"


def fill(name: str, value: str) -> Move:
    return Move("fill", "searchbox" if name == "Search" else "textbox", name, value)


def select(name: str, value: str) -> Move:
    return Move("select_option", "combobox", name, value)


def press(name: str, role: str = "button") -> Move:
    return Move("click", role, name)


def tell(text: str) -> Move:
    return Move("send_msg_to_user", value=text)


def textbox(name: str) -> dict[str, Any]:
    return {"role": "searchbox" if name == "Search" else "textbox", "name": name}


def combobox(name: str, options: Sequence[str]) -> dict[str, Any]:
    return {"role": "combobox", "name": name, "options": list(options)}


def button(name: str, **what: Any) -> dict[str, Any]:
    return {"role": "button", "name": name, **what}


@dataclass(frozen=True)
class Workplace:
    """Jobs and pages of a seed."""

    seed: int = 0

    @property
    def vocabulary(self) -> list[str]:
        words = [*TEXTS, *CHOICES, *NAMES, *VALUES, *NUMBERS, *APPLICATIONS, *MODULES, *ITEMS, *BUTTONS, *OTHERS]
        return list(dict.fromkeys([*words, *ROLES, *VERBS, *GRAMMAR, *GOALS.split(), *BIDS]))

    @property
    def longest(self) -> int:
        return 24

    def job(self, number: int, split: str, shifted: bool = False) -> Job:
        """Kinds take turns. The same job in a shifted layout has the same goal."""
        kind = KINDS[number % len(KINDS)]
        draw = random.Random(mix(self.seed, split, number))
        goal, plan, screens, wanted = MAKERS[kind](draw)
        if shifted:
            draw, more = random.Random(mix(self.seed, split, number, "shifted")), unneeded(screens, draw)
            screens = {name: draw.sample([*one, *more], len(one) + len(more)) for name, one in screens.items()}
            wanted = wanted if "message" in wanted else {**blank(screens), **wanted}
        key = f"{split}/{number}" + ("/shifted" if shifted else "")
        return Job(key, kind, goal, plan, screens, wanted)

    def page(self, path: str) -> tuple[str, bytes] | None:
        """What a server gives for a job's key as the path: `/test/12`, `/test/12/shifted`."""
        found = re.fullmatch(r"/(\w+)/(\d{1,9})(/shifted)?", path)
        return ("text/html", self.job(int(found[2]), found[1], bool(found[3])).html.encode()) if found else None

    def demonstration(self, draw: random.Random) -> Demonstration:
        """Elements of a page, told what to do with them: actions, at once or after a thought that names the id."""
        job = self.job(draw.randrange(1 << 30), "shown", draw.random() < 0.5)
        elements = job.screens[draw.choice(sorted(job.screens))]
        bids = iter(draw.sample(BIDS, len(elements)))
        lines, moves = [], []
        for one in elements:
            value = draw.choice([*NAMES, *VALUES]) if draw.random() < 0.2 else ""
            bid = next(bids) if one["role"] not in ("heading", "cell") else ""
            if one["role"] == "cell":
                name, told = one["name"].split()
                lines.append(["rowheader", name, "cell", told])
            else:
                lines.append([one["role"], one["name"], bid, *(["value", value] if value else [])])
            moves += [(bid, move) for move in moves_on(one, draw)]
        page = " ".join(word for line in lines for word in line if word)
        moves = draw.sample(moves, min(len(moves), TOLD)) or [("", tell(draw.choice([*NAMES, *NUMBERS])))]
        said: list[Message] = []
        for bid, move in moves:
            said.append(user(f"do {move.command}" if said else f"page {page} do {move.command}"))
            thought = f"<think> {move.thought(bid)} </think> " if draw.random() < THOUGHTFUL else ""
            said.append(assistant(thought + action_text(move, bid)))
        return Demonstration(tuple(said))


def action_text(move: Move, bid: str) -> str:
    """As a reply has it, in words."""
    arguments = " , ".join(f"' {part} '" for part in (bid, move.value) if part)
    return f"<action> {move.verb} ( {arguments} ) </action>"


def moves_on(one: Mapping[str, Any], draw: random.Random) -> list[Move]:
    match one["role"]:
        case "textbox" | "searchbox":
            return [fill(one["name"], draw.choice([*NAMES, *VALUES, *ITEMS]))]
        case "combobox":
            return [select(one["name"], draw.choice(one["options"]))]
        case "button" | "link":
            return [press(one["name"], one["role"])]
        case _:
            return [tell(draw.choice(one["name"].split()))]


def words(text: str) -> str:
    """A text of a page, a goal or an action in words of the tiny vocabulary: no marks, and an id behind the name.

    What a field may be set to is left out: the goal says what it shall be.
    """
    text = re.sub(r" options=(?:'[^']*'(?:, )?)+", "", text)
    text = re.sub(r"\[(\d+)\] (\w+ '[^']*')", r"\2 \1", text)
    return " ".join(re.sub(r"[\[\]'\",:()=]", " ", text).split())


# ---- the seven kinds: goal, plan, screens, what is wanted

Made: TypeAlias = tuple[str, tuple[tuple[Move, ...], ...], dict[str, list[dict[str, Any]]], dict[str, str]]


def form(draw: random.Random) -> Made:
    names = [*draw.sample(TEXTS, 2), *draw.sample(CHOICES, 2)]
    fields = [combobox(name, draw.sample(VALUES, 3)) if name in CHOICES else textbox(name) for name in names]
    moves = []
    for one in draw.sample(fields, 2):
        if one["role"] == "combobox":
            moves.append(select(one["name"], draw.choice(one["options"])))
        else:
            moves.append(fill(one["name"], draw.choice(NAMES)))
    goal = "Create a record with " + " and ".join(f"{move.name} {move.value}" for move in moves)
    screens = {"start": [*fields, button("Submit", commit={"kind": "form"})]}
    wanted = {"kind": "form", **blank(screens), **{move.name: move.value for move in moves}}
    return goal, (tuple(moves), (press("Submit"),)), screens, wanted


def list_filter(draw: random.Random) -> Made:
    columns = draw.sample([*TEXTS, *CHOICES], 3)
    column = draw.choice(columns)
    value = draw.choice(VALUES if column in CHOICES else NAMES)
    screens = {"start": [combobox("Column", columns), textbox("Value"), button("Filter", commit={"kind": "filter"})]}
    moves = (select("Column", column), fill("Value", value))
    wanted = {"kind": "filter", "Column": column, "Value": value}
    return f"List records with {column} {value}", (moves, (press("Filter"),)), screens, wanted


def list_sort(draw: random.Random) -> Made:
    columns = draw.sample([*TEXTS, *CHOICES], 3)
    column, order = draw.choice(columns), draw.choice(["Ascending", "Descending"])
    fields = [combobox("By", columns), combobox("Direction", ["Ascending", "Descending"])]
    screens = {"start": [*fields, button("Sort", commit={"kind": "sort"})]}
    moves = (select("By", column), select("Direction", order))
    wanted = {"kind": "sort", "By": column, "Direction": order}
    return f"Sort records by {column} {order}", (moves, (press("Sort"),)), screens, wanted


def menu(draw: random.Random) -> Made:
    applications, modules = draw.sample(APPLICATIONS, 3), draw.sample(MODULES, 3)
    start = [button(name, go=name) for name in applications]
    screens = {"start": start}
    for name in applications:
        links = [{"role": "link", "name": one, "commit": {"application": name, "module": one}} for one in modules]
        screens[name] = [*start, *links]
    application, module = draw.choice(applications), draw.choice(modules)
    plan = ((press(application),), (press(module, "link"),))
    return f"Open {module} of {application}", plan, screens, {"application": application, "module": module}


def catalogue(draw: random.Random) -> Made:
    items, count = draw.sample(ITEMS, 4), draw.choice(NUMBERS[:3])
    screens: dict[str, list[dict[str, Any]]] = {"start": [{"role": "link", "name": one, "go": one} for one in items]}
    for one in items:
        heading = {"role": "heading", "name": one}
        screens[one] = [heading, combobox("Quantity", NUMBERS[:3]), button("Order", commit={"item": one})]
    item = draw.choice(items)
    plan = ((press(item, "link"),), (select("Quantity", count),), (press("Order"),))
    return f"Order {count} of {item}", plan, screens, {"item": item, "Quantity": count}


def knowledge(draw: random.Random) -> Made:
    items, names = draw.sample(ITEMS, 3), draw.sample(TEXTS, 3)
    start = [textbox("Search"), button("Find", find="Search")]
    screens = {"start": start}
    told = {(item, name): draw.choice(NAMES) for item in items for name in names}
    for item in items:
        cells = [{"role": "cell", "name": f"{name} {told[item, name]}"} for name in names]
        screens[f"found {item}"] = [*start, {"role": "heading", "name": item}, *cells]
    item, name = draw.choice(items), draw.choice(names)
    plan = ((fill("Search", item),), (press("Find"),), (tell(told[item, name]),))
    return f"Look up the {name} of {item}", plan, screens, {"message": told[item, name]}


def dashboard(draw: random.Random) -> Made:
    shown = dict(zip(draw.sample(VALUES, 4), draw.sample(NUMBERS, 4), strict=True))
    screens = {"start": [{"role": "cell", "name": f"{name} {value}"} for name, value in shown.items()]}
    name = draw.choice(list(shown))
    return f"Report the value of {name}", ((tell(shown[name]),),), screens, {"message": shown[name]}


MAKERS: Mapping[Kind, Callable[[random.Random], Made]] = {
    "form": form,
    "filter": list_filter,
    "sort": list_sort,
    "menu": menu,
    "catalogue": catalogue,
    "knowledge": knowledge,
    "dashboard": dashboard,
}


def blank(screens: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, str]:
    """The fields of the screen that is sent off, left as they are."""
    committing = [one for one in screens.values() if any("commit" in element for element in one)]
    fields = [e for one in committing for e in one if e["role"] in ("textbox", "searchbox", "combobox")]
    return {element["name"]: "" for element in fields}


def unneeded(screens: Mapping[str, Sequence[Mapping[str, Any]]], draw: random.Random) -> list[dict[str, Any]]:
    """A field and a button that nobody needs; beside cells the button alone, since the field would seem an answer."""
    there = {element["name"] for one in screens.values() for element in one}
    cells = any(element["role"] == "cell" for one in screens.values() for element in one)
    field = textbox(draw.choice([name for name in TEXTS if name not in there]))
    return [*([] if cells else [field]), button(draw.choice(("Reset", "Help")))]
