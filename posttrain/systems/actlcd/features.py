"""What the gate sees of a token: the tops of the candidate layers' distributions and of the mature one."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from posttrain.decode.decode import Step

Kind: TypeAlias = Literal["values", "ids"]
TOP = 5
LEAST = -30.0  # nats, of a log-probability among the features


def features(step: Step, kind: Kind = "values", before: Tensor | None = None) -> Tensor:
    """[B, F] float32, for C candidate layers.

    values  ours: of each layer and of the mature one the five largest probabilities, their logarithms, and which of
            them is the mature top token; each layer's divergence; the mature entropy; log(1 + t), t the token's place
            after `before` [B] earlier ones of the conversation. F = 15 (C + 1) + C + 2
    ids     as reported of the release: five (token id, probability) of each, ids as numbers. F = 10 (C + 1)
    """
    logp = torch.cat([step.early, step.mature[:, None]], 1).log_softmax(-1)  # [B, C + 1, V]
    if logp.shape[-1] < TOP:
        raise ValueError(f"the gate's features are of the {TOP} likeliest tokens, and the vocabulary has less")
    best, ids = logp.topk(TOP, -1)
    if kind == "ids":
        return torch.stack([ids.float(), best.exp()], -1).flatten(1)
    same = (ids == ids[:, -1:, :1]).float()
    mature = logp[:, -1]
    entropy = -(mature.exp() * mature.clamp(min=-1e4)).sum(-1, keepdim=True)
    place = (step.position + (0 if before is None else before)).float()[:, None]
    tops = torch.cat([best.exp(), best.clamp(min=LEAST), same], -1).flatten(1)
    return torch.cat([tops, step.divergence, entropy, place.log1p()], 1)


def entropy_column(layers: int) -> int:
    """Where the mature entropy stands among the `values` of so many candidate layers."""
    return 3 * TOP * (layers + 1) + layers


def width(kind: Kind, layers: int) -> int:
    """F for so many candidate layers."""
    return 2 * TOP * (layers + 1) if kind == "ids" else entropy_column(layers) + 2
