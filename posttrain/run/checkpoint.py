"""Checkpoints that survive being killed anywhere: written beside, then renamed."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from posttrain import ranks
from posttrain.core import Policy, Stateful
from posttrain.run.directory import file_hash, replace_folder, reset_folder

UNREADABLE = (OSError, ValueError, RuntimeError, KeyError, EOFError, pickle.UnpicklingError, SafetensorError)
POLICY, SHARDS, TRAINING, ABOUT = "policy.safetensors", "shards", "training.pt", "checkpoint.json"


class Checkpoints:
    """The folder `checkpoints/` of a run; the newest `keep` are kept.

    A model on several ranks is written by all of them, each its own shards, and may be read by another number of ranks.
    """

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep, self.step = folder, keep, 0
        self.known: frozenset[type] = frozenset()  # types of the run's own tasks, which a checkpoint may hold

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
        self.check_plain(training["memory"])
        about: dict[str, Any] = {"step": step, "version": policy.version, "ranks": ranks.world()}
        if ranks.world() == 1:
            tensors = {name: value.detach().cpu().contiguous() for name, value in policy.state_dict().items()}
            (scratch / POLICY).write_bytes(save(tensors))
            training["optimizer"] = optimizer.state_dict()
            about["parameters"] = len(tensors)
        written = io.BytesIO()  # torch.save to a file hides that a disk is full
        torch.save(training, written)
        (scratch / TRAINING).write_bytes(written.getbuffer())
        about["sha256"] = file_hashes(scratch)
        (scratch / ABOUT).write_text(json.dumps(about))
        synchronise(scratch)
        replace_folder(scratch, final)
        for old in self.complete()[: -self.keep]:
            shutil.rmtree(old)

    def check_plain(self, memory: Mapping[str, Any]) -> None:
        """Raises ValueError naming a part whose state holds what a resume would refuse to read: code can hide in it."""
        for name, state in memory.items():
            written = io.BytesIO()
            torch.save(state, written)
            written.seek(0)
            try:
                load_plain(written, self.known)
            except UNREADABLE as error:
                raise ValueError(f"the `state_dict` of {name} cannot be saved: {error}") from error

    def complete(self) -> list[Path]:
        """Checkpoint folders, oldest first."""
        found = [p for p in self.folder.glob("[0-9]*") if p.is_dir() and p.name.isdigit()]
        return sorted(found, key=lambda folder: int(folder.name))

    def latest(self) -> Path | None:
        """The newest checkpoint whose files are those that were written; damaged ones are said and passed over.

        Raises ValueError when there are checkpoints, and all of them are damaged.
        """
        damaged: dict[Path, str] = {}
        for folder in reversed(self.complete()):
            wrong = damage(folder)
            if wrong is None:
                for one, why in damaged.items() if ranks.is_primary() else ():
                    print(f"warning: checkpoint {one} is damaged: {why}; resuming from {folder}", file=sys.stderr)
                    one.rename(one.with_name(f"damaged-{one.name}"))  # so that it is not taken for the newest
                return folder
            damaged[folder] = wrong
        if damaged:
            newest, why = next(iter(damaged.items()))
            raise ValueError(f"checkpoint {newest} is damaged: {why}; and there is none before it")
        return None

    def restore(
        self, folder: Path, policy: Policy, optimizer: torch.optim.Optimizer, more: Mapping[str, Stateful]
    ) -> int:
        """The number of steps done. Raises ValueError when the checkpoint is of another model or cannot be read."""
        try:
            training = load_plain(io.BytesIO((folder / TRAINING).read_bytes()), self.known)
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


def load_weights(folder: Path, policy: Policy) -> int:
    """Give a policy of this process the weights of a checkpoint, of however many ranks; returns the steps done.

    Raises ValueError when it is damaged, or of another model.
    """
    if wrong := damage(folder):
        raise ValueError(f"checkpoint {folder} is damaged: {wrong}")
    about = json.loads((folder / ABOUT).read_text())
    try:
        policy.load_state_dict(
            load_file(folder / POLICY) if about["ranks"] == 1 else whole_tensors(folder / SHARDS, policy)
        )
    except ValueError as error:
        raise ValueError(f"checkpoint {folder} is of another model: {error}") from error
    return about["step"]


def whole_tensors(folder: Path, policy: Policy) -> dict[str, torch.Tensor]:
    """The trained parameters that several ranks have written, put together."""
    from torch.distributed.checkpoint.state_dict_loader import load as load_tensors

    state = {f"policy.{name}": torch.empty_like(value) for name, value in policy.state_dict().items()}
    load_tensors(state, checkpoint_id=str(folder), no_dist=True)
    return {name.removeprefix("policy."): value for name, value in state.items()}


def load_plain(file: io.BytesIO, known: Collection[type]) -> Any:
    """What `torch.save` has written, if it is tensors, numbers, text, and containers, dataclasses of ours or `known`
    types of these: nothing in it is run. Raises ValueError naming another type."""
    names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    allowed = {f"{one.__module__}.{one.__qualname__}": one for one in known}
    strange = [name for name in names if name not in allowed and not is_own_record(name) and not is_array(name)]
    if strange:
        raise ValueError(f"it holds a {strange[0]}, which is more than numbers, text, tensors and containers of these")
    file.seek(0)
    numbers = [type(np.dtype(letter)) for letter in np.typecodes["AllInteger"] + np.typecodes["AllFloat"] + "?"]
    with torch.serialization.safe_globals([*numbers, *(allowed.get(name) or own_type(name) for name in names)]):
        return torch.load(file, map_location="cpu", weights_only=True)


def own_type(name: str) -> Any:
    """The class of that full name, in a module that is loaded already; None if there is none."""
    module, _, last = name.rpartition(".")
    return getattr(sys.modules.get(module), last, None)


def is_array(name: str) -> bool:
    """Whether it is what numpy's numbers and arrays are read by."""
    module, _, last = name.rpartition(".")
    array = module.startswith("numpy") and last in ("_reconstruct", "scalar", "ndarray", "dtype", "_frombuffer")
    return array or module == "numpy.dtypes"


def is_own_record(name: str) -> bool:
    """Whether it is a dataclass of posttrain: making one runs nothing."""
    found = own_type(name) if name.startswith("posttrain.") else None
    return isinstance(found, type) and is_dataclass(found)


def types_in(value: Any) -> Iterator[type]:
    """The types of a value's parts that are dataclasses."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple | set | frozenset):
        for one in value:
            yield from types_in(one)
    elif is_dataclass(value) and not isinstance(value, type):
        yield type(value)
        for field in fields(value):
            yield from types_in(getattr(value, field.name))


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint's files; None if they are those that were written."""
    try:
        wanted = json.loads((folder / ABOUT).read_text()).get("sha256")
    except (OSError, ValueError, AttributeError) as error:
        return f"{ABOUT} cannot be read ({type(error).__name__}: {error})"
    if wanted is None:
        return f"{ABOUT} has no sums of its files: an earlier posttrain wrote it, which is to resume it"
    try:
        found = file_hashes(folder)
    except OSError as error:
        return str(error)
    for name, digest in wanted.items():
        if name not in found:
            return f"it has no {name}"
        if found[name] != digest:
            return f"{name} is not what was written"
    return None


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder but its description, by its path there."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != ABOUT)
    return {str(path.relative_to(folder)): file_hash(path) for path in files}


def synchronise(folder: Path) -> None:
    """Have the disk hold every file of a folder, so that what is renamed into place is whole after a crash."""
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


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
