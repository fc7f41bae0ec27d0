"""Last-position logits of early layers beside the mature ones, with transformers' own pass and a cache of keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from posttrain.policy.fast.generate import TransformersRows

DEEP, SPAN = 40, 20  # of more than 40 layers, only the first or last 20 are candidates
NORMS = ("norm", "ln_f", "final_layernorm", "final_layer_norm")  # what architectures call the norm before the head


def candidates(config: Any, layers: str | Sequence[int]) -> tuple[int, ...]:
    """The early layers to contrast with: hidden state i, of which 0 is the embeddings.

    `low` and `high` follow transformers (up to 4.5x): every second layer of the lower or upper half; a model with tied
    embeddings begins at layer 2, where the embeddings' own logits would be the token that was just read.
    Raises ValueError for other names, and for layers that the model does not have.
    """
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    count = int(config.num_hidden_layers)
    if isinstance(layers, str) and layers in ("low", "high"):
        half = count // 2
        if layers == "high":
            return tuple(range(count - SPAN if count > DEEP else half, count, 2))
        start = 0 if not config.tie_word_embeddings else 2 if count > 2 else 1 if count == 2 else 0
        return tuple(range(start, SPAN if count > DEEP else half, 2)) or (start,)
    try:
        chosen = tuple(int(one) for one in (layers.split(",") if isinstance(layers, str) else layers))
    except ValueError:
        raise ValueError(f"layers={layers!r}: give low, high, or numbers separated by commas") from None
    if not chosen or any(not 0 <= one < count for one in chosen) or len(set(chosen)) < len(chosen):
        raise ValueError(f"layers={layers!r}: the model has layers 0 (the embeddings) to {count - 1}, each named once")
    return chosen


class LayerRows(TransformersRows):
    """As `TransformersRows`, and it keeps what the candidate layers made of the last position.

    All of a prompt but its last token is read without hidden states, so that they are only held for one position.
    """

    def __init__(self, head: Any, layers: Sequence[int], norm_early: bool = False):
        super().__init__(head)
        self.layers = tuple(layers)
        self.norm = final_norm(head.trunk) if norm_early else None
        self.hidden = torch.empty(0)  # [B, C, D]

    def admit(self, prompts: Sequence[Sequence[int]], owner: Sequence[int], room: int) -> None:
        super().admit(prompts, owner, room)
        self.hidden = self.hidden[torch.tensor(owner, device=self.device)]

    def forward(self, ids: Tensor, mask: Tensor, positions: Tensor, **more: Any) -> Tensor:
        """[B, V] float32 logits after the last of `ids`."""
        if ids.shape[1] > 1:
            self.run_trunk(ids[:, :-1], mask[:, :-1], positions[:, :-1])
        out = self.run_trunk(ids[:, -1:], mask, positions[:, -1:], output_hidden_states=True, **more)
        self.hidden = torch.stack([out.hidden_states[layer][:, -1] for layer in self.layers], 1)
        return self.head.logits(out.last_hidden_state[:, -1])

    def early(self) -> Tensor:
        """[B, C, V] float32 logits of the candidate layers: the model's head on them, without the final norm or with.

        transformers' DoLa takes none. The head's scale and soft cap, where it has them, are those of its logits.
        """
        return self.head.logits(self.hidden if self.norm is None else self.norm(self.hidden))

    def keep(self, index: Tensor) -> None:
        super().keep(index)
        self.hidden = self.hidden[index]


def final_norm(trunk: Any) -> Any:
    """Raises ValueError for an architecture that calls it by a name unknown here."""
    found = next((getattr(trunk, name) for name in NORMS if hasattr(trunk, name)), None)
    if found is None:
        raise ValueError(f"norm_early: {type(trunk).__name__} has no final norm by the names {', '.join(NORMS)}")
    return found
