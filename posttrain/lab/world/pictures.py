"""Tiny diffusion models of a world's pictures, made from its demonstrations and kept on disk."""

from __future__ import annotations

import hashlib
import inspect
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from posttrain.seeding import mix

if TYPE_CHECKING:
    from torch import Tensor

    from posttrain.policy.diffusion import Denoising, DiffusionPolicy

END, PAD, UNKNOWN = "<end>", "<pad>", "<unknown>"
UNTOLD = 0.15  # share of demonstrations that are learned without their text, for guidance


class World(Protocol):
    """What a base model is made from."""

    @property
    def vocabulary(self) -> Sequence[str]: ...  # every word of prompts
    @property
    def longest(self) -> int: ...  # words of a prompt, at most
    def demonstration(self, draw: random.Random) -> tuple[str, Tensor]: ...  # a prompt and its picture [C, H, W]


@dataclass(frozen=True, slots=True)
class Size:
    """Of a base model, and how long it is trained."""

    channels: tuple[int, int] = (16, 32)
    width: int = 32  # of the text encoder
    steps: int = 300
    rows: int = 64
    rate: float = 3e-3


def words_of(world: World) -> Any:
    """A tokenizer whose tokens are the world's words. A word that is not one of them is <unknown>."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {word: i for i, word in enumerate((PAD, END, UNKNOWN, *world.vocabulary))}
    core = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=END,
        pad_token=PAD,
        unk_token=UNKNOWN,
        model_max_length=world.longest,
        clean_up_tokenization_spaces=False,
    )


def untrained_policy(world: World, seed: int = 0, size: Size = Size()) -> DiffusionPolicy:
    """A UNet on pixels with a text encoder, both from random weights."""
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel

    from posttrain.policy.diffusion import DiffusionPolicy
    from posttrain.policy.pipeline import diffusers_parts

    _, unets, schedulers = diffusers_parts()
    words = words_of(world)
    _, picture = world.demonstration(random.Random(0))
    torch.manual_seed(mix(seed, "networks") % 2**32)
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=size.width,
        intermediate_size=2 * size.width,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=world.longest,
        bos_token_id=None,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
        attention_dropout=0.0,
        initializer_factor=10.0,
    )
    unet = unets(
        sample_size=picture.shape[-1],
        in_channels=picture.shape[0],
        out_channels=picture.shape[0],
        layers_per_block=1,
        block_out_channels=size.channels,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=size.width,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    scheduler = schedulers(beta_schedule="squaredcos_cap_v2", clip_sample=False)
    return DiffusionPolicy(unet, scheduler, CLIPTextModel(config), words)


def base(world: World, seed: int = 0, size: Size = Size(), denoising: Denoising | None = None) -> DiffusionPolicy:
    """A policy that has learnt the world's pictures: built on first use, then read from the cache.

    The same for the same world, seed, size, code and torch.
    """
    from posttrain.policy.pipeline import diffusion

    return diffusion(str(folder(world, seed, size)), denoising, device="cpu")


def folder(world: World, seed: int, size: Size) -> Path:
    import torch

    from posttrain.tiny import cached_folder

    code = inspect.getsource(type(world)) + inspect.getsource(train_base) + inspect.getsource(untrained_policy)
    recipe = hashlib.sha256(repr((code, world, size, seed, torch.__version__)).encode()).hexdigest()

    def write(path: Path) -> None:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        policy = untrained_policy(world, seed, size)
        train_base(policy, world, seed, size)
        torch.set_num_threads(threads)
        path.mkdir()
        policy.save(path)

    return cached_folder(f"{type(world).__name__.lower()}-{seed}-{recipe[:12]}", "model_index.json", write)


def train_base(policy: DiffusionPolicy, world: World, seed: int, size: Size) -> list[float]:
    """Predict the noise in noisy demonstrations, UNet and text encoder alike (DDPM, arXiv:2006.11239, Eq. 14).

    The mean squared error of every step.
    """
    import torch

    draw, generator = random.Random(mix(seed, "demonstrations")), torch.Generator().manual_seed(mix(seed, "noise"))
    networks = torch.nn.ModuleList([policy.unet, policy.encoder.requires_grad_(True)])
    optimizer = torch.optim.AdamW(networks.parameters(), lr=size.rate, fused=True)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, size.rate, total_steps=size.steps + 1)
    levels, losses = policy.scheduler.alphas_cumprod, []
    for _ in range(size.steps):
        shown = [world.demonstration(draw) for _ in range(size.rows)]
        pictures = torch.stack([picture for _, picture in shown])
        noise = torch.randn(pictures.shape, generator=generator)
        step = torch.randint(len(levels), (size.rows,), generator=generator)
        level = levels[step].view(-1, 1, 1, 1)
        told = policy.tokens([prompt if draw.random() >= UNTOLD else "" for prompt, _ in shown])
        noisy = level.sqrt() * pictures + (1 - level).sqrt() * noise
        encoded = policy.encoder(input_ids=told).last_hidden_state
        loss = (policy.unet(noisy, step, encoder_hidden_states=encoded).sample - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
        losses.append(loss.item())
    policy.encoder.requires_grad_(False)
    return losses
