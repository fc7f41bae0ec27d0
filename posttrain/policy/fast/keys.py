"""Keys and values of the rows that are being sampled, in tables of ours: a prompt computed once, rows that come and go.

Rows all write the same column, whenever they began; a row sees the columns since its own start. That keeps writing
one copy, and lets rows join (a new prompt from the queue) and leave (a finished reply) between any two tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from posttrain.policy.fast.dense import Dense
from posttrain.policy.fast.line import Line

PREFILL = 8192  # tokens of prompts computed at once
SHARED_PROMPT = 32  # tokens from which attending to keys that samples share is cheaper than a copy for each
ROOM = 64  # columns by which the table grows at least


class Rows:
    """What `generate` drives: `admit` rows, `step` all of them by one token, `keep` some.

    shared  [2, L, G, K, P, d] keys and values of prompts that their samples share, aligned to the right; P may be 0
    own     [2, L, B, K, W, d] of each row; with its prompt, where that is not shared
    logits  [B, V] float32, of the token that comes next
    """

    refills, slack = True, 0.15  # rows may join; share of rows that must have finished before the others are moved

    def __init__(self, dense: Dense, share: bool):
        self.dense, self.share, device = dense, share, dense.device
        none = torch.zeros(0, dtype=torch.long, device=device)
        self.owner, self.start, self.position = none, none, none  # [B] its prompt, first column, next token's place
        self.lengths = none  # [G] of the shared prompts
        self.column = 0
        self.shared, self.own = self.table(0, 0), self.table(0, 0)
        self.logits = torch.zeros(0, dense.head.out.weight.shape[0], device=device)
        self.turns = torch.zeros(0, device=device)  # [positions, 2, 1, d] cosines and signed sines

    def table(self, rows: int, width: int) -> Tensor:
        dense = self.dense
        kind = torch.float32 if dense.device.type == "cpu" else dense.kind  # the CPU's bfloat16 attention is slower
        return torch.zeros(
            2, len(dense.layers), rows, dense.key_heads, width, dense.size, dtype=kind, device=dense.device
        )

    # ---- rows come and go

    def admit(self, prompts: Sequence[Sequence[int]], owner: Sequence[int], room: int) -> None:
        """Compute some prompts, and add a row for every entry of `owner`, which says of which of them."""
        device, old = self.dense.device, len(self.lengths)
        owners = torch.tensor(owner, device=device)
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        most = int(lengths.max())
        if len(self.turns) < most + room:
            self.turns = torch.stack(self.dense.rotation(most + room), 1)
        keys, logits = self.prefill(prompts, most)
        if self.share:
            self.shared = concatenate_tables(self.shared, keys)
            self.lengths = torch.cat([self.lengths, lengths])
            keys = keys[:, :, owners, :, :0]
        else:
            self.indent(most - self.column)
            keys = keys[:, :, owners]
        self.own = concatenate_tables(self.own[..., : self.column, :], keys)
        start = torch.full_like(owners, self.column) - (0 if self.share else lengths[owners])
        self.owner = torch.cat([self.owner, owners + old])
        self.start = torch.cat([self.start, start])
        self.position = torch.cat([self.position, lengths[owners]])
        self.logits = torch.cat([self.logits, logits[owners]])
        self.arrange()

    def prefill(self, prompts: Sequence[Sequence[int]], width: int) -> tuple[Tensor, Tensor]:
        """[2, L, G, K, width, d] keys and values of prompts, and the logits [G, V] after each."""
        dense, found = self.dense, self.table(len(prompts), width)
        logits = []
        for piece in pieces([len(prompt) for prompt in prompts], PREFILL):
            line = Line([prompts[i] for i in piece], [0] * len(piece), dense.device)
            ends = torch.tensor([span.start + len(span.ids) for span in line.own], device=dense.device)[:, None]
            sizes = torch.tensor([len(span.ids) for span in line.own], device=dense.device)[:, None]
            place = torch.arange(width, device=dense.device)[None] - width  # counted from the end of the prompt
            index = ends + torch.maximum(place, -sizes)
            rows = slice(piece[0], piece[-1] + 1)

            def write(layer: int, key: Tensor, value: Tensor, index: Tensor = index, rows: slice = rows) -> None:
                found[0, layer, rows] = key[index].transpose(1, 2).to(found.dtype)
                found[1, layer, rows] = value[index].transpose(1, 2).to(found.dtype)

            inputs = line.inputs()
            cos, sin = self.turns[inputs["position_ids"][0]].unbind(1)
            hidden = dense.forward(dense.embed_prompt(inputs["input_ids"][0]), cos, sin, dense.causal(line, write))
            logits.append(dense.head.logits(hidden[ends[:, 0] - 1]))
        return found, torch.cat(logits)

    def indent(self, columns: int) -> None:
        """Make room for prompts longer than what the rows so far have."""
        if columns > 0:
            self.own = F.pad(self.own[..., : self.column, :], (0, 0, columns, 0))
            self.column += columns
            self.start = self.start + columns

    def keep(self, index: Tensor) -> None:
        """Only these rows go on, with a step of their own."""
        self.owner, self.position, self.logits = self.owner[index], self.position[index], self.logits[:0]
        start = self.start[index]
        low = int(start.min()) if len(index) else self.column
        self.own = self.own[:, :, index, :, low : self.column]
        self.start, self.column = start - low, self.column - low
        if self.share:
            used, self.owner = self.owner.unique(return_inverse=True)
            if len(used) < len(self.lengths):
                self.lengths = self.lengths[used]
                most = int(self.lengths.max()) if len(used) else 0
                self.shared = self.shared[:, :, used][..., self.shared.shape[4] - most :, :]
        if len(index):
            self.arrange()

    def arrange(self) -> None:
        """What depends on who the rows are, and not on the token: masks, and the grid of rows by prompt."""
        device = self.dense.device
        self.uneven = bool((self.start != self.start[0]).any())
        if not self.share:
            return
        most = self.shared.shape[4]
        missing = torch.arange(most, device=device)[None] < most - self.lengths[:, None]  # [G, P]
        self.hidden = missing[:, None, None] if bool(missing.any()) else None
        counts = Counter(self.owner.tolist())
        across = max(counts.values())
        seat, taken = [], Counter()
        for prompt in self.owner.tolist():
            seat.append(prompt * across + taken[prompt])
            taken[prompt] += 1
        self.across = across
        self.seats = None if seat == list(range(len(self.lengths) * across)) else torch.tensor(seat, device=device)

    # ---- a token

    def step(self, chosen: Tensor) -> None:
        """Every row takes its token [B]; `logits` are then of the next."""
        if self.column == self.own.shape[4]:
            self.own = F.pad(self.own, (0, 0, 0, max(ROOM, self.column)))
        self.column += 1
        self.early = None
        if self.uneven:
            early = torch.arange(self.column, device=chosen.device) < self.start[:, None]  # [B, W]
            self.early = early.repeat_interleave(self.dense.key_heads, 0)[:, None]  # [B K, 1, W]
        self.seen = [part[..., : self.column, :].flatten(1, 2).unbind() for part in self.own]  # [2][L] of [B K, W, d]
        self.now = [part[..., self.column - 1, :].unbind() for part in self.own]  # [2][L] of [B, K, d]
        cos, sin = self.turns[self.position].unbind(1)
        self.logits = self.dense.head.logits(self.dense.forward(self.dense.embed(chosen), cos, sin, self.attend))
        self.position = (self.position + 1).clamp_(max=len(self.turns) - 1)  # of finished rows too

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[B, H, d], [B, K, d] -> [B, H d]"""
        self.now[0][layer].copy_(key)
        self.now[1][layer].copy_(value)
        keys, values = self.seen[0][layer], self.seen[1][layer]
        query = (query * self.dense.scaling).to(keys.dtype).reshape(len(keys), -1, keys.shape[2])  # [B K, r, d]
        scores = product(query, keys.transpose(1, 2))  # [B K, r, W]
        if self.early is not None:
            scores = scores.masked_fill_(self.early, float("-inf"))
        if not self.share:
            return torch.bmm(scores.softmax(-1).to(keys.dtype), values).view(len(key), -1)
        shared = self.shared[0, layer].flatten(0, 1).transpose(1, 2)  # [G K, d, P]
        prompt = product(self.to_grid(query).flatten(0, 1), shared).unflatten(
            0, self.shared.shape[2:4]
        )  # [G, K, S r, P]
        if self.hidden is not None:
            prompt = prompt.masked_fill_(self.hidden, float("-inf"))
        held = prompt.shape[-1]
        weights = torch.cat([self.from_grid(prompt), scores], -1).softmax(-1).to(keys.dtype)
        of_prompt = self.from_grid(torch.matmul(self.to_grid(weights[..., :held]), self.shared[1, layer]))
        return torch.baddbmm(of_prompt, weights[..., held:], values).view(len(key), -1)

    def to_grid(self, rows: Tensor) -> Tensor:
        """[B K, r, x] -> [G, K, S r, x]: the rows of a prompt side by side, so that its keys are read once."""
        rows = rows.view(-1, self.dense.key_heads, *rows.shape[1:])
        if self.seats is not None:
            seats = rows.new_zeros(len(self.lengths) * self.across, *rows.shape[1:])
            seats[self.seats] = rows
            rows = seats
        prompts, (_, heads, repeat, last) = len(self.lengths), rows.shape
        return rows.view(prompts, self.across, heads, repeat, last).transpose(1, 2).reshape(prompts, heads, -1, last)

    def from_grid(self, grid: Tensor) -> Tensor:
        """The way back."""
        prompts, heads, _, last = grid.shape
        found = grid.view(prompts, heads, self.across, -1, last).transpose(1, 2).flatten(0, 1)
        return (found if self.seats is None else found[self.seats]).flatten(0, 1)


def product(rows: Tensor, columns: Tensor) -> Tensor:
    """[B, m, k] @ [B, k, n] in float32, also of bfloat16 factors.

    A score of 100 in bfloat16 is off by up to 0.25, and its weight in the softmax by as much.
    """
    if rows.device.type == "cuda" and rows.dtype != torch.float32:
        return torch.bmm(rows, columns, out_dtype=torch.float32)
    return torch.bmm(rows.float(), columns.float())


def pieces(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Runs of indices whose lengths together stay within `tokens`, or one by one."""
    out: list[list[int]] = []
    held = 0
    for i, length in enumerate(lengths):
        if not out or held + length > tokens:
            out.append([])
            held = 0
        out[-1].append(i)
        held += length
    return out


def concatenate_tables(first: Tensor, second: Tensor) -> Tensor:
    """Two tables [2, L, rows, K, width, d], the narrower one moved to the right."""
    width = max(first.shape[4], second.shape[4])
    both = [F.pad(one, (0, 0, width - one.shape[4], 0)) for one in (first, second)]
    return torch.cat(both, 2)
