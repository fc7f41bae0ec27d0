"""Seconds of a step and the number of GPUs it takes, on paper: published peaks, and a stated share of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from posttrain.cli.plan.footprint import Footprint, learning_bytes, sampling_bytes
from posttrain.cli.plan.workload import Decoded, Step
from posttrain.policy.activations import FLOAT, Group, Network, Piece
from posttrain.policy.fast.generate import ROWS

GIB = 2**30
COMPUTE, BANDWIDTH, FILLED = 0.4, 0.5, 0.9  # shares of the peaks, and of the memory, that a run reaches
MOST_GPUS = 4096


@dataclass(frozen=True, slots=True)
class Machine:
    """A GPU by its data sheet."""

    name: str
    memory: float  # bytes
    half: float  # FLOP/s, bfloat16, dense
    single: float  # FLOP/s, float32
    bandwidth: float  # bytes/s


MACHINES = (
    Machine("H100 80GB", 79 * GIB, 989e12, 67e12, 3.35e12),
    Machine("H200 141GB", 139 * GIB, 989e12, 67e12, 4.8e12),
    Machine("A100 80GB", 79 * GIB, 312e12, 19.5e12, 2.0e12),
)


@dataclass(frozen=True, slots=True)
class Work:
    """What the steps of a run compute, each on average; tokens are at most."""

    sampled: float  # tokens
    learned: float  # tokens in the policy's forward and backward pass, over all epochs
    scored: float  # tokens in forward passes alone: of references, of a survey
    decode_flops: float
    decode_bytes: float
    learn_flops: float  # of scoring too

    def seconds(self, n: Network, machine: Machine, gpus: int) -> tuple[float, float]:
        """Of sampling and of learning, with the work dealt over so many GPUs."""
        flops = COMPUTE * gpus * (machine.half if n.bf16 else machine.single)
        decoding = max(self.decode_flops / flops, self.decode_bytes / (BANDWIDTH * gpus * machine.bandwidth))
        return decoding, self.learn_flops / flops


def token_flops(n: Network, context: float) -> float:
    """Of the forward pass of one token that sees `context` tokens, without the head."""
    return 2 * n.active + 4 * n.layers * n.heads * n.head_size * context


def piece_flops(n: Network, piece: Piece) -> float:
    """Of a forward pass, the head included."""
    total = 2.0 * piece.decisions * n.head
    for group in piece.groups:
        total += group.prompt * token_flops(n, group.prompt / 2)
        total += sum(own * token_flops(n, group.prompt + own / 2) for own in group.own)
    return total


def work(n: Network, steps: list[Step], references: int, critics: int, epochs: int, updates: int, gpus: int) -> Work:
    """`references` policies score every row, `critics` do and learn; `updates` beyond one survey the rows first."""
    tokens = sum(step.tokens for step in steps) / len(steps)
    flops = sum(piece_flops(n, piece) for step in steps for piece in step.pieces) / len(steps)
    learning = (4 if n.checkpointing else 3) if n.whole else (3 if n.checkpointing else 2)  # under LoRA, no weights'
    survey = int(epochs * updates > 1)
    passes = (learning + references) * epochs + survey + critics * (learning + 1)
    decoded = [decoding(n, step.decoded, gpus) for step in steps if step.decoded]
    sampled, decode_flops, decode_bytes = (sum(part) / len(steps) for part in zip(*decoded, (0, 0, 0), strict=True))
    scored = tokens * (references * epochs + survey + critics)
    return Work(sampled, tokens * epochs, scored, decode_flops, decode_bytes, passes * flops)


def decoding(n: Network, decoded: Decoded, gpus: int) -> tuple[float, float, float]:
    """Tokens, FLOPs and bytes of a step's sampling: the weights are read for every token of up to `ROWS` rows."""
    rows = decoded.samples * len(decoded.prompts)
    passes = -(-rows // (ROWS * gpus)) * gpus * max(decoded.replies)
    weights = n.compute * n.active + FLOAT * n.head
    tokens = flops = keys = 0.0
    for prompt, new in zip(decoded.prompts, decoded.replies, strict=True):
        flops += prompt * token_flops(n, prompt / 2) + decoded.samples * new * (
            token_flops(n, prompt + new / 2) + 2 * n.head
        )
        shared = prompt if n.fused else prompt * decoded.samples  # the prompt's keys are read once, or by each
        keys += new * (shared + decoded.samples * new / 2) * n.kept_keys
        tokens += decoded.samples * new
    return tokens, flops, passes * weights + keys


# ---- memory


def gpu_bytes(n: Network, fixed: Footprint, steps: list[Step], gpus: int) -> float:
    """The peak on each of so many GPUs.

    Over several FSDP2 shards weights, gradients and optimizer. What stands beside the policy stays whole on each, all
    of the policy is gathered to sample, and a layer or two to learn.
    """
    gathered = unsharded = 0
    if gpus > 1:
        n = replace(n, casts=False)
        layers = n.layers * n.largest_layer
        root = max(n.parameters - layers, 0)
        gathered = n.compute * layers + FLOAT * root
        unsharded = 2 * n.compute * n.largest_layer + FLOAT * root
        unsharded += FLOAT * (root + n.largest_layer) if n.whole else 0  # their gradients
    held = (fixed.weights + fixed.optimizer) / gpus + fixed.beside
    gradients = fixed.gradients // gpus
    peak = 0.0
    for step in steps:
        part = shared_out(step, gpus)
        peak = max(peak, held + unsharded + learning_bytes(n, part, gradients))
        if part.decoded:
            peak = max(peak, held + gradients + gathered + sampling_bytes(n, part.decoded))
    return peak


def shared_out(step: Step, gpus: int) -> Step:
    """What one of several GPUs does of a step."""
    least = step.tokens / gpus
    pieces = tuple(portion(piece, least / piece.tokens) for piece in step.pieces)
    decoded = step.decoded
    if decoded:
        count = -(-len(decoded.prompts) // gpus)
        longest = tuple(sorted(decoded.prompts, reverse=True)[:count])
        decoded = Decoded(longest, decoded.samples, decoded.replies)
    return Step(pieces, decoded)


def portion(piece: Piece, share: float) -> Piece:
    """A micro-batch of fewer rows, of one at least."""
    if share >= 1:
        return piece
    left = max(round(share * sum(len(group.own) for group in piece.groups)), 1)
    groups: list[Group] = []
    for group in piece.groups:
        if left > 0:
            groups.append(Group(group.prompt, group.own[:left]))
            left -= len(group.own)
    tokens = sum(group.prompt + sum(group.own) for group in groups)
    return Piece(tokens, round(piece.decisions * tokens / piece.tokens), tuple(groups))


def gpus_needed(
    n: Network, fixed: Footprint, steps: list[Step], machine: Machine, most: int = MOST_GPUS
) -> tuple[int, float] | None:
    """The fewest GPUs, a power of two and at most `most`, that hold the run, and the bytes on each; None if none do."""
    gpus = 1
    while gpus <= most:
        peak = gpu_bytes(n, fixed, steps, gpus)
        if peak <= FILLED * machine.memory:
            return gpus, peak
        gpus *= 2
    return None
