"""Attention of the samples of one long prompt, whose keys are read where they stand, once for all samples.

With the keys of the prompt copied to each sample, as a batch needs them, the copies and the sum of their gradients
cost more than the products do, and the products are small. Here all samples' queries meet the prompt's keys in one
product. On the CPU it takes 0.65 of the time of torch's attention over copies in float32, 0.45 in bfloat16, whose
kernel for the CPU is slow; scores and softmax are float32 in both.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LONG = 64  # tokens of a prompt from which on this is faster than copies of its keys
MOST = 4096  # up to which the probabilities, kept for the backward pass, take no more than what the layers keep


class PromptAttention(torch.autograd.Function):
    """Causal attention of B samples of n tokens after one prompt of P tokens.

    query [B, n, H, d], key and value [B, n, K, d], prompt's key and value [P, K, d], all float32 -> [B, n, H, d] of
    `kind`, in which the probabilities are multiplied. H must be a multiple of K.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, first_key: Tensor, first_value: Tensor, options: Any
    ) -> Tensor:
        scaling, kind = options
        (samples, n, _, size), heads, prompt = query.shape, key.shape[2], len(first_key)
        ctx.shape, ctx.scaling = query.shape, scaling
        query = by_head(query * scaling, heads)  # [K, B * n * r, d] with r = H / K queries a key
        own = query.view(heads * samples, -1, size)  # [K * B, n * r, d]
        key, value = by_sample(key), by_sample(value).to(kind)  # [K * B, n, d]
        first_key = first_key.transpose(0, 1).contiguous()
        first_value = first_value.transpose(0, 1).to(kind)
        scores = query.new_empty(heads, query.shape[1], prompt + n)
        scores[..., :prompt] = query @ first_key.transpose(1, 2)
        later = torch.full((n, n), float("-inf"), device=query.device).triu(1)
        later = later.repeat_interleave(own.shape[1] // n, 0)
        scores[..., prompt:] = (own @ key.transpose(1, 2) + later).view(heads, -1, n)
        weights = scores.softmax(-1)
        first = weights[..., :prompt].to(kind, memory_format=torch.contiguous_format)
        rest = weights[..., prompt:].to(kind).reshape(own.shape[0], -1, n)
        out = first @ first_value
        out += (rest @ value).view_as(out)
        ctx.save_for_backward(query, key, value, first_key, first_value, first, rest, out)
        return from_heads(out, ctx.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        query, key, value, first_key, first_value, first, rest, out = ctx.saved_tensors
        kind, heads = first.dtype, len(first)
        gradient = by_head(gradients[0], heads).to(kind)
        # of the softmax: weight * (its gradient - the mean gradient), and that mean is gradient . out
        mean = (gradient.float() * out.float()).sum(-1, keepdim=True).to(kind)
        own, own_mean = gradient.view(*rest.shape[:2], -1), mean.view(*rest.shape[:2], 1)
        at_first = (gradient @ first_value.transpose(1, 2)).sub_(mean).mul_(first)
        at_rest = (own @ value.transpose(1, 2)).sub_(own_mean).mul_(rest)
        to_query = (at_first @ first_key.to(kind)).float()
        to_query += (at_rest @ key.to(kind)).view_as(to_query)
        query = query.to(kind)
        to_key = at_rest.transpose(1, 2) @ query.view(own.shape)
        to_value = rest.transpose(1, 2) @ own
        shape = (heads, ctx.shape[0], ctx.shape[1], ctx.shape[3])
        return (
            from_heads(to_query * ctx.scaling, ctx.shape),
            to_key.float().view(shape).permute(1, 2, 0, 3),
            to_value.float().view(shape).permute(1, 2, 0, 3),
            (at_first.transpose(1, 2) @ query).float().transpose(0, 1),
            (first.transpose(1, 2) @ gradient).float().transpose(0, 1),
            None,
        )


def by_head(query: Tensor, heads: int) -> Tensor:
    """[B, n, H, d] -> [K, B * n * r, d]: the queries of each of `heads` keys."""
    samples, n, _, size = query.shape
    return query.reshape(samples, n, heads, -1, size).permute(2, 0, 1, 3, 4).reshape(heads, -1, size).contiguous()


def by_sample(key: Tensor) -> Tensor:
    """[B, n, K, d] -> [K * B, n, d]."""
    return key.permute(2, 0, 1, 3).reshape(-1, key.shape[1], key.shape[3])


def from_heads(query: Tensor, shape: torch.Size) -> Tensor:
    """What `by_head` made, back in the shape [B, n, H, d]."""
    samples, n, _, size = shape
    return query.view(len(query), samples, n, -1, size).permute(1, 2, 0, 3, 4).reshape(shape)
