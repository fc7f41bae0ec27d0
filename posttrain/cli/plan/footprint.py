"""How much memory a run takes: bytes of what its process holds while it samples, learns and saves.

Sizes of tensors that are known are exact; docs/performance.md compares the sums with what runs took.
"""

from __future__ import annotations

from dataclasses import dataclass

from posttrain.cli.plan.workload import Decoded, Step
from posttrain.policy.activations import BUFFERS, FLOAT, HALF, Network, activation_bytes
from posttrain.policy.fast.generate import ROWS
from posttrain.policy.fast.keys import PREFILL, ROOM, SHARED_PROMPT

ADAM = 8  # bytes of a parameter's two moments
MAPPED = 2**27  # bytes of a block that does not come from the heap (`keep_freed_memory`)


# ---- learning


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
