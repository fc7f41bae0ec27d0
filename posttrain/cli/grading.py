"""The audit of graders: replies that were recorded are graded again, and compared with what they earned."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from posttrain.core import Reward, Rollout

SHOWN, TAIL = 20, 300  # disagreements that are printed; characters of a reply's end
SAME = 1e-9
START, END = "<!-- made by `posttrain grade --write` -->", "<!-- end -->"


@dataclass(frozen=True, slots=True)
class Recorded:
    """A reply of a run or a file, with what it earned then."""

    place: str
    rollout: Rollout
    reward: float | None


def grade(
    data: str,
    grade: str = "math",
    against: str | None = None,
    reply: str = "reply",
    answer: str = "answer",
    limit: int | None = None,
    out: str | None = None,
    write: str | None = None,
) -> None:
    """Grade recorded replies again, and list where the grade differs from the recorded reward, or from another grader.

    Nothing is sampled: use it to audit a grader before a run is paid by it, or to re-grade a run that was.

    data     the directory of a run or of an evaluation (posttrain eval), or a JSONL, CSV or Parquet file of replies
             with their answers
    grade    math, exact, choice, contains, json, or file.py:function for a reward of your own
    against  another grader, to compare with instead of the recorded rewards
    reply    column of the reply, in a file of your own
    answer   column of the answer, in a file of your own
    limit    grade only the first so many replies
    out      write every reply with its grades to this JSONL file
    write    put a table of the disagreements into this Markdown file, replacing the table already there
    """
    from posttrain.cli.options import TaskOptions

    if write:
        around_table(Path(write))
    reward = TaskOptions(data, grade=grade).reward()
    other = TaskOptions(data, grade=against).reward() if against else None
    rows: list[dict[str, Any]] = []
    for number, one in enumerate(recorded(Path(data), reply, answer)):
        if limit is not None and number >= limit:
            break
        then = value_of(other, one.rollout) if other else one.reward
        row = {"place": one.place, "answer": one.rollout.task.truth, "reply": one.rollout.text}
        rows.append({**row, grade: value_of(reward, one.rollout), against or "recorded": then})
    if not rows:
        raise ValueError(f"`data={data}`: there are no replies in it")
    if out:
        Path(out).write_text("".join(json.dumps(row) + "\n" for row in rows))
    show(rows, grade, against or "recorded")
    if write:
        write_table(Path(write), [row for row in rows if differ(row, grade, against or "recorded")], grade, against)


def differ(row: dict[str, Any], ours: str, theirs: str) -> bool:
    """Where both could be graded."""
    both = row[ours], row[theirs]
    return None not in both and abs(both[0] - both[1]) > SAME


def write_table(path: Path, rows: list[dict[str, Any]], ours: str, against: str | None) -> None:
    """In the place of the table between the marks."""
    theirs = against or "recorded"
    head = [f"| answer | reply | {ours} | {theirs.rpartition(':')[2]} |", "|---|---|---|---|"]
    lines = [f"| {cell(row['answer'])} | {cell(row['reply'])} | {row[ours]:g} | {row[theirs]:g} |" for row in rows]
    before, after = around_table(path)
    path.write_text("\n".join([before + START, *head, *lines, END + after]))


def around_table(path: Path) -> tuple[str, str]:
    """What stands before and after the marks. Raises ValueError for a file without them."""
    text = path.read_text() if path.is_file() else ""
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise ValueError(f"`write={path}`: it has no lines {START!r} and {END!r}, between which the table goes")
    return before, after


def cell(value: Any) -> str:
    return "`" + " ".join(str(value).split()).replace("|", "\\|") + "`"


def value_of(reward: Reward, rollout: Rollout) -> float | None:
    """None for what cannot be graded."""
    from posttrain.core import Score
    from posttrain.reward import group_scores

    score = group_scores(reward, [rollout])[0]
    return score.value if isinstance(score, Score) else None


def recorded(path: Path, reply: str, answer: str) -> Iterator[Recorded]:
    """The replies of a run, of an evaluation, or of a file. Raises ValueError when there are none."""
    from posttrain.records import column, records
    from posttrain.run.replies import REPLIES
    from posttrain.run.rollouts import read_rollouts

    path = path / REPLIES if (path / REPLIES).is_file() else path
    if path.is_dir():
        for one in read_rollouts(path):
            texts = [turn.get("opened", "") + turn["content"] for turn in one["turns"]]
            yield Recorded(f"step {one['step']}, task {one['task']}", rollout_of(one["truth"], texts), one["reward"])
        return
    for place, record in records(path):
        if "replies" in record and "truth" in record:
            yield Recorded(str(place), rollout_of(record["truth"], record["replies"]), record.get("reward"))
        else:
            text, truth = column(record, reply, place, "reply"), column(record, answer, place, "answer")
            yield Recorded(str(place), rollout_of(truth, [str(text)]), record.get("reward"))


def rollout_of(truth: Any, texts: list[Any]) -> Rollout:
    import torch

    from posttrain.core import Ask, Reply, Rollout, Task, Turn

    turns = [Turn(Ask(()), Reply(text, torch.zeros(0), None)) for text in texts]
    return Rollout(Task("recorded", (), truth), turns)


def show(rows: list[dict[str, Any]], ours: str, theirs: str) -> None:
    graded = [row for row in rows if row[ours] is not None]
    print(f"{len(rows)} replies, {len(rows) - len(graded)} of which {ours} cannot grade")
    pairs = [row for row in graded if row[theirs] is not None]
    if not pairs:
        if graded:
            print(f"mean of {ours}: {statistics.fmean(row[ours] for row in graded):.3f}; nothing to compare with")
        return
    differing = [row for row in pairs if differ(row, ours, theirs)]
    mean, other = (statistics.fmean(row[name] for row in pairs) for name in (ours, theirs))
    print(f"mean of {ours}: {mean:.3f}, of {theirs}: {other:.3f}; they differ on {len(differing)}")
    for (a, b), count in Counter((row[ours], row[theirs]) for row in differing).most_common():
        print(f"  {count:6} times {ours} {a:g}, {theirs} {b:g}")
    for row in differing[:SHOWN]:
        print(f"\n{row['place']}: {ours} {row[ours]:g}, {theirs} {row[theirs]:g}; the answer is {row['answer']!r}")
        print(f"  {'…' if len(row['reply']) > TAIL else ''}{row['reply'][-TAIL:]!r}")
    if len(differing) > SHOWN:
        print(f"\n{len(differing) - SHOWN} more; `out` writes all of them")
