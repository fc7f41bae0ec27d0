"""DoLa (arXiv:2309.03883): what the model says in the end, less what an early layer would have said.

Shapes: B rows, C candidate layers, V vocabulary. Logits in, scores out.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def jensen_shannon(mature: Tensor, early: Tensor) -> Tensor:
    """[B, V], [B, C, V] -> [B, C] nats: the Jensen-Shannon divergence of each layer from the mature distribution."""
    p, q = mature.log_softmax(-1)[:, None], early.log_softmax(-1)
    middle = torch.logaddexp(p, q) - math.log(2)
    return 0.5 * (p.exp() * (p - middle) + q.exp() * (q - middle)).sum(-1)


def released_divergence(mature: Tensor, early: Tensor) -> Tensor:
    """[B, V], [B, C, V] -> [B, C]: what DoLa's release and transformers compute in its place.

    They hand `kl_div` its arguments in an order that makes it (KL(M || p) + KL(M || q)) / 2, M = (p + q) / 2, and take
    the mean over the vocabulary.
    """
    p, q = mature.log_softmax(-1)[:, None], early.log_softmax(-1)
    middle = torch.logaddexp(p, q) - math.log(2)
    return 0.5 * (middle.exp() * (2 * middle - p - q)).mean(-1)


def chosen_layer(mature: Tensor, early: Tensor, shared: bool = False) -> Tensor:
    """[B] the candidate that differs most from the mature distribution.

    Of each row by itself; `shared`: one for the whole batch, by the mean of `released_divergence`, as transformers had
    it, so that a row's result depends on its neighbours.
    """
    if shared:
        return released_divergence(mature, early).mean(0).argmax().expand(len(mature))
    return jensen_shannon(mature, early).argmax(-1)


def contrast_scores(mature: Tensor, early: Tensor, *, shared: bool = False, relative_top: float = 0.1) -> Tensor:
    """[B, V], [B, C, V] -> [B, V] log p_mature - log p_early, of the layer that differs most.

    Tokens less likely than `relative_top` times the likeliest are -inf; at least one is kept.
    """
    index = chosen_layer(mature, early, shared)
    logp = mature.log_softmax(-1)
    early_logp = early[torch.arange(len(mature), device=mature.device), index].log_softmax(-1)
    least = logp.amax(-1, keepdim=True) + math.log(relative_top)
    return torch.where(logp >= least, logp - early_logp, -math.inf)


def penalise_repetition(scores: Tensor, said: Tensor, penalty: float) -> Tensor:
    """[B, V] with the repetition penalty of CTRL (arXiv:1909.05858, Sec. 4.1) on tokens that were said, [B, V] bool.

    A positive score is divided by it, a negative one multiplied, as transformers does.
    """
    if penalty == 1.0:
        return scores
    return torch.where(said, torch.where(scores < 0, scores * penalty, scores / penalty), scores)
