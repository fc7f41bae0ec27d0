"""Theorems with variants from your own questions, by any chat model: the paper's pipeline, stage by stage.

    decontaminated   not a test statement in other words, nor its generalisation or converse
    complete         a proof question that says all it needs; rewritten as "prove or disprove that ..."
    proved           a proof that ends in a verdict
    coherent         the proof is of this statement, and its verdict is what it shows
    rated            difficulty 1 to 10 in steps of 0.5, kept from 5 on; one statement only; a topic
    varied           a statement with the same truth value, and one with the other

Each stage is one question about every theorem that is left (`questions.py`). Every answer is appended to a file at
once, so that a run that was stopped goes on where it was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import posttrain as pt
from posttrain.core import RemoteSampler
from posttrain.systems.deeptheorem.near import Recall
from posttrain.systems.deeptheorem.questions import STAGES, Item, Stage

ATTEMPTS = 2  # at an answer that can be read


class Ledger:
    """What is known of every item: each answered stage is a line of its own in `items.jsonl`.

    A last line that a kill cut short is dropped, and its question asked again.
    """

    def __init__(self, path: Path, items: Sequence[Item]):
        self.lines = pt.Lines(path)
        self.items: dict[str, Item] = {item["id"]: dict(item) for item in items}
        for line in self.lines.found:
            self.items[line["id"]] |= line

    def note(self, key: str, stage: str, found: Mapping[str, Any]) -> None:
        line = {"id": key, "stage": stage, **found}
        self.items[key] |= line
        self.lines.add(line)

    def items_before(self, stage: int) -> list[Item]:
        """The items that have passed all stages before this one, and not yet this one."""
        before = STAGES[stage - 1].name if stage else None
        return [one for one in self.items.values() if "dropped" not in one and one.get("stage") == before]

    def finished_items(self) -> list[Item]:
        return [one for one in self.items.values() if "dropped" not in one and one.get("stage") == STAGES[-1].name]

    def drop_counts(self) -> Counter[str]:
        """How many items were dropped, by reason."""
        return Counter(one["dropped"] for one in self.items.values() if "dropped" in one)


def question_env(stage: Stage) -> pt.Env:
    """One question about one item; the facts are what was found: new fields, or why it is dropped."""

    def play(task: pt.Task) -> pt.Episode:
        question = stage.request(task.truth)
        if question is None:
            return {}
        for _ in range(ATTEMPTS):
            reply = yield from pt.ask([pt.user(question)], who="writer")
            if reply.stop == "length":
                continue
            found = stage.read(str(reply.content).rpartition("</think>")[2].strip(), task.truth)
            if found is not None:
                return found
        return {"dropped": f"{stage.name}: no readable answer"}

    return play


def construct(ledger: Ledger, writer: pt.Sampler, seed: int = 0, quiet: bool = False) -> list[str]:
    """Take every item through every stage; returns the reasons for which the writer failed to answer.

    An item is dropped for an answer only: where a server is down, it is left for another run.
    """
    failures: list[str] = []
    for number, stage in enumerate(STAGES):
        waiting = ledger.items_before(number)
        tasks = [pt.Task(item["id"], (), item) for item in waiting]
        seeds = [pt.mix(seed, stage.name, item["id"]) for item in waiting]
        with pt.progress_bar(stage.name, len(tasks), quiet) as step:

            def ended(i: int, rollout: pt.Rollout, stage: Stage = stage, step: Any = step) -> None:
                if isinstance(rollout.facts, pt.Failure):
                    failures.append(rollout.facts.reason)
                else:
                    ledger.note(rollout.task.key, stage.name, rollout.facts)
                step()

            drive = (
                partial(pt.play_concurrently, at_once=writer.at_once) if isinstance(writer, RemoteSampler) else pt.play
            )
            drive(tasks, question_env(stage), {"writer": writer}, seeds, ended)
    return failures


def items_of(tasks: Sequence[pt.Task], tests: Sequence[str], recall: Recall) -> list[Item]:
    """What the first stage is given: the question, and the test statements that are near it."""
    questions = [str(task.prompt[-1]["content"]) for task in tasks]
    found = recall(questions, tests) if tests else [[] for _ in tasks]
    return [
        {"id": task.key, "question": question, "near": [tests[i] for i in near]}
        for task, question, near in zip(tasks, questions, found, strict=True)
    ]


def rows_of(items: Sequence[Item]) -> list[dict[str, Any]]:
    """Finished items in the columns of the released dataset."""
    return [
        {
            "id": item["id"],
            "question": item["statement"],
            "pos_question": item["same"],
            "pos_truth_value": item["truth_value"],
            "neg_question": item["opposite"],
            "neg_truth_value": not item["truth_value"],
            "proof": item["proof"],
            "difficulty": item["difficulty"],
            "domain": item["domain"],
        }
        for item in items
    ]
