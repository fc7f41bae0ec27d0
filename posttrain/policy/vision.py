"""A vision-language model of Qwen's pattern as a policy: pictures in its prompts, every sampled token one decision.

Pictures are parts of a message's content, as in Hugging Face's chats (see `parts.py`):

    user([{"type": "image", "image": "triangle.png"}, {"type": "text", "text": "How large is the angle?"}])

What the vision tower makes of a picture is computed once per call and given to every row that shows it.
"""

from __future__ import annotations

import inspect
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from posttrain.chat import trace
from posttrain.core import Message, Row
from posttrain.policy.fast.generate import SampleRequest, TransformersRows
from posttrain.policy.fast.line import Line
from posttrain.policy.parts import Kind, PartsPolicy, part_names, parts_of
from posttrain.policy.pixels import Picture, Preprocessing
from posttrain.policy.text import Sampling
from posttrain.ranks import is_primary

PATCHES = 2**15  # that go through the vision tower together
NEVER = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
Features = Mapping[int, Sequence[Tensor]]  # by a picture's name: [tokens, D], and the same of every DeepStack layer


@dataclass(frozen=True, slots=True)
class PictureFeatures:
    """What transformers takes in the place of pixels: features of every picture, in the order of their placeholders."""

    pooler_output: list[Tensor]
    deepstack_features: list[list[Tensor]]


