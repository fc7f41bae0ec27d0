"""Encoders of parts that are neither text nor pictures: DNA by a transformer of the ESM family, points by sines.

An encoder reads a part of a message into a `Payload`, and turns payloads into features `[tokens, width]` each.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from posttrain.policy.checkpoint_folder import quiet
from posttrain.policy.parts import content_name
from posttrain.policy.pretrained import checkpoint_path, first_line, load_pretrained, load_tokenizer

AT_ONCE = 2**14  # tokens, padding included, that go through an encoder together


@dataclass(frozen=True, slots=True, eq=False)
class Payload:
    """What a part of a message holds, read.

    kind     the part's type
    content  [tokens] token ids, or [tokens, 3] points
    shown    how a person reads it
    """

    kind: str
    name: int
    content: np.ndarray
    shown: str

    @property
    def tokens(self) -> int:
        return len(self.content)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Payload) and self.name == other.name

    def __hash__(self) -> int:
        return self.name

    def __repr__(self) -> str:
        return self.shown


class Encoder(nn.Module, ABC):
    """What encodes one type of parts.

    kind   their type in a message; a part has its content under the same name
    marks  what the text of a prompt has in a part's place: before it, for it, and after it; the first and the last may
           be empty
    width  of a feature
    """

    kind: ClassVar[str]
    marks: ClassVar[tuple[str, str, str]]
    width: int

    @abstractmethod
    def read(self, part: Mapping[str, Any]) -> Payload:
        """Raises ValueError for a part that cannot be encoded."""

    @abstractmethod
    def forward(self, payloads: Sequence[Payload]) -> list[Tensor]:
        """[tokens, width] of each."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What `load` needs besides the folder."""

    @abstractmethod
    def save(self, folder: Path, tensors: Mapping[str, Tensor]) -> None:
        """Write what `load` reads; `tensors` are the encoder's own, whole."""

    @classmethod
    @abstractmethod
    def load(cls, folder: Path, weights: bool, **settings: Any) -> Encoder: ...


class DnaEncoder(Encoder):
    """A masked language model of the ESM family on DNA, as Nucleotide Transformer's first version is published.

    model     Hub id or folder of the checkpoint and its tokenizer
    cut       bases that are cut off each end of a sequence of more than 2 * cut + 8 (BioReason, as released); 0: none
    longest   most tokens of a sequence; no more than the model has positions
    Raises ValueError for a checkpoint that is of another family.
    """

    kind = "dna"
    marks = ("<|dna_start|>", "<|dna_pad|>", "<|dna_end|>")
    LETTERS: ClassVar[frozenset[str]] = frozenset("ACGTN")

    def __init__(self, model: str, cut: int = 1024, longest: int = 2048, weights: bool = True):
        from transformers import AutoModelForMaskedLM

        super().__init__()
        path = checkpoint_path(model)
        network = load_pretrained(AutoModelForMaskedLM, path, weights)
        if network.config.model_type != "esm":
            kind = network.config.model_type
            raise ValueError(f"`model={model}`: DNA is encoded by models of the ESM family, not {kind}")
        network.requires_grad_(False)  # its heads, which say letters and contacts, are not used
        network.base_model.embeddings.requires_grad_(True)
        network.base_model.encoder.requires_grad_(True)
        self.whole, self.tokenizer = network, load_tokenizer(path)
        absolute = network.config.position_embedding_type == "absolute"
        positions = network.config.max_position_embeddings - network.config.pad_token_id - 1 if absolute else longest
        self.cut, self.longest = cut, min(longest, positions)
        self.width = network.config.hidden_size

    def read(self, part: Mapping[str, Any]) -> Payload:
        sequence = part.get("dna")
        if isinstance(sequence, list | tuple):
            count = len(sequence)
            raise ValueError(f"a part of type 'dna' takes one sequence, and was given {count}: make a part of each")
        if not isinstance(sequence, str) or not sequence.strip():
            raise ValueError("a part of type 'dna' has no sequence under 'dna'")
        letters = "".join(sequence.split()).upper()
        bad = next((i for i, letter in enumerate(letters) if letter not in self.LETTERS), None)
        if bad is not None:
            raise ValueError(f"a sequence of DNA has {letters[bad]!r} at base {bad + 1}: it may have A, C, G, T and N")
        if self.cut and len(letters) > 2 * self.cut + 8:
            letters = letters[self.cut : -self.cut]
        ids = np.array(self.tokenizer(letters)["input_ids"], dtype=np.int64)
        if len(ids) > self.longest:
            raise ValueError(
                f"a sequence of DNA of {len(letters)} bases takes {len(ids)} tokens, and its encoder {self.longest} at "
                "most: cut it around the place that matters"
            )
        return Payload("dna", content_name("dna", ids.tobytes()), ids, f"DNA of {len(letters)} bases")

    def forward(self, payloads: Sequence[Payload]) -> list[Tensor]:
        device = next(self.parameters()).device
        found: list[Tensor] = [torch.zeros(0)] * len(payloads)
        order = sorted(range(len(payloads)), key=lambda i: payloads[i].tokens)
        for piece in batches(order, [one.tokens for one in payloads]):
            width = max(payloads[i].tokens for i in piece)
            ids = torch.full((len(piece), width), self.tokenizer.pad_token_id, dtype=torch.long)
            for row, i in enumerate(piece):
                ids[row, : payloads[i].tokens] = torch.from_numpy(payloads[i].content)
            mask = torch.arange(width)[None] < torch.tensor([payloads[i].tokens for i in piece])[:, None]
            out = self.whole.base_model(input_ids=ids.to(device), attention_mask=mask.to(device)).last_hidden_state
            for row, i in enumerate(piece):
                found[i] = out[row, : payloads[i].tokens]
        return found

    def settings(self) -> dict[str, Any]:
        return {"cut": self.cut, "longest": self.longest}

    def save(self, folder: Path, tensors: Mapping[str, Tensor]) -> None:
        with quiet():
            own = {name.removeprefix("whole."): value for name, value in tensors.items()}
            self.whole.save_pretrained(folder, state_dict=own)
        self.tokenizer.save_pretrained(folder)

    @classmethod
    def load(cls, folder: Path, weights: bool, **settings: Any) -> Encoder:
        return cls(str(folder), weights=weights, **settings)


