"""Experiment trackers, each behind the extra of its name."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from posttrain.core import Metrics


class Tracker(Protocol):
    def log(self, line: Metrics) -> None: ...
    def close(self) -> None: ...


class TensorBoard:
    def __init__(self, folder: Path):
        self.writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter(str(folder / "tensorboard"))

    def log(self, line: Metrics) -> None:
        for name, value in line.items():
            self.writer.add_scalar(name, value, int(line["step"]))

    def close(self) -> None:
        self.writer.close()


class WandbLike:
    """Weights & Biases, and Trackio, which has the same calls."""

    def __init__(self, module: str, folder: Path):
        self.module = importlib.import_module(module)
        self.module.init(project="posttrain", name=folder.name)

    def log(self, line: Metrics) -> None:
        self.module.log({name: value for name, value in line.items() if name != "step"}, step=int(line["step"]))

    def close(self) -> None:
        self.module.finish()


class MLflow:
    def __init__(self, folder: Path):
        self.module: Any = importlib.import_module("mlflow")
        self.module.set_experiment("posttrain")
        self.module.start_run(run_name=folder.name)

    def log(self, line: Metrics) -> None:
        self.module.log_metrics({name.replace("/", "."): float(v) for name, v in line.items()}, step=int(line["step"]))

    def close(self) -> None:
        self.module.end_run()


TRACKERS: dict[str, Callable[[Path], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": lambda folder: WandbLike("wandb", folder),
    "trackio": lambda folder: WandbLike("trackio", folder),
    "mlflow": MLflow,
}


def trackers(names: Sequence[str], folder: Path) -> list[Tracker]:
    return [TRACKERS[name](folder) for name in names]
