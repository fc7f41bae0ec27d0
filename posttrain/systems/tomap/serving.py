"""A saved attitude predictor in this process or elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

import posttrain as pt
from posttrain.sampler.scorer import Connection
from posttrain.scale.apart import reach
from posttrain.serve.scorer import Kind, Operation
from posttrain.systems.tomap.predictor import Predictor, load_predictor, pair_of


class RemotePredictor:
    """A predictor in another process, as a player: one request for all asks."""

    def __init__(self, connection: Connection):
        self.connection = connection

    def levels(self, pairs: Sequence[tuple[str, str]]) -> list[int]:
        """[B] 0 to 4: Bob's attitude to each statement after each dialogue."""
        return self.connection.call("levels", {"pairs": list(pairs)}) if pairs else []

    def sample(self, asks: Sequence[pt.Ask]) -> list[pt.Reply]:
        return [pt.Reply(found, torch.zeros(0), None) for found in self.levels([pair_of(ask) for ask in asks])]


def operations(model: Predictor) -> Mapping[str, Operation]:
    def pairs_in(payload: Any) -> list[tuple[str, str]]:
        return [(str(statement), str(transcript)) for statement, transcript in payload["pairs"]]

    def levels(payload: Any) -> Iterator[int]:
        yield from model.levels(pairs_in(payload))

    def probabilities(payload: Any) -> Iterator[list[float]]:
        yield from model.probabilities(pairs_in(payload)).tolist()

    return {"levels": levels, "probabilities": probabilities}


SCORER: Kind[pt.Sampler] = Kind(
    "predictor",
    "posttrain.systems.tomap.serving:SCORER",
    load_predictor,
    lambda model: {},
    operations,
    RemotePredictor,
)


def predictor_of(name: str, *, device: str | None = None) -> pt.Sampler:
    """A predictor that `Predictor.save` wrote, by its folder or a server's address; once for all ranks and players.

    Raises ValueError when it cannot be loaded, or the address serves something else; ServerError when nobody answers.
    """
    return reach(SCORER, name, device=device)
