"""Replies to statements and a judge's marks of them, each a line of a file as soon as it is there.

A kill costs only the replies that were under way. What the file holds is not asked for again; a last line that a kill
cut short is dropped, and a proof that the judge could not mark is given to it once more. With several ranks each of
them replies to its share, and the first one writes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

import posttrain as pt
from posttrain.core import RemoteSampler, ShardedSampler
from posttrain.evaluation import GROUPS_AT_ONCE
from posttrain.run.lines import whole_lines
from posttrain.systems.deeptheorem.process import WEIGHTS, by_marks, process_score, proof_judge
from posttrain.systems.deeptheorem.statements import measures_of
from posttrain.systems.deeptheorem.verdict import verdict

Watch = Callable[[int], object]  # hears how many more statements are done


class Replies:
    """One reply to each statement; its marks, or why there are none, are the facts of its rollout."""

    def __init__(self, path: Path, tests: Sequence[pt.Task]):
        self.tests, tasks = tests, {task.key: task for task in tests}
        lines = pt.ranks.run_on_primary(lambda: list(whole_lines(path)), "for the replies so far")
        self.found = {line["task"]: as_rollout(line, tasks[line["task"]]) for line in lines if line["task"] in tasks}
        self.lines = pt.Lines(path) if pt.ranks.is_primary() else None
        self.write()

    def write(self) -> None:
        """Write all lines again, one for each statement and in the order of the statements."""
        if self.lines:
            self.lines.replace(as_line(self.found[task.key]) for task in self.tests if task.key in self.found)

    def note(self, one: pt.Rollout) -> None:
        self.found[one.task.key] = one
        if self.lines:
            self.lines.add(as_line(one))

    def of(self, tasks: Sequence[pt.Task]) -> list[pt.Rollout]:
        """The rollout of every statement; without a turn where there is no reply."""
        return [self.found.get(task.key) or pt.Rollout(task, [], pt.Failure("not played")) for task in tasks]


def decide(replies: Replies, policy: pt.Sampler, seed: int, watch: Watch) -> dict[str, float]:
    """Reply greedily, as the release does, to every statement without a reply; the measures of all replies."""
    watch(len(replies.found))

    def ended(_: int, group: pt.Group) -> None:
        if group[0].turns:
            replies.note(group[0])
        watch(1)

    with policy.gather_parameters() if isinstance(policy, ShardedSampler) else nullcontext():
        for start in range(0, len(replies.tests), GROUPS_AT_ONCE):
            some = replies.tests[start : start + GROUPS_AT_ONCE]
            if left := [i for i, task in enumerate(some) if task.key not in replies.found]:
                mine = pt.ranks.share(left)
                groups = pt.rollout(
                    greedy_reply, [some[i] for i in mine], {"policy": policy}, 1, seed + start, ended, mine
                )
                for group in pt.ranks.merge_shares(groups, "for the replies to statements"):
                    if group[0].turns and group[0].task.key not in replies.found:  # of another rank
                        ended(0, group)
    replies.write()
    return measures_of(replies.of(replies.tests))


def greedy_reply(task: pt.Task) -> pt.Episode:
    yield from pt.ask(task.prompt, temperature=0.0)


def mark(replies: Replies, judge: pt.Sampler, seed: int, watch: Watch) -> dict[str, float]:
    """Have every proof without marks marked; the process score, and the share that the judge failed on."""
    proofs = {key: one.text for key, one in replies.found.items() if not isinstance(one.facts, Mapping)}
    tasks = [task for task in replies.tests if task.key in proofs]
    watch(len(replies.tests) - len(tasks))

    def ended(_: int, one: pt.Rollout) -> None:
        replies.note(pt.Rollout(one.task, replies.found[one.task.key].turns, one.facts))
        watch(1)

    drive = partial(pt.play_concurrently, at_once=judge.at_once) if isinstance(judge, RemoteSampler) else pt.play
    drive(tasks, proof_judge(proofs), {"judge": judge}, [pt.mix(seed, "marks", task.key) for task in tasks], ended)
    replies.write()
    marks = [pt.group_scores(pt.each(by_marks), [one])[0] for one in replies.of(replies.tests)]
    known = [score.value for score in marks if isinstance(score, pt.Score)]
    return {"not marked": 1 - len(known) / len(marks)} | ({"process": fmean(known)} if known else {})


# ---- lines


def as_line(one: pt.Rollout) -> dict[str, Any]:
    """A reply with its verdict and marks."""
    said = verdict(one.text)
    line = {"task": one.task.key, "theorem": one.task.truth.theorem, "holds": one.task.truth.holds}
    line |= {"said": said.said, "ended": said.ended, "tokens": one.decisions, "reply": one.text}
    if isinstance(one.facts, Mapping):
        line |= {"process": process_score(one.facts), **one.facts}
    elif isinstance(one.facts, pt.Failure):
        line["not marked"] = one.facts.reason
    return line


def as_rollout(line: Mapping[str, Any], task: pt.Task) -> pt.Rollout:
    """A reply from its line; it can be measured and marked but not learned from, as it has no trace."""
    facts: Any = pt.Failure(line["not marked"]) if "not marked" in line else None
    if "process" in line:
        facts = {name: line[name] for name in WEIGHTS}
    return pt.Rollout(
        task, [pt.Turn(pt.Ask(task.prompt), pt.Reply(line["reply"], torch.zeros(line["tokens"]), None))], facts
    )
