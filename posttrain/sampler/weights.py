"""Weights on their way from the learner to those who sample, and the proof that they arrived.

Each publication has a version, sums of a few tensors of every layer, and a probe: token sequences with the learner's
own log-probabilities. Whoever takes the weights must show the version and the sums, and score the probe alike.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from posttrain import ranks
from posttrain.chat import Tokens
from posttrain.core import Ask, Metrics, Reply, Row, Sampler, Task, Turn
from posttrain.policy.text import TextPolicy, checkpoint_tensors
from posttrain.row import row_logps

Sums: TypeAlias = Mapping[str, tuple[float, float]]  # of a tensor: the sum of its elements, and of their magnitudes

PROBES, LONGEST = 4, 64  # sequences of a probe, and tokens of each
CLOSE = 1e-5  # share of a tensor's magnitudes by which its sum may differ: of order of addition, nothing else
WIDEST_GAP = 0.1  # nats, mean over the probe: bfloat16 kernels differ by some 0.01, wrong weights by 1 and more


class SyncError(RuntimeError):
    """Those who sample do not have the weights that the learner sent them."""


@dataclass(frozen=True, slots=True)
class Weights:
    """One publication of the policy's parameters."""

    version: int
    tensors: Mapping[str, Tensor]  # whole, on the CPU
    probe: tuple[tuple[int, ...], ...]
    expected: tuple[Tensor, ...]  # [n - 1] each: the learner's log-probabilities of a sequence's tokens after its first

    def sums(self, dtype: torch.dtype = torch.float32) -> Sums:
        """What the checked tensors must sum to, for one who keeps them in `dtype`."""
        return {name: tensor_sums(self.tensors[name].to(dtype)) for name in checked_names(self.tensors)}


@runtime_checkable
class Engine(Sampler, Protocol):
    """A sampler that takes the policy's weights."""

    version: int  # of the weights that it has
    merged: bool  # it wants the tensors of the whole checkpoint, not those that are trained

    def rest(self) -> None: ...  # until weights are loaded again nothing is asked
    def load(self, weights: Weights) -> None: ...  # raises SyncError when version or sums are not those of `weights`
    def score(self, sequences: Sequence[Sequence[int]]) -> list[Tensor]: ...  # as `Weights.expected`


def checked_names(names: Sequence[str] | Mapping[str, Tensor]) -> list[str]:
    """Of every layer its norms and the matrices that no engine fuses with others, and what stands outside of layers."""
    apart = re.compile(r"(norm|o_proj|down_proj|embed_tokens|lm_head|lora_[AB])\b.*$")
    return [name for name in names if apart.search(name)]


def tensor_sums(tensor: Tensor) -> tuple[float, float]:
    whole = tensor.detach().double()
    return float(whole.sum()), float(whole.abs().sum())


def check_sums(wanted: Sums, found: Sums, who: str) -> None:
    """Raises SyncError naming the first tensor that is missing or differs."""
    for name, (total, size) in wanted.items():
        if name not in found:
            raise SyncError(f"{who} has no tensor {name}: is it the same model?")
        if abs(found[name][0] - total) > CLOSE * max(size, 1e-12):
            raise SyncError(
                f"{who} did not take the weights: {name} sums to {found[name][0]:.6g}, the learner's to {total:.6g}"
            )


def probe_of(policy: TextPolicy, tasks: Sequence[Task]) -> tuple[tuple[int, ...], ...]:
    """Prompts of the run, which exercise what it will be used for; any other, if its source does not show its tasks.

    Pictures (names, below zero) are left out of them: whoever scores the probe is given tokens only.
    """
    tasks = tasks or [Task("probe", ({"role": "user", "content": "What is 17 + 25, and why?"},), None)]
    prompts = [policy.chat.prompt(task.prompt)[0] for task in tasks[:PROBES]]
    words = [tuple(i for i in ids if i >= 0)[:LONGEST] for ids in prompts]
    return tuple(ids for ids in words if len(ids) > 1)


def collect_weights(policy: TextPolicy, probe: tuple[tuple[int, ...], ...], merged: bool) -> Weights:
    """The policy as it is now. All ranks take part; only the primary one keeps the tensors."""
    named = checkpoint_tensors(policy) if merged else ((name, cpu_copy(p)) for name, p in policy.state_dict().items())
    tensors = {name: value for name, value in named if ranks.is_primary()}
    return Weights(policy.version, tensors, probe, tuple(scores(policy, probe)))


def cpu_copy(tensor: Tensor) -> Tensor:
    tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return tensor.detach().to("cpu", copy=True)


def scores(policy: TextPolicy, sequences: Sequence[Sequence[int]]) -> list[Tensor]:
    """[n - 1] each: log-probabilities of the tokens of a sequence after its first, at temperature 1."""
    return row_logps(policy, [sequence_row(ids) for ids in sequences]) if sequences else []


def sequence_row(ids: Sequence[int]) -> Row:
    """A sequence as a row: its first token is the prompt."""
    trace = Tokens(tuple(ids[:1]), tuple(ids[1:]), (), "", "", 0)
    return Row([Turn(Ask(()), Reply("", torch.zeros(len(ids) - 1), trace))], torch.zeros(len(ids) - 1))


def synchronise(engine: Engine, weights: Weights, widest: float = WIDEST_GAP) -> Metrics:
    """Have an engine take the weights and score the probe.

    Raises SyncError when it has not taken them, or when its log-probabilities are further from the learner's than
    `widest` nats in the mean.
    """
    engine.load(weights)
    engine.version = weights.version
    found = engine.score(weights.probe)
    gaps = [(a - b).abs() for a, b in zip(found, weights.expected, strict=True)]
    gap = torch.cat([torch.zeros(0), *gaps])
    mean = float(gap.mean()) if len(gap) else 0.0
    if not mean <= widest:
        raise SyncError(
            f"with the weights of version {weights.version}, {type(engine).__name__} is {mean:.3g} nats from the "
            f"learner on the probe (allowed {widest:g}): another model, precision or quantization?"
        )
    return {"parity_gap": mean, "parity_gap_max": float(gap.max()) if len(gap) else 0.0}


class Twin:
    """A policy of the same kind in another process, as an engine."""

    merged = False

    def __init__(self, policy: TextPolicy):
        self.policy, self.version = policy, -1

    def sample(self, asks: Sequence[Ask]) -> list[Reply]:
        return self.policy.sample(asks)

    def rest(self) -> None:
        """It shares no memory with the learner."""

    def load(self, weights: Weights) -> None:
        self.policy.load_state_dict(weights.tensors)
        self.policy.version = weights.version
        own = self.policy.state_dict()
        check_sums(weights.sums(), {name: tensor_sums(own[name]) for name in checked_names(own)}, "the sampler")

    def score(self, sequences: Sequence[Sequence[int]]) -> list[Tensor]:
        return scores(self.policy, sequences)
