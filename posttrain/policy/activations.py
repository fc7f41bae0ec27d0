"""What learning holds of a micro-batch until its backward pass, in bytes, and how large one may be on this machine.

Counted is what autograd keeps of a layer of Llama's family, tensor by tensor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from posttrain.chat import trace
from posttrain.core import Row
from posttrain.policy.abilities import free_memory
from posttrain.policy.fast.head import ELEMENTS
from posttrain.policy.fast.prompt import LONG, MOST
from posttrain.policy.text import TextPolicy, length_of

FLOAT, HALF = 4, 2  # bytes
HEAP = 1.4  # of what is alive, what the C library's heap takes on the CPU: freed blocks of a layer do not all fit again
BUFFERS = 3  # of logits that are held at once, in scoring and in drawing
SHARE = 0.8  # of the memory that is free, which a micro-batch may take


# ---- micro-batches


@dataclass(frozen=True, slots=True)
class Group:
    """Rows of a micro-batch that share a prompt; a row that shares none is a group of its own with a prompt of 0."""

    prompt: int
    own: tuple[int, ...]  # [B] tokens of each row after the shared prompt


@dataclass(frozen=True, slots=True)
class Piece:
    """A micro-batch."""

    tokens: int  # that go through the model, padding included
    decisions: int  # that are scored
    groups: tuple[Group, ...]
    pictured: int = 0  # tokens that stand for pictures


def piece_of(policy: TextPolicy, rows: Sequence[Row]) -> Piece:
    """The micro-batch that some rows are."""
    decisions = sum(len(row.advantage) for row in rows)
    sizes = [length_of(row) for row in rows]
    if not policy.lines:
        widths = (max(sizes),) * len(rows)
        return Piece(policy.size(rows), decisions, tuple(Group(0, (width,)) for width in widths))
    prompts = [trace(row.turns[0].reply).prompt for row in rows]
    counts, own = Counter(prompts), dict[tuple[int, ...], list[int]]()
    groups = []
    for prompt, size in zip(prompts, sizes, strict=True):
        if counts[prompt] > 1:
            own.setdefault(prompt, []).append(size - len(prompt))
        else:
            groups.append(Group(0, (size,)))
    groups += [Group(len(prompt), tuple(rest)) for prompt, rest in own.items()]
    pictured = sum(id < 0 for prompt in counts for id in prompt)
    return Piece(policy.size(rows), decisions, tuple(groups), pictured)


# ---- networks


@dataclass(frozen=True, slots=True)
class Network:
    """The sizes of a language model, and how it is run. Counts are of parameters."""

    parameters: int
    trained: int
    linear: int  # of the linear layers of the trunk
    active: int  # of these, what one token meets: fewer where there are experts
    largest_layer: int
    layers: int
    width: int  # D
    inner: int  # of an MLP
    heads: int
    key_heads: int
    head_size: int
    vocabulary: int  # of a head that is scored; 0: none is
    normed_heads: bool  # queries and keys have norms of their own
    bf16: bool
    casts: bool  # autocast keeps a bfloat16 copy of the weights
    checkpointing: bool
    fused: bool  # sampled by `Dense`, which holds the weights once more
    lines: bool  # trained on lines of tokens, with `Line`'s attention
    plain_head: bool  # scored by `Linear`
    device: str  # cpu, cuda or mps

    @property
    def head(self) -> int:
        """Parameters of the head."""
        return self.vocabulary * self.width

    @property
    def whole(self) -> bool:
        """All parameters are trained, and not an adapter's."""
        return self.trained > self.parameters / 2

    @property
    def compute(self) -> int:
        """Bytes of a number in a matrix product."""
        return HALF if self.bf16 else FLOAT

    @property
    def attention(self) -> int:
        """Bytes of a number in attention: on the CPU it is computed in float32."""
        return FLOAT if self.device == "cpu" else self.compute

    @property
    def heap(self) -> float:
        return HEAP if self.device == "cpu" else 1.0

    @property
    def kept_keys(self) -> int:
        """Bytes of keys and values of one token. transformers' cache holds keys in float32, as they are rotated."""
        both = 2 * self.attention if self.fused else FLOAT + self.compute
        return self.layers * self.key_heads * self.head_size * both


def network_of(policy: Any, device: str) -> Network:
    """The sizes of a policy's or a reward model's network, as it is run on a `device`."""
    text = isinstance(policy, TextPolicy)
    bf16 = policy.bf16 if text else False
    body: Any = policy.body if text else policy.model
    config, trunk = body.config.get_text_config(), body.base_model
    layers = getattr(trunk, "language_model", trunk).layers
    linear = sum(m.weight.numel() for m in layers.modules() if isinstance(m, nn.Linear))
    experts = [p.numel() for name, p in layers.named_parameters() if ".experts." in name]
    linear += sum(p.numel() for name, p in layers.named_parameters() if ".experts." in name and name.endswith("_proj"))
    each, all_experts = getattr(config, "num_experts_per_tok", None) or 1, getattr(config, "num_experts", None) or 1
    inner = getattr(config, "moe_intermediate_size", None) if experts else None
    return Network(
        parameters=sum(p.numel() for p in policy.model.parameters()),
        trained=sum(p.numel() for p in policy.model.parameters() if p.requires_grad),
        linear=linear,
        active=linear - round(sum(experts) * (1 - each / all_experts)),
        largest_layer=max(sum(p.numel() for p in layer.parameters()) for layer in layers),
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        inner=each * inner if inner else config.intermediate_size,
        heads=config.num_attention_heads,
        key_heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        head_size=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        vocabulary=config.vocab_size if text else 0,
        normed_heads=any("q_norm" in name for name, _ in layers.named_parameters()),
        bf16=bf16,
        casts=bf16,
        checkpointing=bool(getattr(body, "is_activation_checkpointing", False)),
        fused=policy.dense if text else False,
        lines=policy.lines if text else False,
        plain_head=policy.head.linear if text else True,
        device=device,
    )


