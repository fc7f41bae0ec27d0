"""Oracle traces of the workplace: each job is done in the browser, and its steps are recorded with what was seen."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import posttrain as pt
from posttrain.browser import Action, Browser
from posttrain.browser.serving import PageServer
from posttrain.systems.workforceagent_r1.live import Instance, Tab, Tabs
from posttrain.systems.workforceagent_r1.reward import Truth
from posttrain.systems.workforceagent_r1.traces import Step, bid_of

if TYPE_CHECKING:
    from posttrain.lab.world.workplace import Job, Move, Workplace

OUTCOME = "message => window.outcome(message)"


def instance_of(job: Job, origin: str) -> Instance:
    """A job of the workplace that is served at this origin; its path is its key."""
    start = f"() => {json.dumps(job.goal)}"
    return Instance(job.key, job.kind, f"{origin}/{job.key}", start, OUTCOME, pt.mix(0, job.key) % 2**31)


def record(job: Job, tabs: Tabs, origin: str) -> Iterator[Step]:
    """The steps of a job, its plan carried out stage by stage. Raises EpisodeFailed when the job is not done by it."""
    tab, history = Tab(tabs, instance_of(job, origin)), list[str]()
    try:
        goal, view = tab.begin()
        for stage in job.plan:
            for done in range(len(stage)):
                truth = Truth(*right_actions(stage[done:], view.observation))
                key, thought = f"{job.key}/{len(history)}", stage[done].thought(bid_of(truth.action))
                yield Step(key, job.key, job.kind, goal, tuple(history), view.observation, truth, thought)
                view = tab.act(truth.action)
                history.append(str(truth.action))
                if view.error:
                    raise pt.EpisodeFailed(f"the oracle's {truth.action} failed on {job.key}: {view.error}")
        if view.success is not True:
            raise pt.EpisodeFailed(f"the oracle did not solve {job.key}")
    finally:
        tab.close()


def right_actions(moves: tuple[Move, ...], observation: str) -> tuple[Action, tuple[Action, ...]]:
    """The action of the first of the moves that may come next, and those of the others."""
    first, *others = (action_of(move, observation) for move in moves)
    return first, tuple(others)


def action_of(move: Move, observation: str) -> Action:
    """Raises EpisodeFailed when the page does not show the element."""
    if not move.role:
        return Action(move.verb, (move.value,))
    found = re.search(rf"^\s*\[(\d+)\] {move.role} {re.escape(repr(move.name))}", observation, re.MULTILINE)
    if found is None:
        raise pt.EpisodeFailed(f"the page shows no {move.role} {move.name!r}")
    return Action(move.verb, tuple(filter(None, [found[1], move.value])))


def record_jobs(place: Workplace, count: int, shifted: bool = False, split: str = "train") -> list[Step]:
    """The steps of the first jobs of a split. Raises ValueError without a browser, EpisodeFailed for one not solved."""
    with PageServer(place.page) as server, Browser() as browser:
        tabs = Tabs(browser)
        jobs = [place.job(number, split, shifted) for number in range(count)]
        return [step for job in jobs for step in record(job, tabs, server.origin)]
