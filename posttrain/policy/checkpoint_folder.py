"""Writes Hugging Face checkpoints in the dtype that they came in: training is in float32, whatever was loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def remember_dtype(model: nn.Module, config: Any) -> None:
    """Note on a model that was loaded in float32 what its checkpoint's configuration says."""
    kind = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None)
    model.checkpoint_dtype = kind if isinstance(kind, torch.dtype) else torch.float32  # type: ignore[assignment]


def write_checkpoint(model: Any, path: Path, tensors: Mapping[str, Tensor] | None = None) -> None:
    """`save_pretrained`, in the dtype that `remember_dtype` has noted; `tensors` in the place of the model's own."""
    kind = getattr(model, "checkpoint_dtype", torch.float32)
    if kind == torch.float32:
        with quiet():
            model.save_pretrained(path, **({"state_dict": dict(tensors)} if tensors else {}))
        return
    cast: dict[int, Tensor] = {}  # by address, so that tied tensors stay one
    for value in (found := dict(tensors or model.state_dict())).values():
        cast.setdefault(value.data_ptr(), value.to(kind) if value.is_floating_point() else value)
    with quiet():
        model.save_pretrained(path, state_dict={name: cast[value.data_ptr()] for name, value in found.items()})
    file = path / "config.json"
    config = json.loads(file.read_text())
    for part in (config, *(one for one in config.values() if isinstance(one, dict))):
        if "dtype" in part:
            part["dtype"] = str(kind).removeprefix("torch.")
    file.write_text(json.dumps(config, indent=2) + "\n")


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' own progress bars, which would run through ours."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