# ---- activations


def token_bytes(n: Network) -> int:
    """What a layer keeps of one token for the backward pass, attention over keys aside."""
    heads = n.heads * n.head_size
    both = (n.heads + n.key_heads) * n.head_size
    norms = 2 * both * FLOAT if n.normed_heads else 0
    if not n.bf16:  # residuals 2, norms 2 x 2 wide; queries, attention and its copy; gate, its activation, up, product
        return FLOAT * (6 * n.width + 3 * heads + 4 * n.inner) + norms
    inputs = 5 * n.width * HALF  # each of the five projections makes a bfloat16 copy of its input
    return FLOAT * 4 * n.width + inputs + n.attention * 2 * heads + HALF * (heads + 4 * n.inner) + norms


def attention_bytes(n: Network, group: Group) -> int:
    """What a layer keeps of a group's keys, and of their products where those are kept."""
    size, total = n.head_size, 0
    keys = n.key_heads * size * 2 * n.attention
    if not n.lines:
        return sum(group.own) * keys
    if n.device == "cpu" and LONG <= group.prompt <= MOST:  # `PromptAttention`
        for own in group.own:
            total += n.heads * own * (group.prompt + own) * n.compute  # probabilities
            total += own * (keys + n.heads * size * FLOAT)
        return total + group.prompt * keys
    copies = 1 if n.device == "cpu" else n.heads // n.key_heads
    for own in group.own:
        total += (group.prompt + own) * keys * copies
    if group.prompt:
        total += max(group.own) * (group.prompt + max(group.own)) * FLOAT  # the mask
    return total


def layer_bytes(n: Network, piece: Piece) -> int:
    return piece.tokens * token_bytes(n) + sum(attention_bytes(n, group) for group in piece.groups)


def head_bytes(n: Network, piece: Piece) -> int:
    """Hidden states of the decisions, and logits in chunks."""
    buffers = BUFFERS if n.plain_head else 2 * BUFFERS
    logits = min(piece.decisions * n.vocabulary, max(ELEMENTS, n.vocabulary)) * FLOAT * buffers
    return logits + 2 * piece.decisions * n.width * FLOAT + piece.tokens * n.width * 2 * FLOAT


def activation_bytes(n: Network, piece: Piece) -> int:
    """Most of what is held between the beginning of a forward pass and the end of the backward pass."""
    layer = layer_bytes(n, piece)
    casts = HALF * n.linear if n.casts else 0  # the weights in bfloat16
    backward = piece.tokens * (3 * n.inner + 4 * n.width) * n.compute  # gradients of one layer's activations
    if n.checkpointing:
        residuals = n.layers * piece.tokens * n.width * FLOAT
        return residuals + max(casts, layer + backward) + head_bytes(n, piece)
    return n.layers * layer + casts + max(backward, head_bytes(n, piece))


# ---- on this machine

networks: WeakKeyDictionary[Any, Network | None] = WeakKeyDictionary()  # None: of another build than is counted


def tokens_that_fit(
    policy: Any, rows: Sequence[Row], tokens: int, bins: Callable[[Sequence[Row], int], Sequence[Sequence[int]]]
) -> int:
    """`tokens` of a micro-batch, or fewer where the CPU lacks the memory: the kernel kills what takes too much.

    Nothing is worked out where memory is ample, on GPUs, whose errors can be caught, and for networks that are not
    built as Llama's family is. A single row may still not fit.

    bins  rows and tokens to micro-batches, as indices of rows
    """
    if not isinstance(policy, TextPolicy) or policy.device.type != "cpu" or not rows:
        return tokens
    free, network = free_memory(), cpu_network(policy)
    if free is None or network is None:
        return tokens
    most = min(tokens, max(sum(map(length_of, rows)), 1))
    bound = Piece(most, most, (Group(0, (max(map(length_of, rows)),)),) * len(rows))
    if network.heap * activation_bytes(network, bound) < SHARE * free / 2:
        return tokens
    while True:
        parts = [[rows[i] for i in part] for part in bins(rows, tokens)]
        large = [
            part for part in parts if network.heap * activation_bytes(network, piece_of(policy, part)) > SHARE * free
        ]
        shared = [policy.size(part) for part in large if len(part) > 1]
        if not shared:
            return tokens
        tokens = max(shared) // 2


def cpu_network(policy: TextPolicy) -> Network | None:
    if policy not in networks:
        try:
            networks[policy] = network_of(policy, "cpu")
        except (AttributeError, TypeError, ValueError):  # GPT-2's layers and sizes have other names
            networks[policy] = None
    return networks[policy]
