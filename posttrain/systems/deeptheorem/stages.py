"""DeepTheorem on a checkpoint and data of your own: learn, decide a test file by theorem, build theorems."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import cast

import posttrain as pt
from posttrain.lab.world.theorems import Theorems
from posttrain.systems.deeptheorem import recipe
from posttrain.systems.deeptheorem.lab import base_model, measures
from posttrain.systems.deeptheorem.near import by_encoder, by_words
from posttrain.systems.deeptheorem.pipeline import Ledger, construct, items_of, rows_of
from posttrain.systems.deeptheorem.replies import Replies, Watch, decide, mark
from posttrain.systems.deeptheorem.statements import (
    as_table,
    evaluation_sets,
    measures_of,
    proofs,
    split_by_theorem,
    statements,
)
from posttrain.systems.deeptheorem.verdict import right

TEMPLATE, TABLE = Path(__file__).with_name("prompt.jinja"), "decided.json"
PUBLISHED = pt.Run("runs/deeptheorem", steps=1000, tasks=128, warmup=50)


@dataclass(frozen=True)
class TheoremOptions:
    """Which theorems are learned from."""

    data: str
    """Jiahao004/DeepTheorem, or a file with its columns."""
    keep_out: int = 0
    """How many theorems are kept out of training, and decided before and after."""
    limit: int | None = None
    """Use only the first so many theorems, each with all its statements."""
    split: str = "train"
    """Split of a Hugging Face dataset."""

    def tasks(self, seed: int) -> tuple[list[pt.Task], list[pt.Task]]:
        """The statements to learn from, and those of the theorems that are kept out."""
        return split_by_theorem(statements(self.data, self.limit, self.split), self.keep_out, seed)


def laptop(variants: bool = True, run: pt.Run = pt.Run("runs/deeptheorem", steps=60, tasks=16, lr=3e-4)) -> pt.Session:
    """Theorems about sums, some of which hold and some of which do not.

    variants  train on contradictory variants too, and not only on statements that hold
    """
    world = Theorems(run.seed)
    lab = pt.Lab(run.seed, pt.FULL, world, base_model(world, run.seed))
    made, tests = recipe(pt.each(right), samples=16), world.held_out_tasks()
    start = record_before(lambda session: measures(lab))
    session = pt.train(lab.policy, world.training_tasks(variants), made, run, held_out=tests, on_start=start)
    return record_after(session, measures(lab))


def learn(
    theorems: TheoremOptions,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    run: pt.Run = PUBLISHED,
    samples: int = 64,
    held_out: tuple[str, ...] = (),
) -> pt.Session:
    """Train a base model on theorems with variants, rewarded by the verdict.

    Give `max_new=8192` for the published length. Without `template` the prompt is the system's own: plain text that
    ends inside an open <think> tag.

    samples   samples of a statement
    held_out  test files whose theorems are decided, greedily, before and after: FILE, or NAME=FILE
    """
    tasks, kept = theorems.tasks(run.seed)
    sets, policy = evaluation_sets(kept, held_out), load(model)
    made = recipe(pt.each(right), samples)
    start = record_before(lambda session: decide_before(session, sets))
    session = scale.train(policy, tasks, made, run, held_out=sets, on_start=start)
    return record_after(session, decide_after(session, sets))


def imitate(
    theorems: TheoremOptions,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    run: pt.Run = PUBLISHED,
    proof: str = "proof",
    held_out: tuple[str, ...] = (),
) -> pt.Session:
    """The baseline: supervised fine-tuning on a column of proofs.

    proof     column of the proofs
    held_out  test files whose theorems are decided, greedily, before and after: FILE, or NAME=FILE
    """
    tasks, kept = theorems.tasks(run.seed)
    sets, policy = evaluation_sets(kept, held_out), load(model)
    policy.check([*tasks, *chain(*sets.values())])
    shown = proofs(theorems.data, proof, {task.truth.theorem for task in tasks}, theorems.split)
    session = pt.sft(policy, shown, run, on_start=record_before(lambda session: decide_before(session, sets)))
    return record_after(session, decide_after(session, sets))


def load(model: pt.ModelOptions) -> pt.TextPolicy:
    """The policy with the system's own prompt, unless another template was asked for."""
    return (model if model.template else replace(model, template=str(TEMPLATE))).policy()


# ---- decided by theorem


def evaluate(
    data: str,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    output: pt.Output = pt.Output("runs/deeptheorem-evaluation"),
    judge: str | None = None,
    limit: int | None = None,
    split: str = "train",
) -> Path:
    """Decide a test file by theorem: OUT/decided.json, and every reply with its verdict and marks in OUT/replies.jsonl.

    Published: `max_new=16000`.

    data   rows of problem_name, prompt, answer; or training rows
    judge  who marks the proofs: a chat server (http://...), a Hub id or a folder
    limit  use only the first so many theorems, each with all its statements
    split  split of a Hugging Face dataset
    """
    tests, policy = statements(data, limit, split), load(model)
    marker = model.player(judge) if judge else None
    policy.check(tests)
    pt.distribute(policy)
    folder, settings = Path(output.out), {**output.settings, "seed": output.seed}
    files = ("replies.jsonl", TABLE)
    pt.prepare_folder(folder, "evaluation", files, settings, resume=output.resume, overwrite=output.overwrite)
    replies = Replies(folder / "replies.jsonl", tests)
    with (
        scale.playing(policy, folder, tests) as player,
        pt.progress_bar("statements", len(tests), output.quiet) as watch,
    ):
        found = decide(replies, player, output.seed, watch)
    if marker is not None:
        with pt.progress_bar("marks", len(tests), output.quiet) as watch:
            found |= pt.ranks.run_on_primary(lambda: mark(replies, marker, output.seed, watch), "for the judge's marks")
    if pt.ranks.is_primary():
        print("\n".join(as_table({"decided": found})))
        pt.write_json(folder / TABLE, found)
    return folder


