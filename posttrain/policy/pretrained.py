"""Checkpoints: where a model argument points, what lies there, and a loaded model on its device."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from posttrain.policy.checkpoint_folder import quiet, remember_dtype

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # of glibc's malloc.h

MODALITIES = "modalities.json"  # beside a checkpoint: the kinds of parts that its policy is shown, and their encoders

ONE_THREAD = 2_000_000  # parameters; below, more threads win nothing (measured: docs/performance.md)


def checkpoint_path(model: str) -> str:
    """The folder or Hub id that a model argument names; of a GGUF file, the folder that it was converted to.

    Raises ValueError for a folder that holds no checkpoint, and for a package that is missing.
    """
    if model == "tiny":
        from posttrain import tiny

        return str(tiny.tiny_checkpoint())
    folder = Path(model).expanduser()
    if model == "smollm2" or (folder.suffix == ".gguf" and folder.is_file()):
        from posttrain.policy import gguf_file

        return str(gguf_file.checkpoint(gguf_file.installed_smollm2() if model == "smollm2" else folder))
    if folder.is_dir() and not (folder / "config.json").is_file():
        inner = [str(p.parent) for p in folder.glob("*/config.json")] + [str(p) for p in folder.glob("*.gguf")]
        hint = f"; did you mean {inner[0]}?" if inner else ""
        raise ValueError(f"`model={model}`: the folder holds no config.json, so it is not a checkpoint{hint}")
    looks_local = model.startswith((".", "/", "~")) or model.count("/") > 1 or model.endswith(".gguf")
    if not folder.exists() and looks_local:
        raise ValueError(f"`model={model}`: there is no such folder or file")
    return str(folder) if folder.is_dir() else model


def sees_pictures(path: str) -> bool:
    """Whether a checkpoint's configuration is of a vision-language model of Qwen's pattern."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError):
        return False  # loading it will say what is wrong
    return hasattr(getattr(config, "vision_config", None), "spatial_merge_size") and hasattr(config, "image_token_id")


def has_encoders(path: str) -> bool:
    """Whether a checkpoint's policy is shown parts that its own encoders read."""
    return (Path(path) / MODALITIES).is_file()


def load_pretrained(kind: Any, path: str, weights: bool = True, *, fresh: Collection[str] = (), **options: Any) -> Any:
    """`kind.from_pretrained` in float32, with an error that says where it looked; without `weights` on `meta`.

    It will be saved in the dtype of its configuration again. A checkpoint that lacks a parameter, which would be drawn
    at random, is refused, except for those of the modules named in `fresh`: a classifier's head.
    """
    from transformers import AutoConfig

    try:
        with quiet():
            if weights:
                model, found = kind.from_pretrained(path, dtype=torch.float32, output_loading_info=True, **options)
                lacking = [name for name in sorted(found["missing_keys"]) if not {*fresh} & {*name.split(".")}]
                if lacking:
                    more = f" and {len(lacking) - 1} more parameters" if lacking[1:] else ""
                    raise ValueError(f"it lacks {lacking[0]}{more}, which would be random numbers")
                remember_dtype(model, AutoConfig.from_pretrained(path))
                return model
            config = AutoConfig.from_pretrained(path, **options)
            with torch.device("meta"):
                return kind.from_config(config, dtype=torch.float32)
    except (OSError, ValueError) as error:
        where = "the folder" if Path(path).is_dir() else "the Hugging Face Hub, or its cache on this machine,"
        raise ValueError(f"`model={path}`: {where} holds no loadable model: {first_line(error)}") from error


def load_tokenizer(path: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"`model={path}`: it has no loadable tokenizer: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def prepare_network(network: Any, lora: int, checkpointing: bool, device: str | None, threads: int | None) -> Any:
    """A loaded model on its device, with an adapter if it is to have one."""
    set_threads(network, threads)
    place(network, choose_device(device))
    keep_freed_memory()
    if checkpointing:
        network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return add_adapter(network, lora) if lora else network


def place(network: Any, device: torch.device) -> None:
    """Move a model to its device, if it has weights."""
    if network.device.type != "meta":
        network.to(device)


def choose_device(device: str | None) -> torch.device:
    """The device asked for, or the best one here."""
    if device:
        try:
            found = torch.device(device)
        except RuntimeError as error:
            raise ValueError(f"`device={device}`: such as cpu, cuda, cuda:1 or mps") from error
        if found.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"`device={device}`: torch sees no GPU here (posttrain doctor says what it sees)")
        return found
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def add_adapter(network: Any, rank: int) -> Any:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ValueError("`lora` needs the extra: pip install 'posttrain[lora]'") from error
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(network, config)


def set_threads(network: Any, threads: int | None) -> None:
    """One torch thread for small models, where two are slower, unless `threads` or OMP_NUM_THREADS says otherwise.

    By size alone, so that a resumed run adds its numbers in the same order.
    """
    if threads:
        torch.set_num_threads(threads)
    elif "OMP_NUM_THREADS" not in os.environ and sum(p.numel() for p in network.parameters()) < ONE_THREAD:
        torch.set_num_threads(1)


def keep_freed_memory() -> None:
    """Have glibc reuse large freed blocks, which it would hand back to the system after every tensor.

    Taking them again costs a page fault for every 4 KiB: up to half of the time of a backward pass on the CPU.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(M_MMAP_THRESHOLD, 2**27)
            mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
            mallopt(M_ARENA_MAX, 1)  # the sampler's thread takes from the same blocks
