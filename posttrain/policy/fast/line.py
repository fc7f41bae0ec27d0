"""Training rows on one line without padding, a prompt that several of them share standing there once.

    rows     P C1    P C2    P C3    Q D1             P, Q prompts   C, D what follows them
    line     P  C1 C2 C3  Q D1                        (in another order; see `Line`)

Everything but attention works on tokens one by one and does not notice. Attention is given by spans: a span sees
itself causally, and all of its prefix. Spans of like lengths are attended to together (a `Block`), so that only
attention is ever padded. It reaches the model through the public attention interface of transformers, and so works
for every architecture that uses it; `Line.fits` says whether one does, by comparing the two.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from posttrain.policy.fast.prompt import LONG, MOST, PromptAttention

NAME = "posttrain"  # of our attention, in transformers' registry
PADDING = 2**14  # query-key pairs of padding that cost less than another block


@dataclass(eq=False)
class Span:
    """Tokens that stand together on the line, after a prefix that may be shared."""

    ids: Sequence[int]
    prefix: Span | None = None
    start: int = 0  # on the line

    @property
    def before(self) -> int:
        return len(self.prefix.ids) if self.prefix else 0

    @property
    def pairs(self) -> int:
        return len(self.ids) * (self.before + len(self.ids))


def long(prompt: Span | None) -> bool:
    """Whether the samples of this prompt are attended to without copies of its keys."""
    return prompt is not None and LONG <= len(prompt.ids) <= MOST


@dataclass(eq=False)
class Block:
    """Spans of like lengths, [B], whose tokens are `begin` to `end` of the line.

    keys     [B, P + n] where the keys of each span stand: its prefix, aligned to the right, then itself
    mask     [B or 1, 1, n, P + n] what each query sees; None: causal
    inside   [tokens] of the padded [B * n] those that exist; None: all do
    prompt   the long prefix that all of the spans share; None: they do not, or it is short
    """

    begin: int
    end: int
    queries: Tensor
    keys: Tensor
    mask: Tensor | None
    inside: Tensor | None
    prompt: Span | None


def alike(spans: Sequence[Span]) -> list[list[Span]]:
    """Runs of spans, cut where padding them to one size would cost more than another block does."""
    runs: list[list[Span]] = []
    width = most = pairs = 0
    for span in spans:
        width, most, pairs = max(width, len(span.ids)), max(most, span.before), pairs + span.pairs
        full = not runs or (len(runs[-1]) + 1) * width * (most + width) > 1.3 * pairs + PADDING
        if full or (long(span.prefix) and span.prefix != runs[-1][-1].prefix):
            runs.append([])
            width, most, pairs = len(span.ids), span.before, span.pairs
        runs[-1].append(span)
    return runs


def block(spans: Sequence[Span], window: int | None, device: torch.device) -> Block:
    """The index tensors of spans that follow one another on the line."""
    lengths = torch.tensor([len(span.ids) for span in spans])[:, None]
    befores = torch.tensor([span.before for span in spans])[:, None]
    starts = torch.tensor([span.start for span in spans])[:, None]
    prefixes = torch.tensor([span.prefix.start if span.prefix else 0 for span in spans])[:, None]
    n, most = int(lengths.max()), int(befores.max())
    own, pad = torch.arange(n)[None], torch.arange(most)[None] - (most - befores)  # [1, n], [B, P] negative: no prefix
    queries = starts + own.clamp(max=lengths - 1)  # [B, n]
    keys = torch.cat([prefixes + pad.clamp(min=0), queries], 1)
    at = torch.cat([pad, befores + own], 1)  # [B, P + n] position of each key in its row; negative: padding
    mask = None
    if most or window:
        query_at = (befores + own)[:, :, None]
        seen = (at[:, None] >= 0) & (at[:, None] <= query_at)
        if window:
            seen &= at[:, None] > query_at - window
        if bool((seen == seen[:1]).all()):
            seen = seen[:1]
        mask = seen[:, None].to(device)
    inside = None if bool((lengths == n).all()) else (own < lengths).flatten().nonzero()[:, 0].to(device)
    first, last = spans[0], spans[-1]
    prompt = first.prefix if device.type == "cpu" and long(first.prefix) and not window else None
    return Block(first.start, last.start + len(last.ids), queries.to(device), keys.to(device), mask, inside, prompt)


@dataclass(eq=False)
class Line:
    """Rows of token ids as one line; `place(row, position)` says where a token of a row stands."""

    rows: Sequence[Sequence[int]]
    prompts: Sequence[int]  # [B] tokens of each row that may be shared: its first prompt
    device: torch.device
    spans: list[Span] = field(default_factory=list)
    own: list[Span] = field(default_factory=list)  # [B] the span that each row ends with
    made: dict[int | None, list[Block]] = field(default_factory=dict)  # blocks by attention window

    def __post_init__(self):
        heads = [tuple(ids[:length]) for ids, length in zip(self.rows, self.prompts, strict=True)]
        shared = {head: Span(head) for head, count in Counter(heads).items() if count > 1 and head}
        for ids, head in zip(self.rows, heads, strict=True):
            prefix = shared.get(head)
            self.own.append(Span(ids[len(head) :] if prefix else ids, prefix))
        used = [span for span in (*shared.values(), *self.own) if span.ids]
        order = {id(span): i for i, span in enumerate(shared.values()) if self.device.type == "cpu" and long(span)}
        self.spans = sorted(used, key=lambda span: (span.before, order.get(id(span.prefix), -1), len(span.ids)))
        start = 0
        for span in self.spans:
            span.start, start = start, start + len(span.ids)

    def place(self, row: int, position: int) -> int:
        span = self.own[row]
        if position >= span.before:
            return span.start + position - span.before
        assert span.prefix is not None
        return span.prefix.start + position

    def inputs(self) -> dict[str, Any]:
        """What the model's trunk is called with."""
        ids = [i for span in self.spans for i in span.ids]
        positions = torch.cat([torch.arange(span.before, span.before + len(span.ids)) for span in self.spans])
        return {
            "input_ids": torch.tensor([ids], device=self.device),
            "position_ids": positions[None].to(self.device),
            "attention_mask": torch.zeros(1, 1, 1, 1, device=self.device),  # four dimensions: taken as it is
            "use_cache": False,
            "line": self,
        }

    def blocks(self, window: int | None) -> list[Block]:
        """Spans in order, cut where padding would cost more than a block of its own does."""
        longest = max(span.before + len(span.ids) for span in self.spans)
        window = window if window and window < longest else None
        if window not in self.made:
            self.made[window] = [block(spans, window, self.device) for spans in alike(self.spans)]
        return self.made[window]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None) -> Tensor:
        """[T, H, d], [T, K, d], [T, K, d] -> [T, H, d]. In float32 on the CPU, whose bfloat16 kernels are slow."""
        kind = value.dtype
        if query.device.type == "cpu":
            query, key, value = query.float(), key.float(), value.float()
        else:
            query, key = query.to(kind), key.to(kind)
        repeat = query.shape[1] // key.shape[1]
        grouped = query.device.type == "cpu"  # elsewhere masks and grouped heads together have no fast kernel
        if not grouped:
            key, value = key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)
        parts = []
        for one in self.blocks(window):
            q = (
                query[one.queries]
                if one.inside is not None
                else query[one.begin : one.end].view(*one.queries.shape, *query.shape[1:])
            )
            if one.prompt:
                n, first = q.shape[1], slice(one.prompt.start, one.prompt.start + len(one.prompt.ids))
                k, v = key[one.keys[:, -n:]], value[one.keys[:, -n:]]
                out = PromptAttention.apply(q, k, v, key[first], value[first], (scaling, kind))
            else:
                out = F.scaled_dot_product_attention(
                    q.transpose(1, 2),
                    key[one.keys].transpose(1, 2),
                    value[one.keys].transpose(1, 2),
                    attn_mask=one.mask,
                    is_causal=one.mask is None,
                    scale=scaling,
                    enable_gqa=grouped and repeat > 1,
                ).transpose(1, 2)
            flat = out.flatten(0, 1).to(kind)
            parts.append(flat if one.inside is None else flat[one.inside])
        return torch.cat(parts)


def attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """What transformers calls in every layer: ours when it is given a line, its own otherwise."""
    line = options.pop("line", None)
    if line is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    strange = {name for name in ("softcap", "s_aux", "position_bias") if options.get(name) is not None}
    if strange:
        raise TypeError(f"attention with {strange}")
    with torch.autocast(query.device.type, enabled=False):
        out = line.attend(
            query[0].transpose(0, 1),
            key[0].transpose(0, 1),
            value[0].transpose(0, 1),
            options.get("scaling") or query.shape[-1] ** -0.5,
            options.get("sliding_window"),
        )
    return out[None], None


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def fits(body: Any) -> bool:
    """Give the model our attention, if with it the trunk says of a line what it said of the rows one by one."""
    if body.config._attn_implementation == NAME:
        return True
    if body.config._attn_implementation != "sdpa":
        return False
    device = next(body.parameters()).device
    if device.type == "meta":  # without weights there are no numbers to compare
        body.set_attn_implementation(NAME)
        return True
    size = body.get_output_embeddings().weight.shape[0]
    draw = torch.Generator().manual_seed(0)
    head, rest = ([int(i) for i in torch.randint(size, (n,), generator=draw)] for n in (5, 9))
    rows = [head + rest[:4], head + rest[4:], rest]
    trunk = body.base_model
    with torch.no_grad():
        plain = [
            trunk(input_ids=torch.tensor([ids], device=device), use_cache=False).last_hidden_state[0] for ids in rows
        ]
        body.set_attn_implementation(NAME)
        try:
            line = Line(rows, [5, 5, 0], device)
            hidden = trunk(**line.inputs()).last_hidden_state[0]
            ours = [hidden[[line.place(r, p) for p in range(len(ids))]] for r, ids in enumerate(rows)]
            same = all(torch.allclose(a, b, atol=1e-3, rtol=1e-3) for a, b in zip(ours, plain, strict=True))
        except (TypeError, ValueError, RuntimeError):
            same = False
        if not same:
            body.set_attn_implementation("sdpa")
    return same