def record_before(measure: Callable[[pt.Session], Mapping[str, float]]) -> Callable[[pt.Session], None]:
    """For a session to start with: it writes what the untouched policy decides to the run's `decided.json`.

    A run that is resumed after its first checkpoint keeps what is there.
    """

    def start(session: pt.Session) -> None:
        if session.step:
            return
        folder = session.directory.path
        if pt.ranks.is_primary() and not session.run.resume:
            for old in folder.glob("decided*.json*"):  # of the run that was replaced
                old.unlink()
        found = measure(session)
        if found and pt.ranks.is_primary():
            pt.write_json(folder / TABLE, {"before": dict(found)})

    return start


def record_after(session: pt.Session, found: Mapping[str, float]) -> pt.Session:
    """Print what training changed, and write it to the run's `decided.json`."""
    if found and pt.ranks.is_primary():
        path = session.directory.path / TABLE
        columns = (pt.read_json(path) if path.is_file() else {}) | {"after": dict(found)}
        print("\n".join(as_table(columns)))
        pt.write_json(path, columns)
    return session


def decide_now(session: pt.Session, sets: Mapping[str, Sequence[pt.Task]], watch: Watch) -> dict[str, float]:
    """The tests of all sets under the policy as it is; its replies are in the run's `decided-STEP.jsonl`."""
    tests = list(chain(*sets.values()))
    if not tests:
        return {}
    replies = Replies(session.directory.path / f"decided-{session.step:06d}.jsonl", tests)
    found = decide(replies, cast("pt.TextPolicy", session.policy), session.run.seed, watch)
    if len(sets) > 1:
        found |= {f"joint, {name}": measures_of(replies.of(some))["joint"] for name, some in sets.items()}
    return found


def decide_before(session: pt.Session, sets: Mapping[str, Sequence[pt.Task]]) -> dict[str, float]:
    """`decide_now`, counted in the display of the session."""
    shown = session.progress.bar
    row = shown.add_task("before", total=sum(map(len, sets.values())), numbers="")
    found = decide_now(session, sets, lambda more: shown.update(row, advance=more))
    shown.remove_task(row)
    return found


def decide_after(session: pt.Session, sets: Mapping[str, Sequence[pt.Task]]) -> dict[str, float]:
    with pt.progress_bar(
        "after", sum(map(len, sets.values())), session.run.quiet or not pt.ranks.is_primary()
    ) as watch:
        return decide_now(session, sets, watch)


# ---- built from questions


@dataclass(frozen=True)
class WriterOptions:
    """Who answers the questions of the pipeline."""

    writer: str
    """A chat server (http://..., with #MODEL if it has several), a Hub id or a folder."""
    max_new: int = 8192
    """Most tokens in an answer."""
    temperature: float = 1.0
    """Of its answers."""
    device: str | None = None
    """Of a writer that runs here, and of the encoder."""

    def player(self) -> pt.Sampler:
        pt.at_least(1, max_new=self.max_new)
        return pt.ModelOptions(max_new=self.max_new, temperature=self.temperature, device=self.device).player(
            self.writer
        )


@pt.one_process("one writer answers all questions")
def build(
    data: str,
    writer: WriterOptions,
    output: pt.Output = pt.Output("theorems"),
    prompt: str = "question",
    against: tuple[str, ...] = (),
    encoder: str | None = None,
    limit: int | None = None,
    split: str = "train",
) -> Path:
    """Build theorems with variants from questions of your own: OUT/theorems.jsonl, in the columns of training data.

    data     questions: JSONL, CSV or Parquet, or a Hugging Face dataset id
    prompt   their column, or a template such as "Show that {statement}"
    against  test files of which nothing may be in the theorems
    encoder  Hub id or folder of a sentence encoder that finds what is near them; n-grams of words if not given
    limit    use only the first so many questions
    split    split of a Hugging Face dataset
    """
    player, tasks = writer.player(), pt.read(data, prompt, None, limit=limit, split=split)
    tests = [str(task.prompt[-1]["content"]) for file in against for task in statements(file)]
    recall = by_encoder(encoder, writer.device) if encoder else by_words
    folder, settings = Path(output.out), {**output.settings, "seed": output.seed}
    settings = {name: value for name, value in settings.items() if not hasattr(writer, name)}  # another may go on
    files = ("items.jsonl", "theorems.jsonl")
    pt.prepare_folder(folder, "construct", files, settings, resume=output.resume, overwrite=output.overwrite)
    ledger = Ledger(folder / "items.jsonl", items_of(tasks, tests, recall))
    failures = construct(ledger, player, output.seed, output.quiet)
    rows = rows_of(ledger.finished_items())
    (folder / "theorems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for line in summary(len(tasks), len(rows), ledger.drop_counts(), failures):
        print(line, file=sys.stderr)
    if failures and len(failures) == len(tasks):
        raise ValueError(f"the writer answered nothing: {failures[0]}")
    return folder


def summary(questions: int, theorems: int, dropped: Counter[str], failures: Sequence[str]) -> list[str]:
    lines = [f"{theorems} theorems of {questions} questions"]
    lines += [f"  {count:6} dropped: {reason}" for reason, count in dropped.most_common()]
    if failures:
        lines.append(f"  {len(failures):6} not answered, the first because {failures[0]}; resume to ask again")
    return lines


STAGES = {"laptop": laptop, "train": learn, "sft": imitate, "evaluate": evaluate, "construct": build}
