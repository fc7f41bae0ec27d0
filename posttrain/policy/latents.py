"""What a diffusion policy is asked, and the trace of what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from posttrain.core import Message


@dataclass(frozen=True, slots=True, eq=False)
class Latents:
    """The trace of a picture."""

    prompt: str
    path: Tensor  # [N + 1, C, H, W] before every decision, and after the last; the decisions are the last of a walk
    round: int = 0  # how many pictures it was led to by, each begun at the one before it


@dataclass(frozen=True, slots=True, eq=False)
class PictureRequest:
    """An ask, understood. Walks of one `kind` are taken side by side; of one `key`, they are one until they branch."""

    prompt: str
    start: Latents | None  # to be led back to noise; None: fresh noise
    round: int
    temperature: float
    trunk: int  # seed of the noise up to the decisions
    own: int  # seed of theirs
    last: int  # how many decisions

    @property
    def kind(self) -> tuple[float, bool, int]:
        return self.temperature, self.start is None, self.last

    @property
    def key(self) -> tuple[str, int, int]:
        return self.prompt, id(self.start), self.trunk


def branch_part(seed: int, last: int) -> dict[str, Any]:
    """A part of a message's content: replies of one seed differ in their `last` steps alone."""
    return {"type": "branch", "seed": seed, "last": last}


def text_of(message: Message) -> str:
    """The text of a message's content. Raises ValueError when there is none."""
    content = message["content"]
    if isinstance(content, str):
        return content
    texts = [part["text"] for part in content if part.get("type") == "text"] if isinstance(content, list) else []
    if not texts:
        raise ValueError("a diffusion policy is asked in text: a message of the user has none")
    return " ".join(texts)


def branch_of(message: Message) -> Mapping[str, Any] | None:
    """The branching part of a message's content. Raises ValueError for parts that are not of text or branching."""
    parts = message["content"] if isinstance(message["content"], list) else []
    strange = [part.get("type") for part in parts if part.get("type") not in ("text", "branch")]
    if strange:
        raise ValueError(f"a diffusion policy reads parts of type text and branch, not {strange[0]!r}")
    return next((part for part in parts if part["type"] == "branch"), None)
