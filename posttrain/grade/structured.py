"""The reward that compares JSON."""

from __future__ import annotations

import json as standard_json
import re
from typing import Any

from posttrain.chat import without_thinking
from posttrain.core import Rollout
from posttrain.grade.stated import whole_reply
from posttrain.reward import each


def fence(kinds: str) -> re.Pattern[str]:
    """Fenced blocks of these kinds, an alternation such as `json|js`, or of none."""
    return re.compile(
        rf"^[ \t]*```[ \t]*(?:(?:{kinds})[ \t]*)?\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE | re.IGNORECASE
    )


FENCE = fence("json[c5]?|javascript|js")
MOST_STARTS = 200  # of values in prose


def parse_json(text: str) -> Any:
    """The JSON value in a reply: all of it, the last fenced block that is JSON, or the last value in its prose.

    Thinking does not count. Raises ValueError when there is none.
    """
    said = without_thinking(text).strip()
    for piece in (said, *reversed(FENCE.findall(said))):
        try:
            return standard_json.loads(piece)
        except ValueError:
            continue
    values = values_in(said)
    if not values:
        raise ValueError("the reply holds no JSON")
    return values[-1]


def values_in(text: str) -> list[Any]:
    """The objects and arrays that stand in a text, one after the other."""
    decoder, found, at = standard_json.JSONDecoder(), [], 0
    for _ in range(MOST_STARTS):
        start = re.compile(r"[\[{]").search(text, at)
        if start is None:
            break
        try:
            value, at = decoder.raw_decode(text, start.start())
            found.append(value)
        except (ValueError, RecursionError):
            at = start.end()
    return found


def same_json(a: Any, b: Any) -> bool:
    """Equal as JSON: true is not 1, the order of keys does not count."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same_json(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same_json, a, b))
    return a == b


def is_json(rollout: Rollout) -> float:
    """1 when the reply is JSON equal to the truth (objects without regard to order)."""
    truth = rollout.task.truth
    if isinstance(truth, str):
        try:
            truth = standard_json.loads(truth)
        except ValueError as error:
            raise ValueError(f"task {rollout.task.key!r}: `grade=json` cannot read its answer {truth!r}") from error
    try:
        return float(same_json(parse_json(whole_reply(rollout)), truth))
    except (ValueError, RecursionError):
        return 0.0


json = each(is_json)
