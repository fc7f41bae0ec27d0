"""Numeric evidence: extract a trial's numbers, and compute what follows from them (arXiv:2505.22928).

A model reads a report and writes the numbers of an outcome in two arms as YAML. Only the numbers are rewarded; the risk
ratio or mean difference, its interval and the conclusion are computed from them, and are asked for in evaluation alone.

    record    the structured answer, and the numbers in it, whatever their spelling
    effect    risk ratio, mean difference, 95 % interval, conclusion
    reward    0.8 fields + 0.1 form + 0.1 thinking, or all fields and nothing less
    trials    questions in the published columns and a user's own; prompts
    measures  of predictions: conclusions, fields, and the errors that matter
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import posttrain as pt
from posttrain.grade.stated import whole_reply
from posttrain.grade.structured import parse_json, same_json

__all__ = ["PARTS", "by_field", "recipe"]


def recipe(
    reward: pt.Reward,
    samples: int = 16,
    kl: float = 0.0,
    reference: pt.Policy | None = None,
    evaluation: pt.Reward | None = None,
) -> pt.Recipe:
    """GRPO of 16 samples. The paper does not give its KL: none here; Open-R1's was 0.04, which needs a reference."""
    return pt.grpo(reward, samples=samples, kl=kl, reference=reference, evaluation=evaluation)


def by_field(group: pt.Group) -> Sequence[pt.Score | pt.Invalid]:
    """The share of the fields of the truth, a JSON object, that a reply's JSON has right; all of them always count.

    An object inside the object counts by its own fields, a list as a whole. What a reply adds earns and costs nothing,
    and a reply without JSON has nothing right. Raises ValueError for a truth that is no object with a field.
    """
    return pt.each(share_of_fields)(group)


def share_of_fields(rollout: pt.Rollout) -> float:
    wanted = dict(leaves(object_of(rollout.task)))
    if not wanted:
        raise ValueError(f"task {rollout.task.key!r}: `by_field` grades JSON objects, and its answer has no field")
    try:
        given = dict(leaves(parse_json(whole_reply(rollout))))
    except (ValueError, RecursionError):
        return 0.0
    return sum(path in given and same_json(given[path], value) for path, value in wanted.items()) / len(wanted)


def object_of(task: pt.Task) -> Any:
    try:
        return json.loads(task.truth) if isinstance(task.truth, str) else task.truth
    except ValueError as error:
        raise ValueError(f"task {task.key!r}: `by_field` cannot read its answer {task.truth!r} as JSON") from error


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The fields of an object with their paths; of anything else none."""
    for key, inner in value.items() if isinstance(value, Mapping) else ():
        if isinstance(inner, Mapping) and inner:
            yield from leaves(inner, (*path, key))
        else:
            yield (*path, key), inner


PARTS: Mapping[str, pt.Part] = {
    "fields": lambda plain, tiny: replace(plain, reward=by_field, evaluation=plain.evaluation or plain.reward),
}
