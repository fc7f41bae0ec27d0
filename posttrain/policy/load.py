"""A text or vision policy from a Hub id, a local checkpoint, a GGUF file, or the models `tiny` and `smollm2`."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from posttrain.policy.abilities import choose_bf16
from posttrain.policy.checkpoint_folder import quiet, remember_dtype
from posttrain.policy.text import Sampling, TextPolicy

if TYPE_CHECKING:
    from posttrain.policy.pixels import Preprocessing
    from posttrain.policy.vision import VisionPolicy

Made = TypeVar("Made", bound=TextPolicy)

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # of glibc's malloc.h

ONE_THREAD = 2_000_000  # parameters; below, more threads win nothing (measured: docs/performance.md)


def text(
    model: str = "tiny",
    *,
    max_new: int = 256,
    temperature: float = 1.0,
    stop: tuple[str, ...] = (),
    template: str | None = None,
    lora: int = 0,
    bf16: bool = False,
    checkpointing: bool = False,
    device: str | None = None,
    threads: int | None = None,
    weights: bool = True,
) -> TextPolicy:
    """A trainable text policy.

    model          Hub id, folder of a Hugging Face checkpoint, GGUF file, `tiny`, or `smollm2` (SmolLM2-135M-Instruct)
    bf16           run the model in bfloat16, except on a CPU that it makes slower; weights stay float32
    lora           rank of a LoRA adapter on every linear layer; 0 trains all parameters
    checkpointing  recompute activations in the backward pass: less memory, about a third more time
    weights        False: read only the configuration and the tokenizer; the model lies on torch's `meta` device, takes
                   no memory and can be planned but not run
    Raises ValueError naming what is missing: the folder, the extra, the template, the positions for `max_new`.
    """
    from transformers import AutoModelForCausalLM

    path = checkpoint_path(model)
    network = prepare_network(
        load_pretrained(AutoModelForCausalLM, path, weights, whole=True), lora, checkpointing, device, threads
    )
    sampling = Sampling(max_new, temperature, stop)
    bf16 = choose_bf16(bf16, network.device)
    return require_room(TextPolicy(network, load_tokenizer(path), sampling, template=template, bf16=bf16), model)


def vision(
    model: str,
    *,
    max_new: int = 256,
    temperature: float = 1.0,
    stop: tuple[str, ...] = (),
    template: str | None = None,
    lora: int = 0,
    bf16: bool = False,
    checkpointing: bool = False,
    device: str | None = None,
    threads: int | None = None,
    weights: bool = True,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
) -> VisionPolicy:
    """A trainable policy that sees pictures: a model of Qwen's pattern (Qwen2-VL, Qwen2.5-VL, Qwen3-VL).

    min_pixels, max_pixels  of a resized picture; the checkpoint's own if not given
    Other arguments are those of `text`. Raises ValueError also for a model of another pattern.
    """
    from transformers import AutoModelForImageTextToText

    from posttrain.policy.vision import VisionPolicy

    path = checkpoint_path(model)
    preprocessing = with_pixel_limits(load_preprocessing(path), min_pixels, max_pixels)
    network = prepare_network(
        load_pretrained(AutoModelForImageTextToText, path, weights, whole=True), lora, checkpointing, device, threads
    )
    sampling = Sampling(max_new, temperature, stop)
    options: dict[str, Any] = {"template": template, "bf16": choose_bf16(bf16, network.device)}
    return require_room(VisionPolicy(network, load_tokenizer(path), preprocessing, sampling, **options), model)


def load_policy(
    model: str, *, min_pixels: int | None = None, max_pixels: int | None = None, **options: Any
) -> TextPolicy:
    """`vision` for a checkpoint that sees pictures as Qwen's models do, `text` for any other."""
    if sees_pictures(checkpoint_path(model)):
        return vision(model, min_pixels=min_pixels, max_pixels=max_pixels, **options)
    if min_pixels is not None or max_pixels is not None:
        raise ValueError(f"`min_pixels` and `max_pixels`: the model {model} sees no pictures")
    return text(model, **options)


