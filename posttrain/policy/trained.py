"""What training changes of a model: the parameters that have a gradient, by name."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def trained_parameters(model: nn.Module) -> dict[str, Tensor]:
    """All of the parameters, or an adapter's."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def restore(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Copy a checkpoint into tensors. Raises ValueError, before any is changed, when names or shapes are others."""
    for name, value in own.items():
        if name not in state or state[name].shape != value.shape:
            raise ValueError(f"the checkpoint is of another model: it has no {name} of shape {tuple(value.shape)}")
    for name, value in own.items():
        value.copy_(state[name])