class PointEncoder(Encoder):
    """Fourier features of points: x, sin(2^k x), cos(2^k x) for k below `frequencies` (cadrille, Sec. 3, as released).

    points  of a cloud, exactly; each takes one token
    """

    kind = "points"
    marks = ("", "<|points_pad|>", "")

    def __init__(self, points: int = 256, frequencies: int = 8):
        super().__init__()
        self.points, self.frequencies = points, frequencies
        self.width = 3 + 6 * frequencies

    def read(self, part: Mapping[str, Any]) -> Payload:
        try:
            points = np.asarray(part.get("points"), dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise ValueError(f"a part of type 'points' holds no points: {first_line(error)}") from error
        if points.shape != (self.points, 3):
            raise ValueError(f"a cloud of points has the shape {list(points.shape)}, not [{self.points}, 3]")
        if not np.isfinite(points).all():
            raise ValueError("a cloud of points has a coordinate that is not finite")
        return Payload("points", content_name("points", points.tobytes()), points, f"{self.points} points")

    def forward(self, payloads: Sequence[Payload]) -> list[Tensor]:
        return [self.features(torch.from_numpy(one.content)) for one in payloads]

    def features(self, points: Tensor) -> Tensor:
        """[n, 3] -> [n, 3 + 6 * frequencies]."""
        angles = (points[..., None] * 2.0 ** torch.arange(self.frequencies)).flatten(-2)
        return torch.cat([points, angles.sin(), angles.cos()], -1)

    def settings(self) -> dict[str, Any]:
        return {"points": self.points, "frequencies": self.frequencies}

    def save(self, folder: Path, tensors: Mapping[str, Tensor]) -> None:
        """It has no parameters: there is nothing to write."""

    @classmethod
    def load(cls, folder: Path, weights: bool, **settings: Any) -> Encoder:
        return cls(**settings)


ENCODERS: Mapping[str, type[Encoder]] = {one.kind: one for one in (DnaEncoder, PointEncoder)}


def batches(order: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
    """Runs of `order`, in which lengths ascend, that take at most `AT_ONCE` tokens when padded, or of one."""
    runs: list[list[int]] = []
    for i in order:
        if not runs or (len(runs[-1]) + 1) * lengths[i] > AT_ONCE:
            runs.append([])
        runs[-1].append(i)
    return runs
