"""Diffusion checkpoints in the layout of diffusers: a folder, or a repository of the Hub, with a part in each folder.

unet/  scheduler/  text_encoder/  tokenizer/        and vae/, where the UNet works on latents
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.policy.load import first_line, keep_freed_memory, picked, set_threads
from posttrain.policy.text import quiet

if TYPE_CHECKING:
    from posttrain.policy.diffusion import Denoising, DiffusionPolicy

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]  # what SRRL's and DDPO's releases adapt
EXTRA = "a diffusion policy needs the extra: pip install 'posttrain[diffusion]'"


def diffusion(
    model: str,
    denoising: Denoising | None = None,
    *,
    lora: int = 0,
    bf16: bool = False,
    device: str | None = None,
) -> DiffusionPolicy:
    """A trainable diffusion policy from a folder or a Hub id.

    lora   rank of a LoRA adapter on the UNet's attention; 0 trains all of the UNet
    Raises ValueError naming what is missing: the folder, a part of it, the extra.
    """
    from posttrain.policy.diffusion import Denoising, DiffusionPolicy

    try:
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    except ImportError as error:
        raise ValueError(EXTRA) from error
    from transformers import CLIPTextModel

    path = located(model)
    unet = part(UNet2DConditionModel, path, "unet")
    if lora:
        adapt(unet, lora)
    set_threads(unet, None)
    keep_freed_memory()
    encoder, scheduler = part(CLIPTextModel, path, "text_encoder"), part(DDIMScheduler, path, "scheduler")
    latent = not Path(path).is_dir() or (Path(path) / "vae").is_dir()
    vae = part(AutoencoderKL, path, "vae").requires_grad_(False).eval() if latent else None
    for network in (unet, encoder, vae):
        if network is not None:
            network.to(picked(device))
    return DiffusionPolicy(
        unet, scheduler, encoder, tokenizer_of(path), vae, Denoising() if denoising is None else denoising, bf16=bf16
    )


def located(model: str) -> str:
    """Raises ValueError for a folder that is not there, or that is no diffusion checkpoint."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        if model.startswith((".", "/", "~")) or model.count("/") > 1:
            raise ValueError(f"--model {model}: there is no such folder")
        return model
    missing = [name for name in ("unet", "scheduler", "text_encoder", "tokenizer") if not (folder / name).is_dir()]
    if missing:
        raise ValueError(f"--model {model}: the folder has no {missing[0]}/, so it is not a diffusion checkpoint")
    return str(folder)


def part(kind: Any, path: str, folder: str) -> Any:
    try:
        with quiet():
            return kind.from_pretrained(path, subfolder=folder)
    except (OSError, ValueError) as error:
        raise ValueError(f"--model {path}: its {folder}/ cannot be loaded: {first_line(error)}") from error


def tokenizer_of(path: str) -> Any:
    from transformers import AutoTokenizer

    return part(AutoTokenizer, path, "tokenizer")


def adapt(unet: Any, rank: int) -> None:
    """Put a LoRA adapter on the UNet's attention (alpha = rank, Gaussian start), the only thing that is trained."""
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ValueError("--lora needs the extra: pip install 'posttrain[lora]'") from error
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=ATTENTION))


def write(policy: DiffusionPolicy, path: Path) -> None:
    """Every part in its folder, and the index by which diffusers' `StableDiffusionPipeline` finds them."""
    import diffusers

    from posttrain.policy.diffusion import adapted

    unet = policy.unet
    if adapted(unet):
        unet.save_lora_adapter(path / "adapter")
        unet = copy.deepcopy(unet)
        unet.fuse_lora()
        unet.unload_lora()
    parts = {"unet": unet, "scheduler": policy.scheduler, "text_encoder": policy.encoder, "tokenizer": policy.tokenizer}
    parts |= {} if policy.vae is None else {"vae": policy.vae}
    index: dict[str, Any] = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": diffusers.__version__,
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
    }
    for name, thing in parts.items():
        with quiet():
            thing.save_pretrained(path / name)
        index[name] = [type(thing).__module__.partition(".")[0], type(thing).__name__]
    (path / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
