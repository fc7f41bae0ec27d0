"""Checkpoints that survive being killed anywhere: written beside, then renamed."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from posttrain.core import Policy, Stateful

UNREADABLE = (OSError, ValueError, RuntimeError, KeyError, EOFError, pickle.UnpicklingError, SafetensorError)
FILES = ("policy.safetensors", "training.pt", "checkpoint.json")


class Checkpoints:
    """The folder `checkpoints/` of a run; the newest `keep` are kept."""

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep, self.step = folder, keep, 0

    def save(self, step: int, policy: Policy, optimizer: torch.optim.Optimizer, more: Mapping[str, Stateful]) -> None:
        """Raises OSError naming the folder when the disk is full or not writable; older checkpoints stay."""
        scratch, final = self.folder / f".writing-{step:06d}", self.folder / f"{step:06d}"
        shutil.rmtree(scratch, ignore_errors=True)
        try:
            scratch.mkdir(parents=True)
            tensors = {name: value.detach().cpu().contiguous() for name, value in policy.state_dict().items()}
            (scratch / FILES[0]).write_bytes(save(tensors))
            memory = {name: part.state_dict() for name, part in more.items()}
            training = io.BytesIO()  # torch.save to a file hides that a disk is full
            torch.save({"optimizer": optimizer.state_dict(), "memory": memory}, training)
            (scratch / FILES[1]).write_bytes(training.getbuffer())
            about = {"step": step, "version": policy.version, "parameters": len(tensors)}
            (scratch / FILES[2]).write_text(json.dumps(about))
            shutil.rmtree(final, ignore_errors=True)
            os.replace(scratch, final)
        except OSError as error:
            raise OSError(
                f"could not write checkpoint {final}: {error}. Free some space, then continue with --resume"
            ) from error
        self.step = step
        for old in self.complete()[: -self.keep]:
            shutil.rmtree(old)

    def complete(self) -> list[Path]:
        """Checkpoint folders, oldest first."""
        return sorted(p for p in self.folder.glob("[0-9]*") if p.is_dir()) if self.folder.is_dir() else []

    def latest(self) -> Path | None:
        """Raises ValueError when the newest checkpoint lacks a file."""
        found = self.complete()
        if not found:
            return None
        missing = [name for name in FILES if not (found[-1] / name).is_file()]
        if missing:
            raise ValueError(
                f"checkpoint {found[-1]} is incomplete: it has no {', '.join(missing)}; delete the folder to resume "
                "from the one before it"
            )
        return found[-1]

    def restore(
        self, folder: Path, policy: Policy, optimizer: torch.optim.Optimizer, more: Mapping[str, Stateful]
    ) -> int:
        """The number of steps done. Raises ValueError when the checkpoint is of another model or cannot be read."""
        try:
            tensors = load_file(folder / FILES[0])
            training = torch.load(folder / FILES[1], map_location="cpu", weights_only=False)
            about = json.loads((folder / FILES[2]).read_text())
        except UNREADABLE as error:
            raise ValueError(
                f"checkpoint {folder} cannot be read: {error}; if damaged, move it away to resume from the one before"
            ) from error
        if len(tensors) != about["parameters"]:
            raise ValueError(f"checkpoint {folder} is incomplete: {len(tensors)} of {about['parameters']} parameters")
        try:
            policy.load_state_dict(tensors)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}; give the --model this run was started with") from error
        policy.version = about["version"]
        optimizer.load_state_dict(training["optimizer"])
        for name, part in more.items():
            part.load_state_dict(training["memory"][name])
        self.step = about["step"]
        return self.step


def stateful(thing: Any, path: str = "recipe", seen: set[int] | None = None) -> dict[str, Stateful]:
    """Every part of a recipe that remembers something, once, by its place: in fields, closures, mappings, sequences."""
    seen = set() if seen is None else seen
    if id(thing) in seen:
        return {}
    seen.add(id(thing))
    if hasattr(thing, "state_dict") and hasattr(thing, "load_state_dict"):
        return {} if hasattr(thing, "version") else {path: thing}  # a model in a recipe (it counts its steps) is frozen
    found: dict[str, Stateful] = {}
    for name, value in held(thing).items():
        found |= stateful(value, f"{path}.{name}", seen)
    return found


def held(thing: Any) -> dict[str, Any]:
    """What a part is made of, by name."""
    if isinstance(thing, FunctionType) and thing.__closure__:
        cells = zip(thing.__code__.co_freevars, thing.__closure__, strict=True)
        return {name: cell.cell_contents for name, cell in cells}
    if is_dataclass(thing) and not isinstance(thing, type):
        return {f.name: getattr(thing, f.name) for f in fields(thing)}
    if isinstance(thing, Mapping):
        return {str(key): value for key, value in thing.items()}
    if isinstance(thing, list | tuple):
        return {str(i): value for i, value in enumerate(thing)}
    return {}
