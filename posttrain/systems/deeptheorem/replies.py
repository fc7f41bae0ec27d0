"""Replies to statements and a judge's marks of them, each a line of a file as soon as it is there.

So a kill costs the replies that were under way. What the file holds is not asked for again; a last line that a kill cut
short is dropped, and a proof that the judge could not mark is given to it once more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from posttrain.core import Ask, Episode, Failed, Group, Remote, Reply, Rollout, Sampler, Score, Task, Turn
from posttrain.episode import ask, play, play_concurrently, rollout
from posttrain.evaluation import GROUPS_AT_ONCE
from posttrain.reward import each, graded
from posttrain.run.lines import Lines
from posttrain.seeding import mix
from posttrain.systems.deeptheorem.process import WEIGHTS, by_marks, judged, process_score
from posttrain.systems.deeptheorem.statements import measured
from posttrain.systems.deeptheorem.verdict import verdict

Watch = Callable[[int], object]  # hears how many more statements are done


class Replies:
    """One reply to each statement; its marks, or why there are none, are the facts of its rollout."""

    def __init__(self, path: Path, tests: Sequence[Task]):
        self.lines, self.tests = Lines(path), tests
        tasks = {task.key: task for task in tests}
        lines = [line for line in self.lines.found if line["task"] in tasks]
        self.found = {line["task"]: as_rollout(line, tasks[line["task"]]) for line in lines}
        self.write()

    def write(self) -> None:
        """All lines again, a statement's once and in the order of the statements."""
        self.lines.replace(as_line(self.found[task.key]) for task in self.tests if task.key in self.found)

    def note(self, one: Rollout) -> None:
        self.found[one.task.key] = one
        self.lines.add(as_line(one))

    @property
    def rollouts(self) -> list[Rollout]:
        """Of every statement; without a turn where there is no reply."""
        return [self.found.get(task.key) or Rollout(task, [], Failed("not played")) for task in self.tests]


def decide(replies: Replies, policy: Sampler, seed: int, watch: Watch) -> dict[str, float]:
    """Reply greedily, as the release does, to every statement without a reply; what all of them come to."""
    watch(len(replies.found))

    def ended(_: int, group: Group) -> None:
        if group[0].turns:
            replies.note(group[0])
        watch(1)

    for start in range(0, len(replies.tests), GROUPS_AT_ONCE):
        some = replies.tests[start : start + GROUPS_AT_ONCE]
        places = [i for i, task in enumerate(some) if task.key not in replies.found]
        if places:
            rollout(once, [some[i] for i in places], {"policy": policy}, 1, seed + start, ended, places)
    replies.write()
    return measured(replies.rollouts)


def once(task: Task) -> Episode:
    """One greedy reply."""
    yield from ask(task.prompt, temperature=0.0)


def mark(replies: Replies, judge: Sampler, seed: int, watch: Watch) -> dict[str, float]:
    """Have every proof marked that is not; the process score, and the share that the judge failed on."""
    proofs = {key: one.text for key, one in replies.found.items() if not isinstance(one.facts, Mapping)}
    tasks = [task for task in replies.tests if task.key in proofs]
    watch(len(replies.tests) - len(tasks))

    def ended(_: int, one: Rollout) -> None:
        replies.note(Rollout(one.task, replies.found[one.task.key].turns, one.facts))
        watch(1)

    drive = partial(play_concurrently, at_once=judge.at_once) if isinstance(judge, Remote) else play
    drive(tasks, judged(proofs), {"judge": judge}, [mix(seed, "marks", task.key) for task in tasks], ended)
    replies.write()
    marks = [graded(each(by_marks), [one])[0] for one in replies.rollouts]
    known = [score.value for score in marks if isinstance(score, Score)]
    return {"not marked": 1 - len(known) / len(marks)} | ({"process": fmean(known)} if known else {})


# ---- lines


def as_line(one: Rollout) -> dict[str, Any]:
    """A reply with its verdict and marks."""
    said = verdict(one.text)
    line = {"task": one.task.key, "theorem": one.task.truth.theorem, "holds": one.task.truth.holds}
    line |= {"said": said.said, "ended": said.ended, "tokens": one.decisions, "reply": one.text}
    if isinstance(one.facts, Mapping):
        line |= {"process": process_score(one.facts), **one.facts}
    elif isinstance(one.facts, Failed):
        line["not marked"] = one.facts.reason
    return line


def as_rollout(line: Mapping[str, Any], task: Task) -> Rollout:
    """A reply from its line, to be measured and marked, not learned from: it has no trace."""
    facts: Any = Failed(line["not marked"]) if "not marked" in line else None
    if "process" in line:
        facts = {name: line[name] for name in WEIGHTS}
    return Rollout(task, [Turn(Ask(task.prompt), Reply(line["reply"], torch.zeros(line["tokens"]), None))], facts)
