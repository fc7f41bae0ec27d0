"""How much memory a run takes: bytes of what its process holds while it samples, learns and saves.

Sizes of tensors that are known are exact. Of activations it counts what autograd keeps of a layer of Llama's family,
tensor by tensor; docs/performance.md compares the sums with what runs took.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from posttrain.cli.plan.workload import Decoded, Group, Piece, Step
from posttrain.policy.fast.generate import ROWS
from posttrain.policy.fast.head import ELEMENTS
from posttrain.policy.fast.keys import PREFILL, ROOM, SHARED_PROMPT
from posttrain.policy.fast.prompt import LONG, MOST
from posttrain.policy.text import TextPolicy
from posttrain.policy.value import RewardModel

FLOAT, HALF = 4, 2  # bytes
ADAM = 8  # bytes of a parameter's two moments
HEAP = 1.4  # of what is alive, what the C library's heap takes on the CPU: freed blocks of a layer do not all fit again
MAPPED = 2**27  # bytes of a block that does not come from the heap (`keep_freed_memory`)
BUFFERS = 3  # of logits that are held at once, in scoring and in drawing


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


def network_of(policy: TextPolicy | RewardModel, device: str) -> Network:
    """The sizes of a policy's or a reward model's network, as it is run on a `device`."""
    text = isinstance(policy, TextPolicy)
    bf16 = policy.bf16 if isinstance(policy, TextPolicy) else False
    body: Any = policy.body if isinstance(policy, TextPolicy) else policy.model
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
        fused=policy.dense if isinstance(policy, TextPolicy) else False,
        lines=policy.lines if isinstance(policy, TextPolicy) else False,
        plain_head=policy.head.linear if isinstance(policy, TextPolicy) else True,
        device=device,
    )


# ---- learning


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


def head_gradients(n: Network, pieces: int) -> int:
    """Gradients of embeddings and head that are summed before they are added to what there is."""
    return FLOAT * n.head * min(pieces, 2) if n.whole else 0


def learning_bytes(n: Network, step: Step, gradients: int) -> int:
    """Besides weights and optimizer: `gradients`, the bytes of them here, and what the largest micro-batch keeps."""
    most = round(n.heap * max(activation_bytes(n, piece) for piece in step.pieces))
    if len(step.pieces) > 1:  # each adds to the gradients of those before
        return gradients + head_gradients(n, 2) + most
    return max(most + head_gradients(n, 1), gradients + most // 2)


# ---- sampling


def sampling_bytes(n: Network, decoded: Decoded) -> int:
    """Besides weights, gradients and optimizer: the fused weights, keys and values, logits, and a pass over prompts."""
    rows = min(decoded.samples * len(decoded.prompts), ROWS)
    prompts = sorted(decoded.prompts, reverse=True)[: max(rows // decoded.samples, 1)]
    new, longest = max(decoded.replies), max(prompts)
    logits = BUFFERS * rows * n.vocabulary * FLOAT
    state = rows * new * 2 * FLOAT  # the draws
    if not n.fused:
        casts = HALF * n.linear if n.casts and n.whole else 0
        prefill = len(prompts) * longest * (4 * n.width + 3 * n.inner) * n.compute
        one_layer = n.kept_keys // n.layers * rows * (longest + new)  # copied to be made longer
        keys = rows * (longest + new) * n.kept_keys + one_layer
        return round(n.heap * (casts + max(prefill, keys) + logits + state))
    share = decoded.samples > 1 and sum(prompts) >= SHARED_PROMPT * len(prompts)
    width = ROOM if share else 2 * longest
    while width < new + (0 if share else longest):
        width *= 2
    held = len(prompts) * longest * n.kept_keys if share else 0
    own = rows * width * n.kept_keys * 3 // 2  # the table, and half of it while it is copied into the whole
    prefill = min(PREFILL, sum(prompts)) * (4 * n.width + 3 * n.inner) * FLOAT
    return round(n.heap * (n.compute * n.linear + held + max(own, held + prefill) + logits + state))


# ---- the whole process


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes, in one process, over what Python and its libraries take."""

    weights: int  # of the policy, with what it holds that is not trained
    gradients: int
    optimizer: int
    beside: int  # references, critics with their gradients and optimizers, other players that run here
    sampling: int | None  # more while sampling; None: nothing is sampled, or it is not known
    learning: int | None  # more while learning, gradients included; None: not known
    saving: int  # more while a checkpoint is written

    @property
    def fixed(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.beside

    @property
    def samples(self) -> int:
        return self.fixed + (self.sampling or 0)

    @property
    def learns(self) -> int:
        return self.fixed - self.gradients + max(self.learning or 0, self.gradients)

    @property
    def saves(self) -> int:
        """The heap keeps what the step took; only small blocks are taken from there."""
        return (self.fixed if self.saving < MAPPED else max(self.samples, self.learns)) + self.saving

    @property
    def peak(self) -> int:
        return max(self.samples, self.learns, self.saves)
