"""A saved Q model in this process or elsewhere: the values of tokens, asked for by their ids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

import posttrain as pt
from posttrain.chat import continues, trace
from posttrain.sampler.scorer import Connection
from posttrain.scale.apart import reach
from posttrain.serve.scorer import Kind, Operation
from posttrain.serve.wire import as_tensor, as_text, row_json, row_of
from posttrain.systems.q_rm.model import QModel, by_rollout


class TokenValues(Protocol):
    """A Q model, wherever it is."""

    def token_values(self, group: pt.Group) -> list[Tensor]: ...  # [G][N] of every rollout's decisions, on the CPU


class RemoteQModel:
    """A Q model in another process: one request for each group."""

    def __init__(self, connection: Connection):
        self.connection = connection

    def extends(self, last: pt.Turn, turn: pt.Turn) -> bool:
        return continues(last, turn)

    def token_values(self, group: pt.Group) -> list[Tensor]:
        """Raises ValueError when the Q model's tokenizer is not that of the rollouts: the ids would mean others."""
        return by_rollout(self, group, self.row_values)

    def row_values(self, rows: Sequence[pt.Row]) -> list[Tensor]:
        if not rows:
            return []
        vocabulary = self.connection.about["vocabulary"]
        if any(trace(turn.reply).vocabulary != vocabulary for row in rows for turn in row.turns):
            raise ValueError(
                f"the Q model at {self.connection.address} has another tokenizer than the policy: it cannot score its "
                "tokens"
            )
        return [as_tensor(one) for one in self.connection.call("values", {"rows": [row_json(row) for row in rows]})]


def operations(model: QModel) -> Mapping[str, Operation]:
    size = model.policy.stops.size

    def values(payload: Any) -> Iterator[str]:
        rows = [row_of(data, model.policy.chat.fingerprint, size) for data in payload["rows"]]
        yield from map(as_text, model.row_values(rows))

    return {"values": values}


SCORER: Kind[TokenValues] = Kind(
    "Q model",
    "posttrain.systems.q_rm.serving:SCORER",
    QModel.load,
    lambda model: {"vocabulary": model.policy.chat.fingerprint},
    operations,
    RemoteQModel,
)


def q_values(name: str, *, device: str | None = None) -> TokenValues:
    """A Q model that `QModel.save` wrote, by its folder or a server's address; once for all ranks and players of a run.

    Raises ValueError when it cannot be loaded, or the address serves something else; ServerError when nobody answers.
    """
    return reach(SCORER, name, device=device)