class VisionPolicy(PartsPolicy):
    """Made by `posttrain.vision(...)`; by hand from a transformers model, its tokenizer and its `Preprocessing`.

    Raises ValueError for a model that is not of Qwen's pattern.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        preprocessing: Preprocessing,
        sampling: Sampling | None = None,
        **options: Any,
    ):
        check_pattern(model.get_base_model() if hasattr(model, "get_base_model") else model)
        self.preprocessing = preprocessing
        super().__init__(model, tokenizer, sampling or Sampling(), **options)

    @property
    def kinds(self) -> Mapping[str, Kind]:
        return {**super().kinds, "image": Kind(self.read_picture, self.placeholder)}

    @property
    def never(self) -> list[int]:
        found = [getattr(self.model.config, name, None) for name in NEVER]
        return sorted({*super().never, *(i for i in found if i is not None)})

    @property
    def placeholder(self) -> int:
        return int(self.model.config.image_token_id)

    def read_picture(self, part: Mapping[str, Any]) -> Picture:
        image = part.get("image") if part.get("image") is not None else part.get("path")
        if image is None:
            raise ValueError("a picture is to stand in a message, and its part has none under 'image' (or 'path')")
        return self.preprocessing.picture(image)

    def plain_rows(
        self, wanted: Sequence[SampleRequest], embed: Callable[[Tensor], Tensor] | None, head: Any
    ) -> TransformersRows:
        return PictureRows(self, wanted, head, embed)

    def beside(self) -> Iterable[nn.Parameter]:
        return [*super().beside(), *self.head.trunk.visual.parameters()]

    # ---- what the model is called with

    def model_inputs(self, inputs: dict[str, Any], rows: Sequence[Row]) -> dict[str, Any]:
        shown = {one.name: one for row in rows for turn in row.turns for one in pictures(trace(turn.reply).asked)}
        line: Line | None = inputs.get("line")
        if line is not None:
            at = line_positions(line, shown)[:, None]
        else:
            at = torch.stack([positions(ids, shown) for ids in inputs["input_ids"].tolist()], 1)
        there = set(inputs["input_ids"].flatten().tolist())
        features = self.features([one for name, one in shown.items() if name in there])
        return {
            **inputs,
            "position_ids": at.to(self.device),
            **self.inputs_with_features(inputs["input_ids"], features),
        }

    def features(self, shown: Sequence[Picture]) -> dict[int, list[Tensor]]:
        """What the vision tower makes of some distinct pictures, by their names."""
        found: dict[int, list[Tensor]] = {}
        for piece in by_patches(shown, self.preprocessing.merge**2):
            pixels, grid = self.preprocessing.patches(piece)
            out = self.head.trunk.get_image_features(pixels.to(self.device), grid.to(self.device), return_dict=True)
            layers = [out.pooler_output, *(getattr(out, "deepstack_features", None) or ())]
            found |= {one.name: [layer[i] for layer in layers] for i, one in enumerate(piece)}
        return found

    def inputs_with_features(self, ids: Tensor, features: Features) -> dict[str, Any]:
        """Tokens [B, T] with names in them, as tokens with placeholders, and the features that belong there."""
        flat, order, at = ids.flatten().tolist(), list[Sequence[Tensor]](), 0
        while at < len(flat):
            if flat[at] in features:
                order.append(features[flat[at]])
                at += len(order[-1][0])
            else:
                at += 1
        if not order:
            return {"input_ids": ids}
        standing = torch.isin(ids, torch.tensor(list(features), device=ids.device))
        plain = {"input_ids": ids.masked_fill(standing, self.placeholder)}
        pooled, *deep = zip(*order, strict=True)
        return {
            **plain,
            "mm_encoder_outputs": {"image": PictureFeatures(list(pooled), [list(layer) for layer in deep])},
        }

    # ---- the rest

    def with_model(self, model: Any) -> VisionPolicy:
        options = {"bf16": self.bf16, "plain": self.plain}
        return type(self)(model, self.tokenizer, self.preprocessing, self.sampling, **options)

    def save(self, path: Path) -> None:
        super().save(path)
        if is_primary():
            settings = json.dumps(self.preprocessing.settings(), indent=2)
            (path / "preprocessor_config.json").write_text(settings + "\n")


class PictureRows(TransformersRows):
    """Sampling after prompts with pictures: each is encoded once, and forgotten when no prompt waits for it."""

    def __init__(self, policy: VisionPolicy, wanted: Sequence[SampleRequest], head: Any, embed: Any = None):
        super().__init__(head, embed)
        self.policy = policy
        self.shown = {one.name: one for w in wanted for one in w.parts if isinstance(one, Picture)}
        prompts = {w.prompt: {name for name in w.prompt if name in self.shown} for w in wanted}
        self.waiting = Counter(name for names in prompts.values() for name in names)
        self.features: dict[int, list[Tensor]] = {}

    def prompt_inputs(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, dict[str, Any]]:
        rows = [row[len(row) - count :] for row, count in zip(ids.tolist(), mask.sum(1).tolist(), strict=True)]
        needed = {name: None for row in rows for name in row if name in self.shown}
        self.features |= self.policy.features([self.shown[name] for name in needed if name not in self.features])
        at = torch.zeros(3, *ids.shape, dtype=torch.long)
        for i, row in enumerate(rows):
            at[:, i, ids.shape[1] - len(row) :] = positions(row, self.shown)
        inputs = self.policy.inputs_with_features(ids, self.features)
        self.waiting.subtract(name for row in rows for name in {name for name in row if name in self.shown})
        self.features = {name: found for name, found in self.features.items() if self.waiting[name] > 0}
        return inputs.pop("input_ids"), at.to(ids.device), inputs


def pictures(messages: Iterable[Message]) -> list[Picture]:
    """The pictures of messages that were read, in order."""
    return [part for _, part in parts_of(messages) if isinstance(part, Picture)]


def by_patches(shown: Sequence[Picture], patches_of_a_token: int) -> list[list[Picture]]:
    """Runs of pictures that have at most `PATCHES` patches together, or of one."""
    runs: list[list[Picture]] = []
    room = 0
    for one in shown:
        count = one.tokens * patches_of_a_token
        if not runs or count > room:
            runs.append([])
            room = PATCHES
        runs[-1].append(one)
        room -= count
    return runs


def positions(ids: Sequence[int], shown: Mapping[int, Picture], start: int = 0) -> Tensor:
    """[3, T] positions in time, height and width (M-RoPE, Qwen2-VL, arXiv:2409.12191, Sec. 2.1).

    Text, and parts that are no pictures, count on in all three; a picture's token in row r and column c is at
    (s, s + r, s + c), and after it text goes on from s + the longer of its sides.
    """
    parts, at = [torch.zeros(3, 0, dtype=torch.long)], 0
    while at < len(ids):
        if ids[at] not in shown:
            end = next((k for k in range(at, len(ids)) if ids[k] in shown), len(ids))
            parts.append(torch.arange(start, start + end - at).expand(3, -1))
            start, at = start + end - at, end
        else:
            one = shown[ids[at]]
            grid = torch.meshgrid(torch.arange(one.rows), torch.arange(one.columns), indexing="ij")
            parts.append(start + torch.stack([torch.zeros_like(grid[0]), *grid]).flatten(1))
            start, at = start + max(one.rows, one.columns), at + one.tokens
    return torch.cat(parts, 1)


def line_positions(line: Line, shown: Mapping[int, Picture]) -> Tensor:
    """[3, T] of a line: every span goes on from its prefix."""
    ends: dict[int, int] = {}
    parts = []
    for span in line.spans:
        parts.append(positions(span.ids, shown, ends[id(span.prefix)] if span.prefix else 0))
        ends[id(span)] = int(parts[-1].max()) + 1
    return torch.cat(parts, 1)


def check_pattern(body: Any) -> None:
    """Raises ValueError when the model does not take pictures as Qwen's vision-language models do."""
    trunk, config = body.base_model, body.config
    lacking = [name for name in ("get_image_features", "get_rope_index") if not hasattr(trunk, name)]
    if lacking or not hasattr(config, "image_token_id"):
        raise ValueError(f"{type(body).__name__} does not take pictures as Qwen's vision-language models do")
    kinds = set(getattr(config.get_text_config(), "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds:
        raise ValueError(
            f"{type(body).__name__} has layers of {', '.join(sorted(kinds))}, from which nothing is sampled here"
        )
    if "mm_encoder_outputs" not in inspect.signature(trunk.forward).parameters:
        raise ValueError(f"{type(body).__name__}: pictures need transformers 5.23 or later")
    merge = config.vision_config.spatial_merge_size
    square, text = Picture.__new__(Picture), 1
    square.name, square.rows, square.columns = -1, 2, 3
    ids = [text, *part_names(square), text, text]
    theirs, _ = trunk.get_rope_index(
        torch.tensor([[config.image_token_id if i < 0 else i for i in ids]]),
        image_grid_thw=torch.tensor([[1, square.rows * merge, square.columns * merge]]),
        mm_token_type_ids=torch.tensor([[int(i < 0) for i in ids]]),
    )
    if not torch.equal(theirs[:, 0], positions(ids, {-1: square})):
        raise ValueError(f"{type(body).__name__} gives pictures positions in a way that posttrain does not know")
