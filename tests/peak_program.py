"""Trains in a process of its own and prints, as JSON, the bytes that its plan said and those that it took.

python peak_program.py grpo|sft FOLDER
"""

from __future__ import annotations

import gc
import json
import random
import sys
from pathlib import Path

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

import posttrain as pt
from posttrain import tiny
from posttrain.cli.plan import plan_of
from posttrain.data import Demonstration
from posttrain.episode import assistant
from posttrain.policy.pretrained import keep_freed_memory
from posttrain.policy.text import Sampling, TextPolicy
from posttrain.run.session import Session
from posttrain.supervised import sft


def highest() -> int:
    """Most resident memory that this process had, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def policy_of(words, hidden: int, layers: int, vocabulary: int) -> TextPolicy:
    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    torch.manual_seed(0)
    return TextPolicy(Qwen2ForCausalLM(config), words, Sampling(48))


def trained(kind: str, words, folder: Path, hidden: int, layers: int, vocabulary: int, tasks: int) -> int:
    """The planned peak of a run that has then been done."""
    policy = policy_of(words, hidden, layers, vocabulary)
    run = pt.Run(folder, steps=2, tasks=tasks, quiet=True)
    if kind == "sft":
        said = "12 + 34 = 46, " * 6
        items = [Demonstration((pt.user(f"what is {i}"), assistant(said))) for i in range(2 * tasks)]
        planned = plan_of(Session(run, policy, items, kind="sft")).footprint.peak
        gc.collect()
        sft(policy, items, run)
    else:
        draw = random.Random(0)
        recipe = pt.grpo(lambda group: [pt.Score(draw.random()) for _ in group], samples=4)
        items = [pt.Task(str(i), (pt.user(f"what is {i}"),), None) for i in range(2 * tasks)]
        planned = plan_of(Session(run, policy, items, recipe)).footprint.peak
        pt.train(policy, items, recipe, run)
    return planned


if __name__ == "__main__":
    kind, folder = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    keep_freed_memory()
    words = tiny.tokenizer()
    trained(kind, words, folder / "warm", 32, 1, len(words), 1)  # what is loaded on first use
    gc.collect()
    base = highest()
    planned = trained(kind, words, folder / "run", 256, 4, 4096, 8)
    print(json.dumps({"planned": planned, "measured": highest() - base}))
