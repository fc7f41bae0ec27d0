"""A policy whose parameters lie on several ranks: FSDP2 under the same `density`, `sample` and `update`.

Every layer is a unit that is gathered when it is computed; embeddings, last norm and head are one more. Gradients are
summed over the ranks, not averaged: the weights of decisions are made over the whole step already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from posttrain import ranks
from posttrain.policy.fast.stops import Stops
from posttrain.policy.text import TextPolicy

Result = TypeVar("Result")


class Shards(nn.Module):
    """The root unit. Work that reads parameters runs inside its forward pass, or while they are `whole`."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.open = 0

    def forward(self, work: Callable[[], Any]) -> Any:
        return work()

    def run(self, work: Callable[[], Result]) -> Result:
        """Work that all ranks do together, so many times each."""
        if self.open:
            return work()
        found = self(work)
        if not torch.is_grad_enabled():  # no backward pass will: the optimizer must find the shards
            self.units()[0].reshard()
        return found

    @contextmanager
    def gather_parameters(self) -> Iterator[None]:
        """All parameters on every rank: for sampling, in which ranks take different numbers of steps."""
        self.open += 1
        if self.open == 1:
            for unit in self.units():
                unit.set_reshard_after_forward(False, recurse=False)
                unit.unshard()
        try:
            yield
        finally:
            self.open -= 1
            if self.open == 0:
                for unit in self.units():
                    unit.reshard()
                    unit.set_reshard_after_forward(unit is not self, recurse=False)

    def units(self) -> list[FSDPModule]:
        return [module for module in self.modules() if isinstance(module, FSDPModule)]


def shard(policy: TextPolicy) -> None:
    """Lay the policy's parameters over all ranks; under bf16 they are gathered in bfloat16, and summed in float32.

    Do so after whatever copies the model (a reference, a critic), and before an optimizer is made.
    """
    device = policy.device.type
    if device == "cpu" and torch.cuda.is_available() and torch.distributed.get_backend() != "gloo":
        device = "cuda"  # it was loaded on the CPU, so that no GPU ever holds all of it
    mesh = init_device_mesh(device, (ranks.world(),))
    kind = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if policy.bf16 else None, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    trunk = policy.body.base_model
    for layer in getattr(trunk, "language_model", trunk).layers:
        fully_shard(layer, mesh=mesh, mp_policy=kind)
    root = Shards(policy.model)
    fully_shard(root, mesh=mesh)
    for unit in root.units():
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)
    root(lambda: None)  # the root must be the first whose forward pass runs
    with root.gather_parameters():
        pass  # it leaves its own parameters gathered: an optimizer must see the shards
    policy.shards.append(root)
    policy.stops = Stops(policy.chat, policy.ends(), policy.head.out.weight.shape[0], policy.device)
