"""The stages on a checkpoint and data of the user's own: deciding a test file by theorem, and building theorems."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from posttrain.cli.options import ModelOptions, RunOptions, hashed, naming
from posttrain.core import Sampler, Task
from posttrain.data import read
from posttrain.policy.text import TextPolicy
from posttrain.run.directory import begun, read_json, write_json
from posttrain.run.progress import bar
from posttrain.run.session import Session
from posttrain.systems.deeptheorem.near import by_encoder, by_words
from posttrain.systems.deeptheorem.pipeline import Ledger, construct, items_of, rows_of
from posttrain.systems.deeptheorem.replies import Replies, Watch, decide, mark
from posttrain.systems.deeptheorem.statements import as_table, statements

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


# ---- decided by theorem

TABLE = "decided.json"


def evaluated(
    policy: TextPolicy,
    judge: Sampler | None,
    tests: Sequence[Task],
    settings: Mapping[str, Any],
    run: RunOptions,
) -> None:
    """A test file decided by theorem: `decided.json`, and every reply with its verdict and marks in `replies.jsonl`."""
    files = ("replies.jsonl", TABLE)
    folder = Path(run.out)
    begun(folder, "evaluation", "an evaluation", files, settings, run)
    replies = Replies(folder / "replies.jsonl", tests)
    with bar("statements", len(tests), run.quiet) as watch:
        measures = decide(replies, policy, run.seed, watch)
    if judge is not None:
        with bar("marks", len(tests), run.quiet) as watch:
            measures |= mark(replies, judge, run.seed, watch)
    print("\n".join(as_table({"decided": measures})))
    write_json(folder / TABLE, measures)


def first(measure: Callable[[Session], Mapping[str, float]]) -> Callable[[Session], None]:
    """For `train` and `sft` to begin with: what the untouched policy decides, in the run's `decided.json`.

    A run that is resumed after its first checkpoint keeps what is there.
    """

    def begun(session: Session) -> None:
        if session.step:
            return
        folder = session.directory.path
        if not session.run.resume:
            for old in folder.glob("decided*.json*"):  # of the run that was replaced
                old.unlink()
        if measures := measure(session):
            write_json(folder / TABLE, {"before": dict(measures)})

    return begun


def last(session: Session, measures: Mapping[str, float]) -> Session:
    """What training changed, printed and in the run's `decided.json`."""
    if measures:
        path = session.directory.path / TABLE
        columns = (read_json(path) if path.is_file() else {}) | {"after": dict(measures)}
        print("\n".join(as_table(columns)))
        write_json(path, columns)
    return session


def decided_now(session: Session, tests: Sequence[Task], watch: Watch) -> dict[str, float]:
    """The tests under the policy as it is; its replies are in the run's `decided-STEP.jsonl`."""
    if not tests:
        return {}
    replies = Replies(session.directory.path / f"decided-{session.step:06d}.jsonl", tests)
    return decide(replies, cast("TextPolicy", session.policy), session.run.seed, watch)


def decided_first(session: Session, tests: Sequence[Task]) -> dict[str, float]:
    """`decided_now`, counted in the display of the run that has begun."""
    shown = session.progress.bar
    row = shown.add_task("before", total=len(tests), numbers="")
    found = decided_now(session, tests, lambda more: shown.update(row, advance=more))
    shown.remove_task(row)
    return found


def decided_last(session: Session, tests: Sequence[Task]) -> dict[str, float]:
    with bar("after", len(tests), session.run.quiet) as watch:
        return decided_now(session, tests, watch)


# ---- built from questions


def build(
    data: str, writer: Sampler, building: Building, model: ModelOptions, run: RunOptions, limit: int | None, split: str
) -> None:
    """Questions through the pipeline into `theorems.jsonl`. Raises ValueError when the writer never answered."""
    with naming("--prompt", "--question"):
        tasks = read(data, building.question, None, limit=limit, split=split)
    files = [name for name in (building.against or "").split(",") if name]
    tests = [str(task.prompt[-1]["content"]) for name in files for task in statements(name)]
    recall = by_encoder(building.encoder, model.device) if building.encoder else by_words
    folder = Path(run.out)
    settings = {"data": data, **hashed(data), "limit": limit, "seed": run.seed, **vars(building)}
    del settings["writer"]  # another may go on
    files = ("items.jsonl", "theorems.jsonl")
    begun(folder, "construct", "theorems under construction", files, settings, run)
    ledger = Ledger(folder / "items.jsonl", items_of(tasks, tests, recall))
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
