"""Tiny diffusion checkpoints in the formats of the Hub, and a tiny world's untrained policy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from conftest import DEVICE

from posttrain.lab.world.balance import Balance
from posttrain.lab.world.pictures import Size, untrained_policy
from posttrain.policy.diffusion import Denoising, DiffusionPolicy

TEXT = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 77,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}


def drawing(seed: int = 0, batch: int = 256, device: Any = DEVICE, **how: Any) -> DiffusionPolicy:
    """Pixels of 8x8, three steps: `drawing(steps=5, reduction="sum")`. The last layer is random, so that text matters."""
    policy = untrained_policy(Balance(), seed, Size(channels=(8, 8), width=8))
    policy.unet.eval()
    for network in (policy.unet, policy.encoder):
        network.to(device)
    return DiffusionPolicy(
        policy.unet,
        policy.scheduler,
        policy.encoder,
        policy.tokenizer,
        denoising=replace(Denoising(steps=3, guidance=2.0), **how),
        batch=batch,
    )


def clip_tokenizer(folder: Path) -> Any:
    """CLIP's tokenizer with a vocabulary of single characters."""
    from transformers import CLIPTokenizer

    characters = [chr(c) for c in range(33, 127)]
    names = ["<|startoftext|>", "<|endoftext|>", *characters, *[f"{c}</w>" for c in characters]]
    return CLIPTokenizer(
        vocab={name: i for i, name in enumerate(names)}, merges=[], model_max_length=77, pad_token="<|endoftext|>"
    )


def stable_diffusion(folder: Path) -> str:
    """A checkpoint in the layout of Stable Diffusion v1: latents of 8x8 of pictures of 16x16."""
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    words = clip_tokenizer(folder)
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(8, 8),
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    )
    scheduler = PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        set_alpha_to_one=False,
        skip_prk_steps=True,
        steps_offset=1,
    )
    scheduler.register_to_config(clip_sample=False)
    encoder = CLIPTextModel(CLIPTextConfig(vocab_size=len(words), **TEXT))
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=encoder,
        tokenizer=words,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return str(folder)


def clip(folder: Path) -> str:
    """A CLIP model with its processor, for pictures of 16x16."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor

    torch.manual_seed(1)
    words = clip_tokenizer(folder)
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
    }
    config = CLIPConfig(text_config={"vocab_size": len(words), **TEXT}, vision_config=vision, projection_dim=8)
    CLIPModel(config).save_pretrained(folder)
    pixels = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    CLIPProcessor(pixels, words).save_pretrained(folder)
    return str(folder)
