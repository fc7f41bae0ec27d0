"""The forward pass of Llama's family for sampling: a handful of operations a layer.

transformers' own pass spends most of a small model's sampling outside of arithmetic. Here projections that read the
same input are one matrix, tokens lie in one line without padding, and attention is the caller's (see `keys.py`). What
it says is compared with transformers' pass when a policy is made (`Dense.of`); a model for which the two differ is
sampled through transformers instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from posttrain.policy.fast.line import Line

MODELS = ("llama", "mistral", "qwen2", "qwen3", "gemma")
LARGEST = 3_000_000_000  # parameters: the fused matrices are a second copy of the weights

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]  # layer, query [N, H, d], key, value [N, K, d] -> [N, H d]


@dataclass(frozen=True, slots=True)
class Layer:
    """The weights of one layer, in the type that matrix products are made in. A norm's are those of what reads it."""

    qkv: Tensor
    qkv_bias: Tensor | None
    qk_norm: Tensor | None  # [H + K, d]
    out: Tensor
    out_bias: Tensor | None
    gate_up: Tensor
    down: Tensor


class Dense:
    """The weights as they are now, fused. Made anew for every call of the sampler, since training changes them."""

    def __init__(self, head: Any, kind: torch.dtype, embed: Callable[[Tensor], Tensor] | None = None):
        self.head, self.trunk, config = head, head.trunk, head.config
        self.embed_prompt = embed or self.embed
        first = self.trunk.layers[0].self_attn
        self.heads, self.size = config.num_attention_heads, first.head_dim
        self.key_heads = config.num_key_value_heads
        self.scaling, self.act = first.scaling, self.trunk.layers[0].mlp.act_fn
        self.gemma = config.model_type == "gemma"  # norms by 1 + weight, embeddings scaled
        norm = self.trunk.norm
        self.eps = norm.eps if self.gemma else norm.variance_epsilon
        self.kind = kind
        self.final = self.scale_of(norm)
        self.tiny = torch.tensor(self.eps, device=self.final.device)
        self.layers = [self.layer(layer) for layer in self.trunk.layers]
        self.device = self.final.device

    @staticmethod
    def supports(head: Any) -> bool:
        """Whether this pass says the same as the model's own."""
        config = head.config
        rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
        if config.model_type not in MODELS or rope not in ("default", "linear", "llama3", "yarn"):
            return False
        windows = [getattr(layer.self_attn, "sliding_window", config_window(config)) for layer in head.trunk.layers]
        if any(window and window < config.max_position_embeddings for window in windows):
            return False
        linears = [m for m in head.trunk.modules() if hasattr(m, "in_features") and hasattr(m, "out_features")]
        size = sum(p.numel() for p in head.trunk.parameters())
        if size > LARGEST or not all(map(foldable, linears)):
            return False
        device = next(head.trunk.parameters()).device
        if device.type == "meta":  # without weights there are no numbers to compare
            return True
        ids = [1, 2, 3, 4, 5, 6, 7]
        with torch.no_grad():
            theirs = head.trunk(input_ids=torch.tensor([ids], device=device), use_cache=False).last_hidden_state[0]
            dense = Dense(head, torch.float32)
            line = Line([ids], [0], device)
            cos, sin = dense.rotation(len(ids))
            ours = dense.forward(dense.embed(torch.tensor(ids, device=device)), cos, sin, dense.causal(line))
            return torch.allclose(ours, theirs.float(), atol=1e-3, rtol=1e-3)

    def scale_of(self, norm: Any) -> Tensor:
        return norm.weight.detach().float() + float(self.gemma)

    def layer(self, layer: Any) -> Layer:
        attention, mlp = layer.self_attn, layer.mlp
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        biases = [one.bias for one in projections if one.bias is not None]
        qk_norm = None
        if hasattr(attention, "q_norm"):
            of_query, of_key = self.scale_of(attention.q_norm), self.scale_of(attention.k_norm)
            qk_norm = torch.cat([of_query.expand(self.heads, -1), of_key.expand(self.key_heads, -1)])
        out_bias = attention.o_proj.bias
        return Layer(
            self.fused_weight(*projections, after=layer.input_layernorm),
            torch.cat(biases).detach().to(self.kind) if biases else None,
            qk_norm,
            self.fused_weight(attention.o_proj),
            None if out_bias is None else out_bias.detach().to(self.kind),
            self.fused_weight(mlp.gate_proj, mlp.up_proj, after=layer.post_attention_layernorm),
            self.fused_weight(mlp.down_proj),
        )

    def fused_weight(self, *linears: Any, after: Any = None) -> Tensor:
        total = torch.cat([weight(linear) for linear in linears])
        return (total if after is None else total * self.scale_of(after)).to(self.kind)

    def rms_norm(self, x: Tensor) -> Tensor:
        """x / sqrt(mean x^2 + eps) over the last dimension."""
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x * torch.addcmul(self.tiny, size, size, value=1 / x.shape[-1]).rsqrt_()

    def rotation(self, positions: int) -> tuple[Tensor, Tensor]:
        """[positions, 1, d] cosines, and sines whose first half is negative."""
        at = torch.arange(positions, device=self.device)[None]
        cos, sin = self.trunk.rotary_emb(torch.zeros(1, device=self.device), at)
        sign = torch.ones(self.size, device=self.device)
        sign[: self.size // 2] = -1
        return cos[0][:, None].float(), (sin[0] * sign)[:, None].float()

    def causal(self, line: Line, watch: Callable[[int, Tensor, Tensor], None] = lambda *_: None) -> Attend:
        """Attention within every row of a line; `watch` sees the keys and values of each layer."""

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            watch(layer, key, value)
            return line.attend(query, key, value, self.scaling, None).flatten(1)

        return attend

    def embed(self, ids: Tensor) -> Tensor:
        """[N] tokens -> [N, D], float32."""
        x = F.embedding(ids, self.trunk.embed_tokens.weight).float()
        return x * self.trunk.config.hidden_size**0.5 if self.gemma else x

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        """[N, D] embeddings with their rotation [N, 1, d] -> [N, D] last hidden states, float32."""
        both = self.heads + self.key_heads
        for i, layer in enumerate(self.layers):
            qkv = (
                F.linear(self.rms_norm(x).to(self.kind), layer.qkv, layer.qkv_bias)
                .view(len(x), both + self.key_heads, self.size)
                .float()
            )
            qk = qkv[:, :both]
            if layer.qk_norm is not None:
                qk = self.rms_norm(qk) * layer.qk_norm
            qk = torch.addcmul(qk * cos, qk.roll(self.size // 2, -1), sin)
            seen = attend(i, qk[:, : self.heads], qk[:, self.heads :], qkv[:, both:])
            x = x + F.linear(seen.to(self.kind), layer.out, layer.out_bias)
            gate, up = F.linear(self.rms_norm(x).to(self.kind), layer.gate_up).chunk(2, -1)
            x = x + F.linear(self.act(gate) * up, layer.down)
        return self.rms_norm(x) * self.final


def config_window(config: Any) -> int | None:
    """The attention window of a model whose layers do not say it themselves."""
    return getattr(config, "sliding_window", None)


def foldable(linear: Any) -> bool:
    """A plain linear layer, or one with plain LoRA adapters on it."""
    if type(linear) is torch.nn.Linear:
        return True
    plain = hasattr(linear, "get_delta_weight") and not any(getattr(linear, "use_dora", {}).values())
    return plain and type(linear.base_layer) is torch.nn.Linear


def weight(linear: Any) -> Tensor:
    """[out, in] of a linear layer, with the LoRA adapters that are switched on."""
    total = getattr(linear, "base_layer", linear).weight.detach()
    if hasattr(linear, "get_delta_weight") and not linear.disable_adapters and not linear.merged:
        for name in linear.active_adapters:
            if name in linear.lora_A:
                total = total + linear.get_delta_weight(name)
    return total
