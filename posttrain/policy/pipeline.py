"""Reads diffusion checkpoints in the layout of diffusers: a folder, or a repository of the Hub, a part in each folder.

unet/  scheduler/  text_encoder/  tokenizer/        and vae/, where the UNet works on latents
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from posttrain.policy.abilities import choose_bf16
from posttrain.policy.checkpoint_folder import quiet
from posttrain.policy.diffusion import Denoising, DiffusionPolicy
from posttrain.policy.pretrained import choose_device, first_line, keep_freed_memory, set_threads

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]  # what SRRL's and DDPO's releases adapt
OWN = re.compile(r"(?:diffusion_pytorch_model|model)(?:-\d+-of-\d+)?\.safetensors")  # not a variant, as .fp16
EXTRA = "a diffusion policy needs the extra: pip install 'posttrain[diffusion]'"


def diffusers_parts() -> tuple[Any, Any, Any]:
    """diffusers' AutoencoderKL, UNet2DConditionModel and DDIMScheduler. Raises ValueError naming the extra."""
    try:
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    except ImportError as error:
        raise ValueError(EXTRA) from error
    return AutoencoderKL, UNet2DConditionModel, DDIMScheduler


def diffusion(
    model: str,
    denoising: Denoising | None = None,
    *,
    lora: int = 0,
    bf16: bool = False,
    batch: int = 256,
    device: str | None = None,
) -> DiffusionPolicy:
    """A trainable diffusion policy from a folder or a Hub id, in float32 whatever the checkpoint is stored in.

    It is saved in the dtype that its files are in.

    lora   rank of a LoRA adapter on the UNet's attention; 0 trains all of the UNet
    batch  latents in the UNet at a time: memory, never the result
    Raises ValueError naming what is missing: the folder, a part of it, the extra; or why its UNet cannot be asked.
    """
    autoencoder, unets, schedulers = diffusers_parts()
    from transformers import CLIPTextModel

    path = diffusion_path(model)
    latent = not Path(path).is_dir() or (Path(path) / "vae").is_dir()
    check_unet(part(unets.load_config, path, "unet"), path, latent)
    unet = part(unets.from_pretrained, path, "unet")
    if lora:
        adapt(unet, lora)
    set_threads(unet, None)
    keep_freed_memory()
    encoder = part(CLIPTextModel.from_pretrained, path, "text_encoder", dtype=torch.float32)
    scheduler = part(schedulers.from_pretrained, path, "scheduler")
    vae = part(autoencoder.from_pretrained, path, "vae").requires_grad_(False).eval() if latent else None
    for folder, network in (("unet", unet), ("text_encoder", encoder), ("vae", vae)):
        if network is not None:
            network.checkpoint_dtype = stored_dtype(path, folder)
            network.to(choose_device(device))
    how, words = Denoising() if denoising is None else denoising, tokenizer_of(path)
    bf16 = choose_bf16(bf16, choose_device(device))
    return DiffusionPolicy(unet, scheduler, encoder, words, vae, how, bf16=bf16, batch=batch)


def diffusion_path(model: str) -> str:
    """Raises ValueError for a folder that is not there, or that is no diffusion checkpoint."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        if model.startswith((".", "/", "~")) or model.count("/") > 1:
            raise ValueError(f"`model={model}`: there is no such folder")
        return model
    missing = [name for name in ("unet", "scheduler", "text_encoder", "tokenizer") if not (folder / name).is_dir()]
    if missing:
        raise ValueError(f"`model={model}`: the folder has no {missing[0]}/, so it is not a diffusion checkpoint")
    return str(folder)


def check_unet(config: Mapping[str, Any], path: str, latent: bool) -> None:
    """Raises ValueError for a UNet that cannot be asked by text alone, or whose pictures nobody could see."""
    more, read, written = config.get("addition_embed_type"), config.get("in_channels", 4), config.get("out_channels", 4)
    if more:
        raise ValueError(
            f"`model={path}`: its UNet takes more than one text (addition_embed_type {more}), as SDXL's does: "
            "only models like Stable Diffusion 1 and 2 are supported"
        )
    if read != written:
        raise ValueError(f"`model={path}`: its UNet reads {read} channels and writes {written}: it must be as many")
    if not latent and read not in (1, 3):
        raise ValueError(f"`model={path}`: its UNet works on latents of {read} channels, but the folder has no vae/")


def part(read: Callable[..., Any], path: str, folder: str, **options: Any) -> Any:
    try:
        with quiet():
            return read(path, subfolder=folder, **options)
    except (OSError, ValueError) as error:
        raise ValueError(f"`model={path}`: its {folder}/ cannot be loaded: {first_line(error)}") from error


def stored_dtype(path: str, folder: str) -> torch.dtype:
    """What a part of a checkpoint that was read is stored in, by its first tensor; float32 without safetensors."""
    from huggingface_hub import snapshot_download
    from safetensors import safe_open

    held = Path(path if Path(path).is_dir() else snapshot_download(path, local_files_only=True)) / folder
    files = [file for file in sorted(held.glob("*.safetensors")) if OWN.fullmatch(file.name)]
    if not files:
        return torch.float32
    with safe_open(files[0], "pt") as tensors:
        kinds = (tensors.get_tensor(name).dtype for name in tensors.keys())  # noqa: SIM118
        return next((kind for kind in kinds if kind.is_floating_point), torch.float32)


def tokenizer_of(path: str) -> Any:
    from transformers import AutoTokenizer

    return part(AutoTokenizer.from_pretrained, path, "tokenizer")


def adapt(unet: Any, rank: int) -> None:
    """Put a LoRA adapter on the UNet's attention (alpha = rank, Gaussian start), the only thing that is trained."""
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ValueError("`lora` needs the extra: pip install 'posttrain[lora]'") from error
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=ATTENTION))
