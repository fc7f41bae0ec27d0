"""Context-aware decoding (arXiv:2305.14739): what a model says of a context, more or less than it would say without."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from posttrain.core import Ask, Message, Reply
from posttrain.episode import ordered_replies
from posttrain.policy.fast.generate import ROWS, Reason, TransformersRows
from posttrain.policy.text import TextPolicy

LOGITS = 2**25  # held at once: 128 MiB in float32
KEYS = 2**17  # positions whose keys are held at once


def contrasted(with_context: Tensor, without: Tensor, alpha: Tensor) -> Tensor:
    """[B, V], [B, V], [B] -> [B, V] (1 + alpha) * with_context - alpha * without, of logits (arXiv:2305.14739, Eq. 3).

    At 0 the model with its context; at -1 exactly the model without it; below that it shuns what the context says.
    """
    weight = alpha[:, None]
    return (1 + weight) * with_context - weight * without


def decode_with_contexts(
    policy: TextPolicy,
    prompts: Sequence[tuple[Sequence[int], Sequence[int]]],
    alpha: Sequence[float],
    *,
    max_new: int,
    stop: Sequence[str] = (),
) -> list[tuple[tuple[int, ...], Reason]]:
    """The greedy reply to each prompt, of tokens with the context and without it, and why it ended.

    Both contexts have a cache of keys of their own, and read the same reply.
    Raises ValueError for an empty prompt, and one that leaves no room for a reply.
    """
    for i, pair in enumerate(prompts):
        longest = max(map(len, pair))
        if not min(map(len, pair)) or longest + max_new > policy.context:
            raise ValueError(
                f"prompt {i} of {longest} tokens and {max_new} of a reply: a prompt has at least one token, and the "
                f"model has {policy.context} positions for both"
            )
    out: list[tuple[tuple[int, ...], Reason]] = []
    while len(out) < len(prompts):
        part = slice(len(out), len(out) + batch_rows(policy, prompts[len(out) :], max_new))
        with torch.no_grad(), policy.mode():
            out += batch_replies(policy, prompts[part], alpha[part], max_new, tuple(stop))
    return out


def batch_rows(policy: TextPolicy, prompts: Sequence[tuple[Sequence[int], Sequence[int]]], max_new: int) -> int:
    """How many of the first prompts are decoded side by side: as their logits and their keys have room."""
    most = max(min(ROWS, LOGITS // (2 * policy.head.out.weight.shape[0]), len(prompts)), 1)
    longest = 0
    for count, pair in enumerate(prompts[:most]):
        longest = max(longest, *map(len, pair))
        if count and 2 * (longest + max_new) * (count + 1) > KEYS:
            return count
    return most


def batch_replies(
    policy: TextPolicy,
    prompts: Sequence[tuple[Sequence[int], Sequence[int]]],
    alpha: Sequence[float],
    max_new: int,
    stop: tuple[str, ...],
) -> list[tuple[tuple[int, ...], Reason]]:
    models = [TransformersRows(policy.head) for _ in range(2)]
    for side, model in enumerate(models):
        model.admit([pair[side] for pair in prompts], range(len(prompts)), 0)
    weight, live = torch.tensor(alpha, device=policy.device), list(range(len(prompts)))
    said: list[list[int]] = [[] for _ in prompts]
    reason: list[Reason] = ["length"] * len(prompts)
    for position in range(max_new):
        chosen = contrasted(models[0].logits, models[1].logits, weight).argmax(-1)
        ends, going = policy.stops.ends[chosen].tolist(), []
        for k, (i, token) in enumerate(zip(live, chosen.tolist(), strict=True)):
            said[i].append(token)
            if ends[k] or (stop and policy.stops.contains_stop(said[i], stop)):
                reason[i] = "end" if ends[k] else "string"
            else:
                going.append(k)
        if not going or position + 1 == max_new:
            break
        if len(going) < len(live):
            index = torch.tensor(going, device=policy.device)
            for model in models:
                model.keep(index)
            chosen, weight, live = chosen[index], weight[index], [live[k] for k in going]
        for model in models:
            model.step(chosen)
    return [(tuple(ids), why) for ids, why in zip(said, reason, strict=True)]


class ContextContrast:
    """A player that answers as its policy does with alpha times less, or more, trust in the context of a prompt.

    without  the messages without their context
    """

    def __init__(self, policy: TextPolicy, alpha: float, without: Callable[[Sequence[Message]], tuple[Message, ...]]):
        self.policy, self.alpha, self.without = policy, alpha, without

    def sample(self, asks: Sequence[Ask]) -> list[Reply]:
        """Greedy replies, whatever the asks' temperature."""
        return ordered_replies(self.stream(asks))

    def stream(self, asks: Sequence[Ask]) -> Iterator[tuple[int, Reply]]:
        """The same replies with their indices, batch by batch."""
        chat, sampling = self.policy.chat, self.policy.sampling
        prompts = [(chat.prompt(ask.messages)[0], chat.prompt(self.without(ask.messages))[0]) for ask in asks]
        start = 0
        while start < len(asks):
            some = range(start, start + batch_rows(self.policy, prompts[start:], sampling.max_new))
            found = decode_with_contexts(
                self.policy,
                [prompts[i] for i in some],
                [self.alpha] * len(some),
                max_new=sampling.max_new,
                stop=sampling.stop,
            )
            for i, (ids, why) in zip(some, found, strict=True):
                yield i, Reply(chat.decode(ids), torch.zeros(0), None, why, temperature=0.0)
            start = some.stop
