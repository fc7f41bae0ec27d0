"""Sampling from a causal language model, with the log-probability of every token as it was drawn.

Rows are admitted from a queue, prompt by prompt, as long as there is room; all of them take one token at a time, and
those that have finished are dropped, and handed out, when enough of them have to make it worth the copying.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache

from posttrain.policy.fast.dense import Dense
from posttrain.policy.fast.keys import SHARED_PROMPT, Rows
from posttrain.policy.fast.stops import Stops
from posttrain.seeding import uniforms

ROWS = 256  # most replies sampled side by side
BLOCK = 512  # tokens of the vocabulary whose probabilities are summed first
LOW = -1e30  # logits of tokens that a model rules out
Reason = Literal["length", "end", "string"]
REASONS: tuple[Reason, ...] = ("length", "end", "string")


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """One reply to be sampled."""

    prompt: tuple[int, ...]
    max_new: int
    temperature: float  # 0: the most likely token
    seed: int
    stop: tuple[str, ...] = ()
    watch: Callable[[int], object] | None = None  # told every token as it is drawn
    gone: Callable[[], bool] | None = None  # whether nobody waits for the reply any more: it ends
    parts: tuple[Any, ...] = ()  # that negative tokens of the prompt stand for: pictures and the like


@dataclass(frozen=True, slots=True)
class Sample:
    ids: tuple[int, ...]  # [N]
    logp: Tensor  # [N] float32, CPU
    entropy: Tensor | None  # [N] nats; None from a server that does not say it
    stop: Reason


def generate(
    head: Any,
    wanted: Sequence[SampleRequest],
    stops: Stops,
    dense: Callable[[], Dense] | None = None,
    mode: Callable[[], AbstractContextManager[Any]] = nullcontext,
    rows: int = ROWS,
    plain: Callable[[Any], TransformersRows] | None = None,
) -> Iterator[tuple[int, Sample]]:
    """The replies to `wanted` with their indices, as they finish. What a row draws depends on its own seed alone.

    `head` is the policy's `Head`: the same float32 logits score the reply again in training. `dense` makes the fast
    pass, for the models that it knows; others go through transformers in `mode`, `rows` of them after another, by
    `TransformersRows` or what `plain` makes in its place.
    """
    queue = by_prompt(wanted, rows)
    count = len({w.prompt for w in wanted})
    share = 2 * count <= len(wanted) and sum(len(w.prompt) for w in wanted) >= SHARED_PROMPT * len(wanted)
    with torch.inference_mode(), mode():
        model = Rows(dense(), share) if dense else (plain or TransformersRows)(head)
    mode = nullcontext if dense else mode  # the fast pass has its own weights, in the type that they are used in
    live = SamplingBatch(model, wanted, stops)
    while queue or live.rows:
        with torch.inference_mode(), mode():
            if live.model.refills or not live.rows:
                live.admit(queue, rows)
            live.begin()
            live.run()
            done = live.collect()
        for i, ids, logp, entropy, reason in done:
            yield i, Sample(ids, logp.clone(), entropy.clone(), reason)


def by_prompt(wanted: Sequence[SampleRequest], most: int) -> deque[list[int]]:
    """Indices of replies to the same prompt, at most `most` together."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, one in enumerate(wanted):
        groups.setdefault(one.prompt, []).append(i)
    return deque(group[at : at + most] for group in groups.values() for at in range(0, len(group), most))


