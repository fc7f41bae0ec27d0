"""Sampling from a causal language model, with the log-probability of every token as it was drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from posttrain.seeding import uniforms


@dataclass(frozen=True, slots=True)
class Wanted:
    """One reply to be sampled."""

    prompt: tuple[int, ...]
    max_new: int
    temperature: float  # 0: the most likely token
    seed: int
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Sampled:
    ids: tuple[int, ...]  # [N]
    logp: Tensor  # [N] float32, CPU
    entropy: Tensor  # [N] nats
    stop: Literal["end", "string", "length"]


class Live:
    """The rows still being sampled: the cache, what was drawn, and who they are."""

    def __init__(self, head: Any, wanted: Sequence[Wanted], device: torch.device):
        unique = list(dict.fromkeys(w.prompt for w in wanted))
        index = {prompt: i for i, prompt in enumerate(unique)}
        width = max(map(len, unique))
        ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in unique], device=device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in unique], device=device)
        self.cache = DynamicCache(config=head.config)
        self.head = head
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        logits = self.forward(ids, mask, positions)
        owner = torch.tensor([index[w.prompt] for w in wanted], device=device)
        self.rows = torch.arange(len(wanted), device=device)
        self.logits = logits[owner]  # [B, V] one prefill per prompt, shared by its samples
        if len(unique) < len(wanted):
            self.cache.batch_select_indices(owner)
        self.mask = mask[owner]
        self.position = positions[owner, -1]

    def step(self, chosen: Tensor) -> None:
        self.mask = torch.cat([self.mask, torch.ones_like(chosen)[:, None]], 1)
        self.position = self.position + 1
        self.logits = self.forward(chosen[:, None], self.mask, self.position[:, None])

    def forward(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        """[B, V] float32 logits after the last of `ids`."""
        out = self.head.trunk(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=self.cache, use_cache=True
        )
        return self.head.logits(out.last_hidden_state[:, -1])

    def keep(self, index: Tensor) -> None:
        self.cache.batch_select_indices(index)
        self.rows, self.logits = self.rows[index], self.logits[index]
        self.mask, self.position = self.mask[index], self.position[index]


@torch.no_grad()
def generate(
    head: Any, wanted: Sequence[Wanted], ends: set[int], decode: Callable[[Sequence[int]], str]
) -> list[Sampled]:
    """One reply for each `wanted`, in order. What a row draws depends on its own seed, not on the other rows.

    `head` is the policy's `Head`: the same trunk and the same float32 logits score the reply again in training.
    """
    device = head.out.weight.device
    live = Live(head, wanted, device)
    longest = max(w.max_new for w in wanted)
    draws = torch.from_numpy(uniforms(np.array([w.seed for w in wanted], dtype=np.uint64), longest))
    draws = draws.to(device, torch.float32 if device.type == "mps" else torch.float64)
    temperature = torch.tensor([w.temperature for w in wanted], device=device)[:, None]
    limit = torch.tensor([w.max_new for w in wanted], device=device)
    end_ids = torch.tensor(sorted(ends), device=device)
    tokens = torch.zeros(len(wanted), longest, dtype=torch.long, device=device)
    logps, entropies = (
        torch.zeros(len(wanted), longest, device=device),
        torch.zeros(len(wanted), longest, device=device),
    )
    length = torch.zeros(len(wanted), dtype=torch.long, device=device)
    reason = torch.zeros(len(wanted), dtype=torch.long, device=device)  # 0 running or cut off, 1 end token, 2 string
    stops = [i for i, w in enumerate(wanted) if w.stop]

    for t in range(longest):
        rows = live.rows
        chosen, logp, entropy = draw(live.logits, temperature[rows], draws[rows, t])
        tokens[rows, t], logps[rows, t], entropies[rows, t] = chosen, logp, entropy
        length[rows] = t + 1
        reason[rows] = torch.isin(chosen, end_ids).long()
        if stops:
            mark_stop_strings(wanted, rows.tolist(), tokens, t, reason, decode)
        going = (reason[rows] == 0) & (limit[rows] > t + 1)
        alive = going.nonzero()[:, 0]
        if not len(alive):
            break
        if len(alive) < len(rows):
            live.keep(alive)
        live.step(chosen[alive])
    return collected(tokens.cpu(), logps.cpu(), entropies.cpu(), length.tolist(), reason.tolist())


def draw(logits: Tensor, temperature: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[B, V] -> token, log-probability and entropy, each [B], in float32, by inverting the cumulative distribution.

    At temperature 0 the most likely token, with the log-probability it has at temperature 1.
    """
    greedy = temperature[:, 0] == 0
    logp = (logits / temperature.masked_fill(temperature == 0, 1.0)).log_softmax(-1)
    p = logp.exp()
    entropy = -(p * logp.clamp(min=-1e4)).sum(-1)
    cumulative = p.to(uniform.dtype).cumsum(-1)
    threshold = uniform[:, None] * cumulative[:, -1:]
    chosen = torch.searchsorted(cumulative, threshold, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)
    chosen = torch.where(greedy, logp.argmax(-1), chosen)
    return chosen, logp.gather(-1, chosen[:, None])[:, 0], entropy


def mark_stop_strings(
    wanted: Sequence[Wanted],
    rows: Sequence[int],
    tokens: Tensor,
    t: int,
    reason: Tensor,
    decode: Callable[[Sequence[int]], str],
) -> None:
    """Reason 2 for rows whose text now ends with, or has just completed, one of their stop strings."""
    for i in rows:
        if wanted[i].stop and reason[i] == 0:
            longest = max(map(len, wanted[i].stop))
            tail = decode(tokens[i, max(0, t - longest) : t + 1].tolist())
            if any(stop in tail for stop in wanted[i].stop):
                reason[i] = 2


def collected(
    tokens: Tensor, logps: Tensor, entropies: Tensor, lengths: list[int], reasons: list[int]
) -> list[Sampled]:
    names: tuple[Literal["length", "end", "string"], ...] = ("length", "end", "string")
    return [
        Sampled(tuple(tokens[i, :n].tolist()), logps[i, :n].clone(), entropies[i, :n].clone(), names[reasons[i]])
        for i, n in enumerate(lengths)
    ]