def sees_pictures(path: str) -> bool:
    """Whether a checkpoint's configuration is of a vision-language model of Qwen's pattern."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError):
        return False  # loading it will say what is wrong
    return hasattr(getattr(config, "vision_config", None), "spatial_merge_size") and hasattr(config, "image_token_id")


def prepare_network(network: Any, lora: int, checkpointing: bool, device: str | None, threads: int | None) -> Any:
    """A loaded model on its device, with an adapter if it is to have one."""
    set_threads(network, threads)
    place(network, choose_device(device))
    keep_freed_memory()
    if checkpointing:
        network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return add_adapter(network, lora) if lora else network


def require_room(policy: Made, model: str) -> Made:
    """The policy, whose model must have positions for its replies."""
    if policy.sampling.max_new >= policy.context:
        raise ValueError(
            f"max_new={policy.sampling.max_new} tokens, but the model {model!r} has {policy.context} positions"
        )
    return policy


def checkpoint_path(model: str) -> str:
    """The folder or Hub id that a model argument names; of a GGUF file, the folder that it was converted to.

    Raises ValueError for a folder that holds no checkpoint, and for a package that is missing.
    """
    if model == "tiny":
        from posttrain import tiny

        return str(tiny.tiny_checkpoint())
    folder = Path(model).expanduser()
    if model == "smollm2" or (folder.suffix == ".gguf" and folder.is_file()):
        from posttrain.policy import gguf

        return str(gguf.checkpoint(gguf.installed_smollm2() if model == "smollm2" else folder))
    if folder.is_dir() and not (folder / "config.json").is_file():
        inner = [str(p.parent) for p in folder.glob("*/config.json")] + [str(p) for p in folder.glob("*.gguf")]
        hint = f"; did you mean {inner[0]}?" if inner else ""
        raise ValueError(f"`model={model}`: the folder holds no config.json, so it is not a checkpoint{hint}")
    looks_local = model.startswith((".", "/", "~")) or model.count("/") > 1 or model.endswith(".gguf")
    if not folder.exists() and looks_local:
        raise ValueError(f"`model={model}`: there is no such folder or file")
    return str(folder) if folder.is_dir() else model


def place(network: Any, device: torch.device) -> None:
    """Move a model to its device, if it has weights."""
    if network.device.type != "meta":
        network.to(device)


def load_pretrained(kind: Any, path: str, weights: bool = True, *, whole: bool = False, **options: Any) -> Any:
    """`kind.from_pretrained` in float32, with an error that says where it looked; without `weights` on `meta`.

    It will be saved in the dtype of its configuration again. `whole`: a checkpoint that lacks a parameter, which would
    be drawn at random, is refused: a reward model has no head of a language model.
    """
    from transformers import AutoConfig

    try:
        with quiet():
            if weights:
                model, found = kind.from_pretrained(path, dtype=torch.float32, output_loading_info=True, **options)
                if whole and found["missing_keys"]:
                    name = min(found["missing_keys"])
                    raise ValueError(f"it lacks {name}, which would be random numbers: it is no language model's")
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


def load_preprocessing(path: str) -> Preprocessing:
    from transformers.image_processing_base import ImageProcessingMixin

    from posttrain.policy.pixels import Preprocessing

    try:
        settings, _ = ImageProcessingMixin.get_image_processor_dict(path)
        return Preprocessing.of(settings)
    except (OSError, ValueError) as error:
        raise ValueError(f"`model={path}`: {first_line(error)}") from error


def with_pixel_limits(preprocessing: Preprocessing, least: int | None, most: int | None) -> Preprocessing:
    """With these limits of a resized picture in the place of its own; raises ValueError where no picture is within."""
    least = preprocessing.least if least is None else least
    most = preprocessing.most if most is None else most
    token = (preprocessing.patch * preprocessing.merge) ** 2
    if not 0 < least <= most or most < token:
        raise ValueError(
            f"`min_pixels={least}` `max_pixels={most}`: the fewest pixels of a resized picture are at least 1, the "
            f"most not fewer than these, nor than the {token} of one token"
        )
    return replace(preprocessing, least=least, most=most)


def first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def add_adapter(network: Any, rank: int) -> Any:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ValueError("`lora` needs the extra: pip install 'posttrain[lora]'") from error
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(network, config)


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
