"""An agent at work on live pages: what it sees, does and brings about, many episodes side by side.

Work in a browser is done by threads. An episode that waits for its page asks for nothing (`yield []`), so that the
pages of all episodes of a round load and react at the same time, whatever drives them.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from queue import Empty, SimpleQueue
from typing import Any, Protocol, TypeVar

import posttrain as pt
from posttrain.browser import Action, Browser, Page, observe, perform
from posttrain.chat import opened_thinking
from posttrain.systems.workforceagent_r1.prompts import Prompt
from posttrain.systems.workforceagent_r1.reply import stated

Result = TypeVar("Result")
MOST_STEPS = 15


@dataclass(frozen=True, slots=True)
class Instance:
    """A task on a page: JavaScript that begins it and returns its goal, and a function that tells how it ended.

    outcome  of the last message to the user, or null: null while it is under way, then whether it was done
    """

    key: str
    kind: str
    url: str
    start: str
    outcome: str
    seed: int = 0


@dataclass(frozen=True, slots=True)
class View:
    """What an agent is shown after an action: the page, what was wrong with the action, and how the task ended."""

    observation: str
    error: str = ""
    success: bool | None = None  # None: it is under way


class World(Protocol):
    """One episode's task and page. `begin` and `act` may raise EpisodeFailed; one thread at a time calls them."""

    def begin(self) -> tuple[str, View]: ...  # the goal
    def act(self, action: Action) -> View: ...
    def close(self) -> None: ...


@dataclass(slots=True)
class EpisodeFacts:
    """The facts of an episode."""

    success: bool = False
    actions: list[str] = field(default_factory=list)
    errors: int = 0  # actions that could not be performed
    unformed: int = 0  # replies without an action


def live(
    world: Callable[[pt.Task], World],
    write: Callable[[str, Sequence[str], str, str], Prompt | None],
    threads: ThreadPoolExecutor,
    most_steps: int = MOST_STEPS,
) -> pt.Env:
    """Episodes of at most so many replies. A page that outgrows the prompt ends one without success.

    write  the prompt of a goal, the actions so far, a page and an error; None where it does not fit
    """

    def episode(task: pt.Task) -> pt.Episode:
        place, facts = world(task), EpisodeFacts()
        try:
            goal, view = yield from in_background(threads, place.begin)
            for _ in range(most_steps):
                prompt = write(goal, facts.actions, view.observation, view.error)
                if prompt is None:
                    break
                reply = yield from pt.ask(prompt)
                found = stated(opened_thinking(reply) + str(reply.content))
                if found is None or found.action is None:
                    facts.unformed += 1
                    view = View(view.observation, found.reason if found else "there was no action in tags")
                    continue
                action = found.action
                facts.actions.append(str(action))
                view = yield from in_background(threads, lambda action=action: place.act(action))
                facts.errors += bool(view.error)
                if view.success is not None:
                    facts.success = view.success
                    break
        finally:
            close(threads, place)
        return facts

    return episode


def close(threads: ThreadPoolExecutor, place: World) -> None:
    """In a thread, as all work of a page: here, where the threads have ended."""
    try:
        threads.submit(place.close)
    except RuntimeError:
        place.close()


def in_background(threads: ThreadPoolExecutor, work: Callable[[], Result]) -> Generator[list[Any], list[Any], Result]:
    """What work in a thread returns, or raises; meanwhile other episodes go on."""
    future: Future[Result] = threads.submit(work)
    yield []
    return future.result()


class Tabs:
    """Pages that are used for one episode after another, as MiniWoB++ is run: opening one costs half a second.

    Only for pages that keep nothing in the browser beyond their document. One that failed is not used again.
    """

    def __init__(self, browser: Browser):
        self.browser, self.idle = browser, SimpleQueue[Page]()

    def take(self, url: str, seed: int) -> Page:
        """An idle page at this address, or a new one where none is left that answers."""
        while True:
            try:
                page = self.idle.get_nowait()
            except Empty:
                return self.browser.open(url, seed=seed)
            page.seed, page.bids, page.loaded = seed, {}, 0
            try:
                page.goto(url)
            except pt.EpisodeFailed:
                page.close()
            else:
                return page


def within_document(instance: Instance) -> Instance:
    """The instance judged on the document that it began in: an agent that leaves it has not done it."""
    mark = json.dumps(secrets.token_hex(8))
    start = f"() => {{ window.episode = {mark}; return ({instance.start})() }}"
    outcome = f"message => window.episode === {mark} ? ({instance.outcome})(message) : null"
    return replace(instance, start=start, outcome=outcome)


class Tab:
    """A `World` in a page of Chromium."""

    def __init__(self, tabs: Tabs, instance: Instance):
        self.tabs, self.instance = tabs, within_document(instance)
        self.page: Page | None = None
        self.message: str | None = None
        self.sound = False  # the page has done all that was asked of it

    def begin(self) -> tuple[str, View]:
        self.page = self.tabs.take(self.instance.url, self.instance.seed)
        goal = str(self.page.evaluate(self.instance.start))
        view = View(observe(self.page))
        self.sound = True
        return goal, view

    def act(self, action: Action) -> View:
        assert self.page is not None
        self.sound = False
        if action.name in ("send_msg_to_user", "report_infeasible"):
            self.message = str(action.arguments[0])
        error = perform(self.page, action)
        success = self.page.evaluate(self.instance.outcome, self.message)
        view = View("" if success is not None else observe(self.page), error, success)
        self.sound = True
        return view

    def close(self) -> None:
        if self.page is None:
            return
        if self.sound:
            self.tabs.idle.put(self.page)
        else:
            self.page.close()
        self.page = None
