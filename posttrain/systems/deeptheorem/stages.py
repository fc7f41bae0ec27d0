"""The stages on a checkpoint and data of the user's own: deciding a test file by theorem, and building theorems."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from statistics import fmean

from posttrain.core import Episode, Group, Invalid, Rollout, Sampler, Score, Task
from posttrain.data import read
from posttrain.directory import write_json
from posttrain.episode import ask, rollout
from posttrain.evaluation import GROUPS_AT_ONCE
from posttrain.options import ModelOptions, RunOptions, hashed
from posttrain.policy.text import TextPolicy
from posttrain.progress import bar
from posttrain.reward import each, graded
from posttrain.run import Session
from posttrain.sampler.server import server
from posttrain.systems.deeptheorem.near import by_encoder, by_words
from posttrain.systems.deeptheorem.pipeline import Ledger, construct, items_of, prepared, rows_of
from posttrain.systems.deeptheorem.process import by_marks, judged
from posttrain.systems.deeptheorem.statements import as_table, measured, statements
from posttrain.systems.deeptheorem.verdict import verdict

TEMPLATE = Path(__file__).with_name("prompt.jinja")


@dataclass(frozen=True)
class Building:
    """How theorems are built of questions, by --stage construct."""

    writer: str | None = None
    """Who answers the questions of the pipeline: a chat server (http://...), a Hub id or a folder."""
    question: str = "question"
    """Column of the questions."""
    against: str | None = None
    """Test files, separated by commas, of which nothing may be in the theorems."""
    encoder: str | None = None
    """Hub id or folder of a sentence encoder that finds what is near them; n-grams of words if not given."""


def templated(model: ModelOptions) -> TextPolicy:
    """The policy with the system's own prompt, unless another template was asked for."""
    return (model if model.template else replace(model, template=str(TEMPLATE))).policy()


def player_of(name: str, model: ModelOptions, served_as: str | None) -> Sampler:
    """A judge or a writer: a local checkpoint with its own template, or a chat server.

    Raises ServerError, before any work, when the server is not there or does not have the model.
    """
    if not name.startswith("http"):
        return replace(model, model=name, lora=0, stop=None).policy()
    found = server(name, model=served_as, max_new=model.max_new)
    _ = found.server.model
    return found


# ---- decided by theorem


@dataclass(frozen=True, slots=True)
class Decided:
    """One greedy reply to each statement, with the judge's marks if one was asked; and what it comes to."""

    rollouts: list[Rollout]
    marks: list[Score | Invalid]
    measures: dict[str, float]


def decide(policy: Sampler, tests: Sequence[Task], seed: int, judge: Sampler | None = None) -> Decided:
    """Reply greedily, as the release does; a judge that fails on a proof takes nothing from the outcome."""
    players = {"policy": policy, **({"judge": judge} if judge else {})}
    groups: list[Group] = []
    with bar("statements", len(tests)) as step:
        for start in range(0, len(tests), GROUPS_AT_ONCE):
            some = tests[start : start + GROUPS_AT_ONCE]
            groups += rollout(judged(0.0) if judge else once, some, players, 1, seed + start, lambda *_: step())
    marks = [graded(each(by_marks), group)[0] for group in groups] if judge else []
    measures = measured([one for [one] in groups])
    if judge:
        known = [mark.value for mark in marks if isinstance(mark, Score)]
        measures |= {"not marked": 1 - len(known) / len(marks)} | ({"process": fmean(known)} if known else {})
    return Decided([one for [one] in groups], marks, measures)


def once(task: Task) -> Episode:
    """One greedy reply."""
    yield from ask(task.prompt, temperature=0.0)


def write_decided(folder: Path, found: Decided) -> None:
    """`decided.json`, and every reply with its verdict in `replies.jsonl`; the measures are printed."""
    print("\n".join(as_table({"decided": found.measures})))
    write_json(folder / "decided.json", found.measures)
    with (folder / "replies.jsonl").open("w") as file:
        for one, mark in zip_longest(found.rollouts, found.marks):
            truth, said = one.task.truth, verdict(one.text)
            line = {"task": one.task.key, "theorem": truth.theorem, "holds": truth.holds, "said": said.said}
            line |= {"ended": said.ended, "reply": one.text}
            if isinstance(mark, Score):
                line |= {"process": mark.value, **mark.parts}
            elif mark is not None:
                line["not marked"] = mark.reason
            file.write(json.dumps(line) + "\n")


def fresh(folder: Path, overwrite: bool) -> Path:
    """Raises ValueError, before any work, when an evaluation is there already."""
    if (folder / "decided.json").exists() and not overwrite:
        raise ValueError(f"{folder} already holds an evaluation: replace it with --overwrite, or give another --out")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def reported(session: Session, columns: Mapping[str, Mapping[str, float]]) -> Session:
    """What training changed, printed and in the run's `decided.json`."""
    if columns:
        print("\n".join(as_table(columns)))
        write_json(session.directory.path / "decided.json", dict(columns))
    return session


# ---- built from questions


def build(
    data: str, writer: Sampler, building: Building, model: ModelOptions, run: RunOptions, limit: int | None, split: str
) -> None:
    """Questions through the pipeline into `theorems.jsonl`. Raises ValueError when the writer never answered."""
    tasks = read(data, building.question, None, limit=limit, split=split)
    files = [name for name in (building.against or "").split(",") if name]
    tests = [str(task.prompt[-1]["content"]) for name in files for task in statements(name)]
    recall = by_encoder(building.encoder, model.device) if building.encoder else by_words
    folder = Path(run.out)
    settings = {"data": data, **hashed(data), "limit": limit, "seed": run.seed, **vars(building)}
    del settings["writer"]  # another may go on
    path = prepared(folder, settings, run.resume, run.overwrite)
    ledger = Ledger(path, items_of(tasks, tests, recall))
    failures = construct(ledger, writer, run.seed, run.quiet)
    rows = rows_of(ledger.finished())
    (folder / "theorems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for line in summary(len(tasks), len(rows), ledger.dropped(), failures):
        print(line, file=sys.stderr)
    if failures and len(failures) == len(tasks):
        raise ValueError(f"the writer answered nothing: {failures[0]}")


def summary(questions: int, theorems: int, dropped: Counter[str], failures: Sequence[str]) -> list[str]:
    lines = [f"{theorems} theorems of {questions} questions"]
    lines += [f"  {count:6} dropped: {reason}" for reason, count in dropped.most_common()]
    if failures:
        lines.append(f"  {len(failures):6} not answered, the first because {failures[0]}; go on with --resume")
    return lines
