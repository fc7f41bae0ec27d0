"""From hidden states to log-probabilities, in chunks: the logits of a large vocabulary never exist at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from posttrain.core import Density

LOW = -1e30  # logits of tokens that a model rules out
ELEMENTS = 2**23  # logits held at once on a CPU: 32 MiB in float32, about what its cache holds
ELEMENTS_GPU = 2**26  # on a GPU: 256 MiB, so that the weights are not read again for every few dozen rows


class Head:
    """The last layer of a causal model. Its logits are float32, also when the model runs in bfloat16.

    Raises ValueError for an architecture whose logits are not a linear map of its last hidden state, followed by
    the scale or the soft cap that its configuration names.
    """

    def __init__(self, body: Any):
        self.trunk, self.out, self.config = body.base_model, body.get_output_embeddings(), body.config
        config = body.config
        self.cap = getattr(config, "final_logit_softcapping", None)
        self.scale = getattr(config, "logit_scale", None) or 1.0
        self.scale /= getattr(config, "logits_scaling", None) or 1.0
        self.never: Tensor | None = None  # tokens that are neither drawn nor scored: placeholders of pictures
        device = next(body.parameters()).device
        if device.type == "meta":  # without weights there are no numbers to compare
            return
        with torch.no_grad():
            probe = torch.tensor([[1, 2, 3]], device=device)
            hidden = self.trunk(input_ids=probe, use_cache=False).last_hidden_state
            if not torch.allclose(self.logits(hidden), body(input_ids=probe).logits.float(), atol=1e-2, rtol=1e-2):
                raise ValueError(f"{type(body).__name__} makes its logits in a way that posttrain does not know")

    def logits(self, hidden: Tensor) -> Tensor:
        if torch.is_autocast_enabled(hidden.device.type):
            with torch.autocast(hidden.device.type, enabled=False):
                return self.logits(hidden)
        logits = self.out(hidden.float())
        logits = logits * self.scale if self.scale != 1.0 else logits
        logits = self.cap * torch.tanh(logits / self.cap) if self.cap else logits
        return logits if self.never is None else logits.index_fill(-1, self.never.to(logits.device), LOW)

    @property
    def linear(self) -> bool:
        """The logits are a plain linear map, for which `Linear` has the gradient."""
        plain = type(self.out) is torch.nn.Linear and self.out.bias is None and self.out.weight.dtype == torch.float32
        return plain and not self.cap and self.scale == 1.0 and self.never is None

    def density(self, hidden: Tensor, chosen: Tensor, temperature: Tensor) -> Density:
        """[N, D] -> log-probability and entropy [N], float32."""
        size = max(elements(hidden.device) // self.out.weight.shape[0], 1)
        if self.linear:
            with torch.autocast(hidden.device.type, enabled=False):
                return Density(*Linear.apply(hidden.float(), self.out.weight, chosen, temperature, size))
        pieces = zip(hidden.split(size), chosen.split(size), temperature.split(size), strict=True)
        if len(hidden) <= size or not torch.is_grad_enabled():
            scored = [self.piece(*piece) for piece in pieces]
        else:
            scored = [checkpoint(self.piece, *piece, use_reentrant=False) for piece in pieces]
        return Density(torch.cat([logp for logp, _ in scored]), torch.cat([entropy for _, entropy in scored]))

    def piece(self, hidden: Tensor, chosen: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
        logp = (self.logits(hidden) / temperature[:, None]).log_softmax(-1)
        entropy = -(logp.exp() * logp.clamp(min=-1e4)).sum(-1)
        return logp.gather(-1, chosen[:, None])[:, 0], entropy


def elements(device: torch.device) -> int:
    """How many logits are held at once on a device."""
    return ELEMENTS if device.type == "cpu" else ELEMENTS_GPU


class Linear(torch.autograd.Function):
    """The same for a linear head, with its gradient in closed form and one buffer of logits, used in place.

    With x = W h / t, l = x_c - log sum exp x, p = softmax x and H the entropy:
    dl/dx = e_c - p,   dH/dx = -p (log p + H).
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, chosen: Tensor, temperature: Tensor, size: int) -> Any:
        norm, logp, entropy = (hidden.new_empty(len(hidden)) for _ in range(3))
        x = None
        for part in parts(len(hidden), size):
            x = scaled_logits(hidden[part], weight, temperature[part])
            top = x.amax(-1, keepdim=True)
            p = (x - top).exp_()
            total = p.sum(-1)
            norm[part] = top[:, 0] + total.log()
            logp[part] = x.gather(1, chosen[part, None])[:, 0] - norm[part]
            entropy[part] = norm[part] - torch.linalg.vecdot(p, x) / total
        kept = x if len(hidden) <= size else None
        ctx.save_for_backward(hidden, weight, chosen, temperature, norm, entropy, kept)
        ctx.size = size
        ctx.set_materialize_grads(False)
        return logp, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        to_logp, to_entropy = grads
        hidden, weight, chosen, temperature, norm, entropy, kept = ctx.saved_tensors
        to_hidden = torch.empty_like(hidden)
        to_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        for part in parts(len(hidden), ctx.size):
            x = scaled_logits(hidden[part], weight, temperature[part]) if kept is None else kept
            x = logit_gradient(
                x.sub_(norm[part, None]) if kept is None else x - norm[part, None],
                entropy[part],
                chosen[part],
                to_logp,
                to_entropy,
                part,
            )
            x.div_(temperature[part, None])
            to_hidden[part] = torch.mm(x, weight)
            if to_weight is not None:
                to_weight.addmm_(x.T, hidden[part])
        return to_hidden, to_weight, None, None, None


def scaled_logits(hidden: Tensor, weight: Tensor, temperature: Tensor) -> Tensor:
    """[m, V] logits at the rows' temperatures."""
    return torch.mm(hidden, weight.T).div_(temperature[:, None]).clamp_(min=LOW)


def logit_gradient(
    log_p: Tensor, entropy: Tensor, chosen: Tensor, to_logp: Tensor | None, to_entropy: Tensor | None, part: slice
) -> Tensor:
    """[m, V] the gradient with respect to the logits, given that of each row's log-probability and entropy."""
    p = log_p.exp()
    if to_entropy is None:
        assert to_logp is not None
        x = p.mul_(-to_logp[part, None])
    else:
        x = log_p.add_(entropy[:, None]).mul_(-to_entropy[part, None])
        x = (x if to_logp is None else x.sub_(to_logp[part, None])).mul_(p)
    return x if to_logp is None else x.scatter_add_(1, chosen[:, None], to_logp[part, None])


def parts(count: int, size: int) -> list[slice]:
    return [slice(at, at + size) for at in range(0, count, size)]