class SamplingBatch:
    """The rows being sampled: who they are, and what they drew."""

    def __init__(self, model: Rows | TransformersRows, wanted: Sequence[SampleRequest], stops: Stops):
        self.model, self.wanted, self.stops, self.device = model, wanted, stops, stops.device
        self.rows: list[int] = []  # [B] indices into `wanted`
        self.age = torch.zeros(0, dtype=torch.long, device=self.device)  # [B] tokens drawn
        kind = torch.float32 if self.device.type == "mps" else torch.float64
        self.draws = torch.zeros(0, 0, dtype=kind, device=self.device)  # [B, most tokens]
        self.said: dict[int, list[tuple[Tensor, Tensor, Tensor]]] = {}  # tokens, logp, entropy of each row, in pieces
        self.history: list[tuple[Tensor, Tensor, Tensor]] = []  # the same by step, since rows last came or went
        strings = [string for w in wanted for string in w.stop]
        self.completing = stops.may_complete(strings) if strings else None

    def admit(self, queue: deque[list[int]], most: int) -> None:
        """Take replies from the queue, prompt by prompt, while they fit among the `most` rows."""
        batch: list[list[int]] = []
        while queue and len(self.rows) + sum(map(len, batch)) + len(queue[0]) <= most:
            batch.append(queue.popleft())
        if batch:
            new = [i for group in batch for i in group]
            longest = max(self.wanted[i].max_new for i in new)
            owner = [p for p, group in enumerate(batch) for _ in group]
            self.model.admit([self.wanted[group[0]].prompt for group in batch], owner, longest)
            seeds = np.array([self.wanted[i].seed for i in new], dtype=np.uint64)
            draws = torch.from_numpy(uniforms(seeds, longest)).to(self.device, self.draws.dtype)
            width = max(longest + 1, self.draws.shape[1])  # one more: rows that have finished look it up too
            self.draws = torch.cat([pad(one, (0, width - one.shape[1])) for one in (self.draws, draws)])
            self.age = torch.cat([self.age, torch.zeros(len(new), dtype=torch.long, device=self.device)])
            self.rows += new
            self.said |= {i: [] for i in new}

    def begin(self) -> None:
        """What is looked up by row, for the rows as they are now."""
        wanted = [self.wanted[i] for i in self.rows]
        warmth = torch.tensor([w.temperature for w in wanted], device=self.device)[:, None]
        self.warmth = None if bool((warmth == 1).all()) else warmth
        self.limit = torch.tensor([w.max_new for w in wanted], device=self.device)
        self.alive = torch.ones(len(wanted), dtype=torch.bool, device=self.device)
        self.length, self.reason = torch.zeros_like(self.limit), torch.zeros_like(self.limit)
        self.finished = 0
        self.watched = [k for k, w in enumerate(wanted) if w.watch]
        self.leaving = [(k, w.gone) for k, w in enumerate(wanted) if w.gone]
        self.shortest = int((self.limit - self.age).min())  # steps until somebody reaches a limit

    def run(self) -> None:
        """Draw tokens until enough rows have finished, the last token of all of them included."""
        while True:
            drawn = draw(self.model.logits, self.warmth, self.draws.gather(1, self.age[:, None])[:, 0])
            self.history.append(drawn)
            self.tell(drawn[0])
            self.age = self.age + self.alive
            self.shortest -= 1
            ends = self.stops.ends[drawn[0]]
            left = [k for k, gone in self.leaving if gone()]
            if left:
                self.limit[left] = self.age[left].clamp(min=1)  # what they have is all that they get
            if self.shortest <= 0 or left or self.completing is not None or bool(ends.any()):
                self.mark(drawn[0], ends)
                if self.finished > self.model.slack * len(self.rows):
                    break
            self.model.step(drawn[0])

    def tell(self, chosen: Tensor) -> None:
        """The tokens [B] that have just been drawn, to those who watch their reply grow."""
        for k in self.watched:
            watch = self.wanted[self.rows[k]].watch
            if watch and bool(self.alive[k]):
                watch(int(chosen[k]))

    def mark(self, chosen: Tensor, ends: Tensor) -> None:
        """Note who has just finished, and why."""
        reason = ends.long()
        if self.completing is not None:
            for k in (self.alive & ~ends & self.completing[chosen]).nonzero()[:, 0].tolist():
                strings = self.wanted[self.rows[k]].stop
                if strings and self.stops.contains_stop(self.tail(k, self.stops.reach(strings)), strings):
                    reason[k] = 2
        over = self.alive & ((reason > 0) | (self.age >= self.limit))
        self.length, self.reason = torch.where(over, self.age, self.length), torch.where(over, reason, self.reason)
        self.alive = self.alive & ~over
        self.finished = len(self.rows) - int(self.alive.sum())

    def tail(self, k: int, count: int) -> list[int]:
        """The last tokens of a row."""
        new = torch.stack([tokens[k] for tokens, _, _ in self.history[-count:]]).tolist()
        old = [i for tokens, _, _ in self.said[self.rows[k]] for i in tokens.tolist()]
        return [*old, *new][-count:]

    def collect(self) -> list[tuple[int, tuple[int, ...], Tensor, Tensor, Reason]]:
        """Hand out the rows that have finished, and keep the others, who then take one more step."""
        pieces = [torch.stack(part, 1).cpu() for part in zip(*self.history, strict=True)]  # [B, steps] each
        for k, i in enumerate(self.rows):
            self.said[i].append((pieces[0][k], pieces[1][k], pieces[2][k]))
        done = []
        lengths, reasons = self.length.tolist(), self.reason.tolist()
        for k, i in enumerate(self.rows):
            if length := lengths[k]:
                tokens, logp, entropy = (torch.cat(part)[:length] for part in zip(*self.said.pop(i), strict=True))
                done.append((i, tuple(tokens.tolist()), logp, entropy, REASONS[reasons[k]]))
        chosen = self.history[-1][0]
        self.history = []
        index = self.alive.nonzero()[:, 0]
        self.rows = [self.rows[k] for k in index.tolist()]
        self.age, self.draws = self.age[index], self.draws[index]
        self.model.keep(index)
        if self.rows:
            self.model.step(chosen[index])
        return done


