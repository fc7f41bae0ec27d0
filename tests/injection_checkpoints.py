"""Checkpoints of random weights in the published formats whose policies are shown DNA and points."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import DEVICE

import posttrain as pt
from posttrain import tiny

LETTERS = "ATCGN"


def esm(folder: Path, size: int = 3, positions: str = "rotary") -> str:
    """An ESM checkpoint over k-mers, as Nucleotide Transformer's first version is published with 6-mers."""
    from transformers import EsmConfig, EsmForMaskedLM, EsmTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    mers = map("".join, itertools.product("ATCG", repeat=size))
    words = ["<unk>", "<pad>", "<mask>", "<cls>", "<eos>", "<bos>", *mers, *LETTERS]
    (folder / "vocab.txt").write_text("\n".join(words))
    EsmTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = EsmConfig(
        vocab_size=len(words),
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=130,
        position_embedding_type=positions,
        pad_token_id=1,
        mask_token_id=2,
        token_dropout=False,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.1,
    )
    EsmForMaskedLM(config).save_pretrained(folder)
    return str(folder)


def text_checkpoint(folder: Path) -> str:
    words = tiny.tokenizer()
    tiny.network(words, 0, hidden=32).save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder)


def policy(folder: Path, model: str | None = None, **options: Any) -> Any:
    """A policy that is shown DNA and clouds of five points."""
    encoders = [pt.DnaEncoder(esm(folder / "esm"), longest=128), pt.PointEncoder(5, 2)]
    name = model or text_checkpoint(folder / "text")
    options = {"max_new": 6, "device": DEVICE, "threads": 1, **options}
    return pt.inject(name, encoders, **options)


def dna(sequence: Any) -> dict[str, Any]:
    return {"type": "dna", "dna": sequence}


def points(seed: int = 0) -> dict[str, Any]:
    return {"type": "points", "points": np.random.default_rng(seed).normal(size=(5, 3))}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def task(key: str, *parts: Any) -> pt.Task:
    return pt.Task(key, (pt.user([*parts, text(f"what is {key}?")]),), None)


TASKS = [
    task("a", dna("ACGTAC"), dna("ACGTAA")),
    task("b b b", points()),
    task("none"),
    task("both", points(1), text("and then"), dna("ACGTTTNAC" * 4)),
    task("a", dna("ACGTAC"), dna("ACGTAT")),
]
