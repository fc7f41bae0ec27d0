"""What vLLM's workers do when weights are sent: `vllm serve --worker-extension-cls posttrain_vllm.Weights`.

This file imports nothing of posttrain: vLLM may have an environment of its own, with this folder on its PYTHONPATH.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Weights:
    """Mixed into vLLM's worker, whose `model_runner` and `reload_weights` it uses."""

    held = -1  # version of the weights that it has; -1: those that it was started with

    def posttrain_load(self, folder: str, version: int, names: list[str]) -> dict[str, Any]:
        """Read the safetensors files of a folder. Returns the sums of the named tensors as they were read."""
        sums: dict[str, tuple[float, float]] = {}
        dtype = self.model_config.dtype  # type: ignore[attr-defined]
        self.reload_weights(weights_iterator=read_tensors(folder, dtype, set(names), sums))  # type: ignore[attr-defined]
        self.held = version
        return {"version": version, "sums": sums}

    def posttrain_held(self, names: list[str]) -> dict[str, Any]:
        """The version, and the sums and sizes of those tensors that the model keeps under their own names.

        Fused and repacked ones are not among them; of one that is split over several workers, this worker's part is.
        """
        own = dict(self.model_runner.model.named_parameters())  # type: ignore[attr-defined]
        kept = {name: own[name] for name in names if name in own and own[name].numel()}
        return {"version": self.held, "sums": {name: [*tensor_sums(p), p.numel()] for name, p in kept.items()}}


def read_tensors(
    folder: str, dtype: Any, names: set[str], sums: dict[str, tuple[float, float]]
) -> Iterator[tuple[str, Any]]:
    from safetensors import safe_open

    for file in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(str(file), framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a mapping)
                tensor = tensors.get_tensor(name)
                if name in names:
                    sums[name] = tensor_sums(tensor.to(dtype))
                yield name, tensor


def tensor_sums(tensor: Any) -> tuple[float, float]:
    whole = tensor.detach().double()
    return float(whole.sum()), float(whole.abs().sum())