class TransformersRows:
    """Any causal model through transformers' own pass and cache. Prompts are computed once each, then copied."""

    refills, slack = False, 0.0

    def __init__(self, head: Any, embed: Callable[[Tensor], Tensor] | None = None):
        self.head, self.embed = head, embed  # `embed`: prompts [B, T] to what the model reads, if not the tokens
        self.device = head.out.weight.device
        taken = inspect.signature(head.trunk.forward).parameters
        self.cache_name = "cache" if "cache" in taken else "past_key_values"  # as transformers called it before 5.23

    def admit(self, prompts: Sequence[Sequence[int]], owner: Sequence[int], room: int) -> None:
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=self.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self.device)
        self.cache = DynamicCache(config=self.head.config)
        ids, positions, more = self.prompt_inputs(ids, mask)
        if self.embed:
            more["inputs_embeds"] = self.embed(ids)
        logits = self.forward(ids, mask, positions, **more)
        index = torch.tensor(owner, device=self.device)
        if len(prompts) < len(owner):
            self.cache.batch_select_indices(index)
        self.logits, self.mask = logits[index], mask[index]
        last = positions[..., index, -1]
        self.position = last.view(-1, len(index)).amax(0).expand_as(last)  # a picture's axes end at unlike positions

    def prompt_inputs(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """What the model reads of prompts: tokens [B, T], their positions [..., B, T], and what it is given beside."""
        return ids, (mask.cumsum(-1) - 1).clamp(min=0), {}

    def step(self, chosen: Tensor) -> None:
        self.mask = torch.cat([self.mask, torch.ones_like(chosen)[:, None]], 1)
        self.position = self.position + 1
        self.logits = self.forward(chosen[:, None], self.mask, self.position[..., None])

    def forward(self, ids: Tensor, mask: Tensor, positions: Tensor, **more: Any) -> Tensor:
        """[B, V] float32 logits after the last of `ids`."""
        return self.head.logits(self.run_trunk(ids, mask, positions, **more).last_hidden_state[:, -1])

    def run_trunk(self, ids: Tensor, mask: Tensor, positions: Tensor, **more: Any) -> Any:
        """What the trunk makes of `ids`, which the cache then holds."""
        read = {} if "inputs_embeds" in more else {"input_ids": ids}
        return self.head.trunk(
            **read,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            **{self.cache_name: self.cache},
            **more,
        )

    def keep(self, index: Tensor) -> None:
        self.cache.batch_select_indices(index)
        self.mask, self.position = self.mask[index], self.position[..., index]


def draw(logits: Tensor, temperature: Tensor | None, uniform: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[B, V] -> token, log-probability and entropy, each [B], in float32, by inverting the cumulative distribution.

    The logits are used up: their memory is the largest of a step.
    `temperature` [B, 1], None: 1 for all. At 0 the most likely token, with its log-probability at temperature 1.
    The distribution is summed by blocks of the vocabulary, then searched within one block, in float64.
    """
    scaled = logits if temperature is None else logits.div_(temperature.masked_fill(temperature == 0, 1.0))
    scaled.clamp_(min=LOW)
    top = scaled.amax(-1, keepdim=True)
    p = (scaled - top).exp_()  # not normalised
    if p.shape[1] <= 2 * BLOCK:
        cumulative = p.cumsum(-1, dtype=uniform.dtype)
        total = cumulative[:, -1:]
        chosen = torch.searchsorted(cumulative, uniform[:, None] * total, right=True)
    else:
        chosen, total = by_blocks(p, uniform[:, None])
    chosen = chosen[:, 0].clamp_(max=p.shape[1] - 1)
    if temperature is not None:
        chosen = torch.where(temperature[:, 0] == 0, scaled.argmax(-1), chosen)
    normaliser = total.log().float() + top  # [B, 1]
    logp = scaled.gather(1, chosen[:, None]) - normaliser
    entropy = normaliser[:, 0] - torch.linalg.vecdot(p, scaled) / total[:, 0].float()
    return chosen, logp[:, 0], entropy


def by_blocks(p: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """[B, V] weights, [B, 1] -> the token drawn and the sum of the weights, [B, 1]: a block first, then inside it."""
    size = p.shape[1]
    whole = size // BLOCK * BLOCK
    sums = torch.cat([p[:, :whole].unflatten(1, (-1, BLOCK)).sum(-1), p[:, whole:].sum(-1, keepdim=True)], 1)
    cumulative = sums.cumsum(-1, dtype=uniform.dtype)
    total = cumulative[:, -1:]
    target = uniform * total
    block = torch.searchsorted(cumulative, target, right=True).clamp_(max=cumulative.shape[1] - 1)
    share = 1 - (cumulative.gather(1, block) - target) / sums.gather(1, block)  # of the block that lies below
    at = block * BLOCK + torch.arange(BLOCK, device=p.device)
    inside = (p.gather(1, at.clamp(max=size - 1)) * (at < size)).cumsum(-1, dtype=uniform.dtype)
    return block * BLOCK + torch.searchsorted(inside, share * inside[:, -1:], right=True).clamp_(max=BLOCK - 1), total
