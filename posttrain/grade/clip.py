"""How well a picture fits its prompt, by CLIP."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from posttrain.core import Group, Invalid, Reward, Score
from posttrain.policy.checkpoint_folder import quiet
from posttrain.policy.latents import text_of
from posttrain.policy.pretrained import choose_device, first_line


def clip_similarity(model: str, device: str | None = None) -> Reward:
    """The cosine of the embeddings of the last picture and of its task's prompt, by a CLIP model of transformers.

    model   a Hub id or a folder; the release scores by laion/CLIP-ViT-H-14-laion2B-s32B-b79K
    Prompts are cut at what CLIP reads. Raises ValueError where the model is not there.
    """
    from transformers import CLIPModel, CLIPProcessor

    processor = part(CLIPProcessor, model, "processor")
    scorer = part(CLIPModel, model, "model", dtype=torch.float32).eval().requires_grad_(False).to(choose_device(device))

    @torch.no_grad()
    def cosines(group: Group, pictures: list[Tensor]) -> Tensor:
        """[G] cosines"""
        texts = [text_of(rollout.task.prompt[-1]) for rollout in group]
        shown = [pixels(picture) for picture in pictures]
        inputs = processor(text=texts, images=shown, return_tensors="pt", padding=True, truncation=True)
        found = scorer(**inputs.to(scorer.device))
        return (found.image_embeds * found.text_embeds).sum(-1).float().cpu()

    def reward(group: Group) -> list[Score | Invalid]:
        drawn = [rollout for rollout in group if rollout.turns]
        found = iter(cosines(drawn, [rollout.turns[-1].reply.content for rollout in drawn]).tolist() if drawn else [])
        return [Score(next(found)) if rollout.turns else Invalid("nothing was drawn") for rollout in group]

    return reward


def part(kind: Any, model: str, name: str, **options: Any) -> Any:
    try:
        with quiet():
            return kind.from_pretrained(model, **options)
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f"`reward` clip={model}: it has no loadable {name}: {first_line(error)}") from error


def pixels(picture: Tensor) -> Any:
    """[C, H, W] of values in [-1, 1] -> [H, W, 3] bytes; grey becomes a colour.

    Raises ValueError for what is neither grey nor a colour, such as latents.
    """
    if picture.shape[0] not in (1, 3):
        raise ValueError(f"CLIP is shown pictures of 1 or 3 channels, not of {picture.shape[0]}")
    coloured = picture.expand(3, -1, -1) if picture.shape[0] == 1 else picture
    return (coloured.clamp(-1, 1) * 127.5 + 127.5).round().byte().permute(1, 2, 0).numpy()
