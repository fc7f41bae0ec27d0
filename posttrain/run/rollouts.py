"""The rollouts of a run as records: written step by step, with pictures of those that its report shows."""

from __future__ import annotations

import gzip
import json
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.core import Draw, Invalid, Policy, Rollout
from posttrain.group import ScoredRollout
from posttrain.policy.png import png_address
from posttrain.run.directory import json_value

ROLLOUTS = 16  # of a step, in the report


def write_rollouts(
    folder: Path, step: int, policy: Policy, played: Sequence[ScoredRollout], draw: Draw | None = None
) -> None:
    """Write all rollouts of a step to a folder; `draw` makes pictures of those that the report will show."""
    if not played:
        return
    records = [as_record(step, policy, one) for one in played]
    if draw is not None:
        for i in by_reward_spread(records)[:ROLLOUTS]:
            records[i] |= drawing_of(played[i].rollout, draw)
    final = folder / f"{step:06d}.jsonl.gz"
    scratch = final.with_suffix(".writing")
    with gzip.open(scratch, "wt", compresslevel=3) as file:
        for record in records:
            file.write(json.dumps(record) + "\n")
    os.replace(scratch, final)


def read_rollouts(path: str | Path, step: int | None = None) -> Iterator[dict[str, Any]]:
    """The recorded rollouts of a run, or of one of its steps, as dictionaries."""
    name = "*.jsonl.gz" if step is None else f"{step:06d}.jsonl.gz"
    for file in sorted((Path(path) / "rollouts").glob(name)):
        with gzip.open(file, "rt") as lines:
            for line in lines:
                yield json.loads(line)


def as_record(step: int, policy: Policy, played: ScoredRollout) -> dict[str, Any]:
    """A rollout as JSON: what was asked and answered, what it earned, and the numbers of every decision."""
    turns, start = [], 0
    for turn in played.rollout.turns:
        count = len(turn.reply.logp)
        credit = None if played.advantage is None else played.advantage[start : start + count].tolist()
        start += count
        turns.append(
            {
                "messages": [recorded_message(message) for message in turn.ask.messages],
                "content": json_value(turn.reply.content),
                "stop": turn.reply.stop,
                "version": turn.reply.version,
                "temperature": turn.reply.temperature,
                "logp": turn.reply.logp.tolist(),
                "advantage": credit,
                **policy.record(turn.reply),
            }
        )
    score = played.score
    marks = (
        {"reward": None, "invalid": score.reason}
        if isinstance(score, Invalid)
        else {"reward": score.value, "parts": dict(score.parts)}
    )
    task = played.rollout.task
    return {
        "step": step,
        "task": task.key,
        "truth": json_value(task.truth),
        "facts": json_value(played.rollout.facts),
        **marks,
        "turns": turns,
    }


def recorded_message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as rollouts/ holds it: without what was sampled, which has a turn of its own."""
    kept = {key: json_value(value) for key, value in message.items() if key not in ("reply", "content")}
    return kept | {"content": json_value(message.get("content"))}


def by_reward_spread(records: Sequence[Mapping[str, Any]]) -> list[int]:
    """Indices of records task by task, the tasks whose rewards differ most in front."""
    groups: dict[str, list[int]] = {}
    for i, record in enumerate(records):
        groups.setdefault(record["task"], []).append(i)

    def spread(group: list[int]) -> float:
        return statistics.pstdev([records[i]["reward"] or 0.0 for i in group])

    return [i for group in sorted(groups.values(), key=spread, reverse=True) for i in group]


def drawing_of(rollout: Rollout, draw: Draw) -> dict[str, str]:
    """A picture of a rollout for its record, or why there is none: a run does not end for that."""
    try:
        pixels = draw(rollout)
    except Exception as error:
        return {"undrawn": f"{type(error).__name__}: {error}"}
    return {} if pixels is None else {"drawing": png_address(pixels)}
