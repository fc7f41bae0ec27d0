"""A trained evaluator in this process or elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import posttrain as pt
from posttrain.sampler.scorer import Connection
from posttrain.scale.apart import reach
from posttrain.serve.scorer import Kind, Operation
from posttrain.systems.rag_zeval.evaluator import Comparison, Evaluator, LocalEvaluator


class RemoteEvaluator:
    """An evaluator in another process: one request for all that is asked."""

    def __init__(self, connection: Connection):
        self.connection = connection

    def scores(self, asked: Sequence[Comparison], seed: int = 0) -> list[list[float | str]]:
        items = [{"question": one.question, "reference": one.reference, "answers": list(one.answers)} for one in asked]
        return self.connection.call("scores", {"items": items, "seed": seed}) if items else []


def load_evaluator(name: str, device: str | None = None, max_new: int = 2048) -> LocalEvaluator:
    return LocalEvaluator(pt.text(name, max_new=max_new, device=device))


def answers_of(item: Mapping[str, Any]) -> tuple[str, ...]:
    """Raises ValueError where `answers` is no list of texts."""
    answers = item["answers"]
    if not isinstance(answers, list) or not all(isinstance(one, str) for one in answers):
        raise ValueError("`answers` is a list of texts")
    return tuple(answers)


def operations(model: LocalEvaluator) -> Mapping[str, Operation]:
    def scores(payload: Any) -> Iterator[list[float | str]]:
        for i, item in enumerate(payload["items"]):
            one = Comparison(str(item["question"]), str(item["reference"]), answers_of(item))
            yield model.scores([one], pt.mix(int(payload.get("seed", 0)), i))[0]

    return {"scores": scores}


SCORER: Kind[Evaluator] = Kind(
    "evaluator",
    "posttrain.systems.rag_zeval.serving:SCORER",
    load_evaluator,
    lambda model: {},
    operations,
    RemoteEvaluator,
)


def evaluator_of(name: str, *, device: str | None = None) -> Evaluator:
    """A trained evaluator, by its folder or the address of `posttrain serve --scorer rag-zeval=FOLDER`."""
    return reach(SCORER, name, device=device)
