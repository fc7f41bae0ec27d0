"""Patches of a scene, some of which hold a coloured shape, and eyes that are trained to see them.

A scene is 16 patches of 16 x 16 pixels. Five of them hold a shape each, in one of four colours; the others are ground.
A sender keeps an embedding of a small, noisy thumbnail of every patch, and words for shapes lie in the same space
(trained by contrast, as CLIP is); each scene has a noise of its own. A receiver sees patches as they are, and names
shape and colour.

    "which colour has the ring ?"  ->  green, with the probability that the eye gives it
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from posttrain import tiny
from posttrain.core import Ask, Reply
from posttrain.seeding import mix

SHAPES = ("disc", "square", "triangle", "cross", "ring", "bar")
COLOURS = {"red": (0.9, 0.2, 0.2), "green": (0.2, 0.8, 0.3), "blue": (0.25, 0.35, 0.95), "yellow": (0.9, 0.85, 0.2)}
NAMES = tuple(COLOURS)
SIDE, THUMBNAIL, PATCHES, OBJECTS = 16, 8, 16, 5
GROUND = len(SHAPES)  # the class of a patch without a shape
WIDTH = 64  # of an embedding
NOISE = (0.05, 0.5)  # least and most deviation of a thumbnail's pixels, of 1
STEPS, ROWS, RATE = 500, 128, 3e-3


def masks(kind: Tensor, centre: Tensor, size: Tensor) -> Tensor:
    """[N] classes, [N, 2] centres and [N] sizes in pixels -> [N, 16, 16] where the shape is."""
    axis = torch.arange(SIDE, dtype=torch.float32)
    y, x = axis[None, :, None] - centre[:, :1, None], axis[None, None, :] - centre[:, 1:, None]
    r, s = (x.square() + y.square()).sqrt(), size[:, None, None]
    each = [
        r < s,
        torch.maximum(x.abs(), y.abs()) < 0.85 * s,
        (y.abs() < s) & (x.abs() < (y + s) / 2),
        torch.minimum(x.abs(), y.abs()) < 0.3 * s,
        (r < s) & (r > 0.6 * s),
        (y.abs() < 0.35 * s) & (x.abs() < 1.2 * s),
        torch.zeros_like(r, dtype=torch.bool),
    ]
    each[3] &= torch.maximum(x.abs(), y.abs()) < s
    return torch.stack(each, 1)[torch.arange(len(kind)), kind].float()


def drawing(kind: Tensor, colour: Tensor, draw: torch.Generator) -> Tensor:
    """[N] classes and colours -> [N, 3, 16, 16] of 0 to 1: the shape somewhere, on ground of another texture each."""
    count = len(kind)
    coarse = torch.rand(count, 3, 4, 4, generator=draw) * 0.5 + 0.15
    ground = functional.interpolate(coarse, size=SIDE, mode="bilinear", align_corners=False)
    centre = SIDE / 2 - 0.5 + 3 * (torch.rand(count, 2, generator=draw) - 0.5)
    mask = masks(kind, centre, 5 + 1.5 * torch.rand(count, generator=draw))[:, None]
    ink = torch.tensor(list(COLOURS.values()))[colour][:, :, None, None]
    return (mask * ink + (1 - mask) * ground + 0.05 * torch.randn(ground.shape, generator=draw)).clamp(0, 1)


def thumbnails(patches: Tensor, noise: Tensor, draw: torch.Generator) -> Tensor:
    """[N, 3, 16, 16] and [N] deviations -> [N, 192]: 8 x 8 pixels, noisy."""
    small = functional.adaptive_avg_pool2d(patches, THUMBNAIL).flatten(1)
    return small + noise[:, None] * torch.randn(small.shape, generator=draw)


class Eyes(nn.Module):
    """The sender's encoder of thumbnails, the embeddings of words for shapes, and the receiver's eye."""

    def __init__(self) -> None:
        super().__init__()
        self.thumbnail = nn.Sequential(nn.Linear(3 * THUMBNAIL**2, 128), nn.ReLU(), nn.Linear(128, WIDTH))
        self.words = nn.Embedding(len(SHAPES) + 1, WIDTH)
        self.eye = nn.Sequential(
            *(nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten()),
            *(nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, len(SHAPES) + 1 + len(COLOURS))),
        )

    def embeddings(self, small: Tensor) -> Tensor:
        """[N, 192] thumbnails -> [N, 64] of unit length."""
        return functional.normalize(self.thumbnail(small), dim=-1)

    def queries(self) -> Tensor:
        """[7, 64] of unit length, one for each class."""
        return functional.normalize(self.words.weight, dim=-1)

    def sight(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """[N, 3, 16, 16] -> probabilities of classes [N, 7] and of colours [N, 4]."""
        shape, colour = self.eye(patches).split([len(SHAPES) + 1, len(COLOURS)], 1)
        return shape.softmax(-1), colour.softmax(-1)


@torch.enable_grad()
def train(seed: int) -> Eyes:
    """Encoder and words by contrast, at every noise; the eye by the names of what it sees."""
    torch.manual_seed(mix(seed, "eyes"))
    eyes, draw = Eyes(), torch.Generator().manual_seed(mix(seed, "patches"))
    optimizer = torch.optim.AdamW(eyes.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        kind = torch.randint(len(SHAPES) + 1, (ROWS,), generator=draw)
        colour = torch.randint(len(COLOURS), (ROWS,), generator=draw)
        patches = drawing(kind, colour, draw)
        noise = NOISE[0] + (NOISE[1] - NOISE[0]) * torch.rand(ROWS, generator=draw)
        near = eyes.embeddings(thumbnails(patches, noise, draw)) @ eyes.queries().T / 0.1
        shape, named = eyes.eye(patches).split([len(SHAPES) + 1, len(COLOURS)], 1)
        cost = functional.cross_entropy(near, kind) + functional.cross_entropy(shape, kind)
        cost = cost + functional.cross_entropy(named[kind < GROUND], colour[kind < GROUND])
        optimizer.zero_grad()
        cost.backward()
        optimizer.step()
        schedule.step()
    return eyes


def eyes(seed: int) -> Eyes:
    """The trained eyes of a seed, from the cache once they have been made."""
    code = inspect.getsource(sys.modules[__name__])
    name = f"eyes-{seed}-{hashlib.sha256((code + torch.__version__).encode()).hexdigest()[:12]}"

    def write(folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(train(seed).state_dict(), folder / "eyes.safetensors")

    made = Eyes()
    made.load_state_dict(load_file(tiny.cached_folder(name, "eyes.safetensors", write) / "eyes.safetensors"))
    return made.eval().requires_grad_(False)


@dataclass(frozen=True, slots=True, eq=False)
class PatchScene:
    """What a sender sees."""

    patches: Tensor  # [16, 3, 16, 16]
    embeddings: Tensor  # [16, 64] of thumbnails
    shapes: tuple[str, ...]  # those that are there, each once
    colours: tuple[str, ...]  # of these


@dataclass(frozen=True)
class Patches:
    """Scenes, and the eyes that they are seen by."""

    seed: int = 0

    @cached_property
    def eyes(self) -> Eyes:
        return eyes(self.seed)

    def scenes(self, count: int, split: str) -> list[PatchScene]:
        draw = torch.Generator().manual_seed(mix(self.seed, split))
        kind = torch.full((count, PATCHES), GROUND)
        colour = torch.randint(len(COLOURS), (count, PATCHES), generator=draw)
        places = torch.rand(count, PATCHES, generator=draw).argsort(-1)[:, :OBJECTS]
        kinds = torch.rand(count, len(SHAPES), generator=draw).argsort(-1)[:, :OBJECTS]
        kind.scatter_(1, places, kinds)
        patches = drawing(kind.flatten(), colour.flatten(), draw)
        noise = NOISE[0] + (NOISE[1] - NOISE[0]) * torch.rand(count, generator=draw)
        with torch.no_grad():
            small = thumbnails(patches, noise.repeat_interleave(PATCHES), draw)
            embeddings = self.eyes.embeddings(small).view(count, PATCHES, WIDTH)
        named = colour.gather(1, places)
        return [
            PatchScene(
                patches[i * PATCHES : (i + 1) * PATCHES],
                embeddings[i],
                tuple(SHAPES[k] for k in kinds[i].tolist()),
                tuple(NAMES[c] for c in named[i].tolist()),
            )
            for i in range(count)
        ]

    def query(self, shape: str) -> Tensor:
        """[64]"""
        return self.eyes.queries()[SHAPES.index(shape)]


@dataclass(frozen=True, slots=True)
class Receiver:
    """A player that names the colour of the shape in its question, from the patches that it is shown.

    With w the greatest probability that a patch shows the shape, its colour is that patch's with probability w, and any
    of the four else; a reply carries the logarithm of the probability of what it says.
    """

    eyes: Eyes

    @torch.no_grad()
    def sample(self, asks: Sequence[Ask]) -> list[Reply]:
        shown = [[part["image"] for part in parts(ask) if part["type"] == "image"] for ask in asks]
        every = {id(one): one for some in shown for one in some}  # the same patch is seen once
        place = {key: i for i, key in enumerate(every)}
        shape, colour = self.eyes.sight(torch.stack(list(every.values()))) if every else (None, None)
        replies = []
        for ask, some in zip(asks, shown, strict=True):
            chances = torch.full((len(COLOURS),), 1 / len(COLOURS))
            if some and shape is not None and colour is not None:
                rows = torch.tensor([place[id(one)] for one in some])
                sure, best = shape[rows, SHAPES.index(asked_shape(ask))].max(0)
                chances = sure * colour[rows[best]] + (1 - sure) * chances
            at = int(chances.argmax())
            replies.append(Reply(NAMES[at], chances[at].log()[None], None))
        return replies


def parts(ask: Ask) -> list[dict]:
    """Of the last message; text alone is no list."""
    content = ask.messages[-1]["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def asked_shape(ask: Ask) -> str:
    text = parts(ask)[-1]["text"].split()
    return next(word for word in reversed(text) if word in SHAPES)
