"""Decoding in which a gate chooses, token by token and row by row, between the model's own logits and a contrast."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from posttrain.decode.contrast import contrast_scores, jensen_shannon, penalise_repetition
from posttrain.decode.layers import LayerRows, candidates
from posttrain.policy.fast.generate import LOW, ROWS, Reason, draw
from posttrain.policy.text import TextPolicy
from posttrain.seeding import uniforms

LOGITS = 2**25  # held at once: 128 MiB in float32


@dataclass(frozen=True, slots=True)
class Decoding:
    """How tokens are scored and chosen.

    layers        candidates of the contrast: low, high, or layers by number (see `candidates`)
    norm_early    the final norm also before an early layer's logits; transformers had none
    shared        one layer for the whole batch and the released divergence, as transformers had it; else row by row
    relative_top  tokens below this share of the likeliest are out of a contrast
    penalty       of tokens that prompt or reply already hold, for both actions; 1 is none, 1.2 is published for DoLa
    temperature   of the language model; 0 takes the best token
    Raises ValueError for numbers out of range.
    """

    layers: str | tuple[int, ...] = "low"
    norm_early: bool = False
    shared: bool = False
    relative_top: float = 0.1
    penalty: float = 1.0
    temperature: float = 0.0

    def __post_init__(self):
        if not 0 < self.relative_top <= 1:
            raise ValueError(f"relative_top={self.relative_top}: it is a share of the largest probability, in (0, 1]")
        if self.penalty <= 0 or self.temperature < 0:
            raise ValueError(f"penalty={self.penalty}, temperature={self.temperature}: the one is above 0, the other 0")


class Step:
    """What a gate sees before a token. Layers are only read, and a contrast only made, if somebody looks at them.

    rows      [B] which prompts the rows belong to
    position  [B] tokens of the reply so far
    mature    [B, V] logits of the model
    """

    def __init__(self, model: LayerRows, how: Decoding, rows: Tensor, position: Tensor, said: Tensor):
        self.model, self.how, self.rows, self.position, self.said = model, how, rows, position, said
        self.mature = model.logits

    @cached_property
    def early(self) -> Tensor:
        """[B, C, V] logits of the candidate layers."""
        return self.model.early()

    @cached_property
    def divergence(self) -> Tensor:
        """[B, C] Jensen-Shannon divergence of each from the mature distribution, nats."""
        return jensen_shannon(self.mature, self.early)

    @cached_property
    def plain(self) -> Tensor:
        """[B, V] scores of the model itself, after the penalty."""
        return penalise_repetition(self.mature, self.said, self.how.penalty)

    @cached_property
    def contrast(self) -> Tensor:
        """[B, V] scores of the contrast, after the penalty."""
        how = self.how
        scores = contrast_scores(self.mature, self.early, shared=how.shared, relative_top=how.relative_top)
        return penalise_repetition(scores, self.said, how.penalty)


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """Where a gate contrasts, [B] bool, and what it wants to be kept of the step, [B, ...] each."""

    contrast: Tensor
    notes: Mapping[str, Tensor] = field(default_factory=dict)


Gate: TypeAlias = Callable[[Step], Choice]


def never(step: Step) -> Choice:
    """Plain decoding."""
    return Choice(torch.zeros_like(step.rows, dtype=torch.bool))


def always(step: Step) -> Choice:
    """DoLa."""
    return Choice(torch.ones_like(step.rows, dtype=torch.bool))


@dataclass(frozen=True, slots=True, eq=False)
class DecodedReply:
    """One reply."""

    ids: tuple[int, ...]  # [N] the end token included, if the model said it
    contrast: Tensor  # [N] bool, what the gate chose
    notes: Mapping[str, Tensor]  # [N, ...] each, what the gate kept
    stop: Reason


def decode_replies(
    policy: TextPolicy,
    prompts: Sequence[Sequence[int]],
    gate: Gate = never,
    how: Decoding = Decoding(),
    *,
    max_new: int | Sequence[int] = 256,
    seeds: Sequence[int] = (),
    stop: Sequence[str] = (),
    forced: Sequence[Sequence[int]] | None = None,
    rows: int | None = None,
) -> list[DecodedReply]:
    """The reply to each prompt of tokens; with `never`, the policy's own greedy reply.

    seeds   one per prompt (its index when none are given), for a temperature above 0
    forced  replies that are read in place of what is chosen: what would the gate and both actions have done?
    rows    replies decoded side by side; as many as 32 M logits of all layers have room for, if not given
    Raises ValueError for an empty prompt, one that leaves no room for a token, or one that shows a picture.
    """
    limits = [max_new] * len(prompts) if isinstance(max_new, int) else list(max_new)
    if forced is not None:
        limits = [min(limit, len(reply)) for limit, reply in zip(limits, forced, strict=True)]
    for i, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)):
        if any(token < 0 for token in prompt):  # the name of a picture
            raise ValueError(f"prompt {i} shows a picture: with access to layers only text is decoded")
        if not prompt or limit < 1 or len(prompt) + limit > policy.context:
            raise ValueError(
                f"prompt {i} of {len(prompt)} tokens and {limit} of a reply: a prompt has at least one token, a reply "
                f"too, and the model has {policy.context} positions for both"
            )
    layers = candidates(policy.head.config, how.layers)
    rows = rows or max(min(ROWS, LOGITS // (policy.head.out.weight.shape[0] * (len(layers) + 1))), 1)
    out: list[DecodedReply] = []
    for start in range(0, len(prompts), rows):
        part = range(start, min(start + rows, len(prompts)))
        with torch.no_grad(), policy.mode():
            model = LayerRows(policy.head, layers, how.norm_early)
            live = DecodingBatch(
                policy, model, gate, how, part, prompts, limits, [seeds[i] if seeds else i for i in part]
            )
            out += live.replies(tuple(stop), forced)
    return out


class DecodingBatch:
    """Some rows while they are decoded; those that have finished leave the batch."""

    def __init__(
        self,
        policy: TextPolicy,
        model: LayerRows,
        gate: Gate,
        how: Decoding,
        part: range,
        prompts: Sequence[Sequence[int]],
        limits: Sequence[int],
        seeds: Sequence[int],
    ):
        self.policy, self.model, self.gate, self.how, self.part = policy, model, gate, how, part
        device = policy.device
        model.admit([prompts[i] for i in part], range(len(part)), 0)
        self.rows = torch.tensor(part, device=device)
        self.limit = torch.tensor([limits[i] for i in part], device=device)
        self.said = torch.zeros(len(part), model.logits.shape[1], dtype=torch.bool, device=device)
        for k, i in enumerate(part):
            self.said[k, torch.tensor(list(prompts[i]), device=device)] = True
        draws = uniforms(np.array(seeds, dtype=np.uint64), int(self.limit.max()))
        kind = torch.float32 if device.type == "mps" else torch.float64
        self.draws = torch.from_numpy(draws).to(device, kind)
        self.warmth = torch.full((len(part), 1), how.temperature, device=device)

    def replies(self, stop: tuple[str, ...], forced: Sequence[Sequence[int]] | None) -> list[DecodedReply]:
        said: dict[int, list[int]] = {i: [] for i in self.part}
        choices: dict[int, list[tuple[Tensor, dict[str, Tensor]]]] = {i: [] for i in self.part}
        reason: dict[int, Reason] = dict.fromkeys(self.part, "length")
        position = 0
        while len(self.rows):
            numbers = self.rows.tolist()
            step = Step(self.model, self.how, self.rows, torch.full_like(self.rows, position), self.said)
            choice = self.gate(step)
            chosen = self.choose_tokens(step, choice.contrast, position)
            if forced is not None:
                chosen = torch.tensor([forced[i][position] for i in numbers], device=chosen.device)
            position += 1
            kept = {name: value.cpu() for name, value in choice.notes.items()}
            contrast, ends = choice.contrast.cpu(), self.policy.stops.ends[chosen].tolist()
            over = (self.limit <= position).tolist()
            for k, (i, token) in enumerate(zip(numbers, chosen.tolist(), strict=True)):
                said[i].append(token)
                choices[i].append((contrast[k], {name: value[k] for name, value in kept.items()}))
                if forced is None and (ends[k] or (stop and self.policy.stops.contains_stop(said[i], stop))):
                    reason[i], over[k] = "end" if ends[k] else "string", True
            self.advance(chosen, [k for k, done in enumerate(over) if not done])
        return [decoded_reply(said[i], choices[i], reason[i]) for i in self.part]

    def choose_tokens(self, step: Step, contrast: Tensor, position: int) -> Tensor:
        """[B] tokens by the scores of each row's action."""
        scores = step.plain
        if bool(contrast.any()):
            scores = torch.where(contrast[:, None], step.contrast, scores)
        return draw(scores.clamp(min=LOW), self.warmth, self.draws[:, position])[0]

    def advance(self, chosen: Tensor, alive: Sequence[int]) -> None:
        """Read the chosen tokens of the rows that go on."""
        self.said[torch.arange(len(chosen), device=chosen.device), chosen] = True
        index = torch.tensor(alive, dtype=torch.long, device=chosen.device)
        if len(index) < len(chosen):
            self.model.keep(index)
            self.rows, self.limit, self.said = self.rows[index], self.limit[index], self.said[index]
            self.draws, self.warmth = self.draws[index], self.warmth[index]
        if len(index):
            self.model.step(chosen[index])


def decoded_reply(
    said: Sequence[int], choices: Sequence[tuple[Tensor, dict[str, Tensor]]], reason: Reason
) -> DecodedReply:
    contrast = torch.stack([one for one, _ in choices]).clone()
    notes = {name: torch.stack([kept[name] for _, kept in choices]).clone() for name in choices[0][1]}
    return DecodedReply(tuple(said), contrast, notes, reason)
