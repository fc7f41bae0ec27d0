"""Writes diffusion checkpoints in the layout of diffusers, which `posttrain.policy.pipeline` reads.

Each part in the dtype that it came in: training is in float32, whatever was loaded.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from posttrain.policy.checkpoint_folder import quiet


def has_adapter(unet: Any) -> bool:
    return bool(getattr(unet, "peft_config", None))


def write_pipeline(parts: Mapping[str, Any], path: Path) -> None:
    """Every part in its folder, and the index by which diffusers' `StableDiffusionPipeline` finds them.

    A LoRA adapter of the UNet is merged into it, and kept beside it in `adapter/`.

    parts  by the names of their folders: unet, scheduler, text_encoder, tokenizer, and vae if there is one
    """
    import diffusers

    unet = parts["unet"]
    if has_adapter(unet):
        unet.save_lora_adapter(path / "adapter")
        unet = copy.deepcopy(unet)
        unet.fuse_lora()
        unet.unload_lora()
    index: dict[str, Any] = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": diffusers.__version__,
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
    }
    for name, part in {**parts, "unet": unet}.items():
        with quiet():
            in_checkpoint_dtype(part).save_pretrained(path / name)
        index[name] = [type(part).__module__.partition(".")[0], type(part).__name__]
    (path / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def in_checkpoint_dtype(part: Any) -> Any:
    """A network in the dtype of its file, without another copy of it in float32; what has no dtype as it is."""
    kind = getattr(part, "checkpoint_dtype", torch.float32)
    if kind == torch.float32:
        return part
    cast = {id(p): nn.Parameter(p.detach().to(kind), p.requires_grad) for p in part.parameters()}
    cast |= {id(b): b.to(kind) for b in part.buffers() if b.is_floating_point()}
    return copy.deepcopy(part, cast)
