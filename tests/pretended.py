"""A GPU that is not there: tensors that say they are on `cuda`, hold their values on the CPU, and refuse to be mixed.

    with Pretended() as gpu:
        move(policy.model, "cuda")

Inside, everything runs as it would on a GPU as far as devices go: an operation on tensors of both devices raises, what
is read by `.item()` or copied to the CPU is counted in `gpu.waits`. Values are the CPU's, and so is the speed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _DummyPrivateUse1Hook,
    _setup_privateuseone_for_python_backend,
)

NAME = "pretend"
MATH = 0  # of torch's choice among kernels of attention
ATEN = torch.ops.aten
READS = (ATEN._local_scalar_dense.default, ATEN.item.default, ATEN.is_nonzero.default)


class Module(_DummyBackendModule):
    """What torch asks of a kind of device. Outside of tests that name it there is none, so that nothing picks it."""

    def is_available(self) -> bool:
        return False

    def device_count(self) -> int:
        return 0

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


class Hook(_DummyPrivateUse1Hook):
    def is_available(self) -> bool:
        return False


_setup_privateuseone_for_python_backend(NAME, Module(), Hook())


class Far(Tensor):
    """A tensor on the pretended GPU."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Far:
        with torch.inference_mode(False):
            made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
                cls,
                inner.shape,
                strides=inner.stride(),
                storage_offset=inner.storage_offset(),
                dtype=inner.dtype,
                device=torch.device(NAME, 0),
                requires_grad=False,
            )
        made.inner = inner
        return made

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"far {self.inner!r}"

    def tolist(self) -> Any:
        return self.detach().cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {}, None)


class Pretended(TorchDispatchMode):
    """While it is entered there is a GPU, of which `waits` counts the times that the CPU read something."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = 0

    def __enter__(self) -> Pretended:
        self.before = torch._C._only_lift_cpu_tensors()  # type: ignore[attr-defined]
        torch._C._set_only_lift_cpu_tensors(True)  # type: ignore[attr-defined]  # torch.tensor(..., device=...) then asks us
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch._C._set_only_lift_cpu_tensors(self.before)  # type: ignore[attr-defined]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {}, self)


def run(func: Any, args: Any, kwargs: dict[str, Any], gpu: Pretended | None) -> Any:
    """One operation on the CPU, its results on the device that the GPU would have them on."""
    tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
    far = [one for one in tensors if isinstance(one, Far)]
    to = next((one.type for one in tree_leaves((args, kwargs)) if isinstance(one, torch.device)), None)
    moving = func in (
        ATEN._to_copy.default,
        ATEN.copy_.default,
        *(getattr(ATEN.to, kind) for kind in ATEN.to.overloads()),
    )
    indexing = func in (ATEN.index.Tensor, ATEN.index_put.default, ATEN.index_put_.default)
    strangers = [one for one in tensors if not isinstance(one, Far) and one.dim()]
    if far and strangers and not moving and not (indexing and isinstance(args[0], Far)):
        raise RuntimeError(f"{func}: expected all tensors to be on the same device, found cuda:0 and cpu")
    if indexing and far and not isinstance(args[0], Far):
        raise RuntimeError(f"{func}: indices are on cuda:0 and the tensor on the CPU")
    reads = func in READS or (moving and far and (to == "cpu" or args[0] not in far))
    waits = far and (reads or func in (ATEN.nonzero.default, ATEN._unique2.default))
    if gpu and waits:
        gpu.waits += 1
    near_args, near_kwargs = tree_map(near, (args, kwargs))
    if func is ATEN._fused_sdp_choice.default:
        return MATH
    if func is ATEN.bmm.dtype:
        return Far(torch.bmm(near_args[0].float(), near_args[1].float()))
    found = func(*near_args, **near_kwargs)
    if func._schema.name.endswith("_") and not func._schema.name.endswith("__"):
        return args[0] if func._schema.returns else None
    on_gpu = to == NAME if to else bool(far)
    return tree_map(lambda one: Far(one) if isinstance(one, Tensor) else one, found) if on_gpu else found


def near(one: Any) -> Any:
    return one.inner if isinstance(one, Far) else torch.device("cpu") if isinstance(one, torch.device) else one


def move(model: nn.Module, device: torch.device) -> None:
    """`model.to(device)`, which cannot exchange tensors for those of another kind."""
    moved: dict[int, Any] = {}  # tied parameters stay tied
    for module in model.modules():
        for name, p in module._parameters.items():
            if p is not None:
                moved.setdefault(id(p), nn.Parameter(p.detach().to(device), p.requires_grad))
                module._parameters[name] = moved[id(p)]
        for name, value in module._buffers.items():
            module._buffers[name] = None if value is None else value.to(device)
