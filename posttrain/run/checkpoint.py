"""Checkpoints that survive being killed anywhere: written beside, then renamed."""

from __future__ import annotations

import io
import json
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from posttrain import ranks
from posttrain.core import Policy, Stateful
from posttrain.run.directory import replace_folder, reset_folder

UNREADABLE = (OSError, ValueError, RuntimeError, KeyError, EOFError, pickle.UnpicklingError, SafetensorError)
POLICY, SHARDS, TRAINING, ABOUT = "policy.safetensors", "shards", "training.pt", "checkpoint.json"


class Checkpoints:
    """The folder `checkpoints/` of a run; the newest `keep` are kept.

    A model on several ranks is written by all of them, each its own shards, and may be read by another number of ranks.
    """

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep, self.step = folder, keep, 0

    def save(self, step: int, policy: Policy, optimizer: torch.optim.Optimizer, more: Mapping[str, Stateful]) -> None:
        """Raises OSError naming the folder when the disk is full or not writable; older checkpoints stay."""
        scratch, final = self.folder / f".writing-{step:06d}", self.folder / f"{step:06d}"
        try:
            ranks.run_on_primary(lambda: reset_folder(scratch), "for the checkpoint's folder")
            if ranks.world() > 1:
                save_shards(scratch / SHARDS, policy, optimizer)
            ranks.run_on_primary(
                lambda: self.finish(step, scratch, final, policy, optimizer, more), "for the checkpoint"
            )
        except OSError as error:
            raise OSError(
                f"could not write checkpoint {final}: {error}. Free some space, then continue with `resume=True`"
            ) from error
        self.step = step

    def finish(
        self,
        step: int,
        scratch: Path,
        final: Path,
        policy: Policy,
        optimizer: torch.optim.Optimizer,
        more: Mapping[str, Stateful],
    ) -> None:
        """Write what one rank writes, put the checkpoint in its place, and delete those that are too old."""
        training: dict[str, Any] = {"memory": {name: part.state_dict() for name, part in more.items()}}
        about = {"step": step, "version": policy.version, "ranks": ranks.world()}
        if ranks.world() == 1:
            tensors = {name: value.detach().cpu().contiguous() for name, value in policy.state_dict().items()}
            (scratch / POLICY).write_bytes(save(tensors))
            training["optimizer"] = optimizer.state_dict()
            about["parameters"] = len(tensors)
        written = io.BytesIO()  # torch.save to a file hides that a disk is full
        torch.save(training, written)
        (scratch / TRAINING).write_bytes(written.getbuffer())
        (scratch / ABOUT).write_text(json.dumps(about))
        replace_folder(scratch, final)
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
        parts = SHARDS if (found[-1] / SHARDS).is_dir() else POLICY
        missing = [name for name in (parts, TRAINING, ABOUT) if not (found[-1] / name).exists()]
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
            training = torch.load(folder / TRAINING, map_location="cpu", weights_only=False)
            about = json.loads((folder / ABOUT).read_text())
            tensors = load_file(folder / POLICY) if about["ranks"] == 1 else {}
        except UNREADABLE as error:
            raise ValueError(
                f"checkpoint {folder} cannot be read: {error}; if damaged, move it away to resume from the one before"
            ) from error
        if (about["ranks"] == 1) != (ranks.world() == 1):
            raise ValueError(
                f"checkpoint {folder} was written by {about['ranks']} ranks and cannot be read by {ranks.world()}: "
                f"resume with {'one process' if about['ranks'] == 1 else 'two ranks or more (torchrun)'}"
            )
        if len(tensors) != about.get("parameters", 0):
            raise ValueError(f"checkpoint {folder} is incomplete: {len(tensors)} of {about['parameters']} parameters")
        try:
            if tensors:
                policy.load_state_dict(tensors)
                optimizer.load_state_dict(training["optimizer"])
            else:
                load_shards(folder / SHARDS, policy, optimizer)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}; give the `model` that this run was started with") from error
        policy.version = about["version"]
        if ranks.is_primary() and set(more) != set(training["memory"]):
            strange = sorted(set(more) ^ set(training["memory"]))
            raise ValueError(
                f"checkpoint {folder} and this run differ in {', '.join(strange)}: resume it as it was started"
            )
        for name, part in more.items():
            part.load_state_dict(training["memory"][name])
        self.step = about["step"]
        return self.step


def save_shards(folder: Path, policy: Policy, optimizer: torch.optim.Optimizer) -> None:
    """What each rank has of the trained parameters and of the optimizer, by torch.distributed.checkpoint."""
    from torch.distributed.checkpoint.state_dict_saver import save as save_tensors

    save_tensors(sharded_state(policy, optimizer), checkpoint_id=str(folder), process_group=ranks.talk[0])


def load_shards(folder: Path, policy: Policy, optimizer: torch.optim.Optimizer) -> None:
    """Read them again, in place. Raises ValueError for the checkpoint of another model."""
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import load as load_tensors

    written = FileSystemReader(str(folder)).read_metadata().state_dict_metadata
    if any(name.startswith("optimizer.") for name in written):
        allocate_optimizer_state(optimizer)
    state = sharded_state(policy, optimizer)
    wrong = [name for name, value in state.items() if getattr(written.get(name), "size", None) != value.shape]
    if wrong:
        raise ValueError(f"the checkpoint is of another model: it has no {wrong[0]} of shape {state[wrong[0]].shape}")
    load_tensors(state, checkpoint_id=str(folder), process_group=ranks.talk[0])


def sharded_state(policy: Policy, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The tensors themselves, not copies, by name; an optimizer's by the place of their parameter."""
    state = {f"policy.{name}": value for name, value in policy.state_dict().items()}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for i, p in enumerate(parameters):
        state |= {f"optimizer.{i}.{name}": value for name, value in optimizer.state.get(p, {}).items()}
    return state


def allocate_optimizer_state(optimizer: torch.optim.Optimizer) -> None:
    """Have a fresh optimizer make its tensors, by a step that changes nothing."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for p in group["params"]:
            p.grad = torch.zeros_like(p)
    optimizer.step()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    optimizer.zero_grad()
