"""Which test statements a theorem may have been taken from: the nearest few, for a judge to look at."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from posttrain.grade.text import normal_text

MOST = 5  # test statements recalled for one theorem
LEAST_COSINE = 0.7  # released, for sentence embeddings
LEAST_SHARED = 0.5  # ours, for n-grams
WIDTH = 3  # words of an n-gram

Recall = Callable[[Sequence[str], Sequence[str]], list[list[int]]]  # texts, tests -> for each text, tests by nearness


def by_words(texts: Sequence[str], tests: Sequence[str]) -> list[list[int]]:
    """By the share of the shorter text's word n-grams that the other has too; shorter texts count as one n-gram."""
    against = [grams(test) for test in tests]
    found = []
    for text in texts:
        own = grams(text)
        found.append(nearest([overlap(own, other) for other in against], LEAST_SHARED))
    return found


def grams(text: str) -> set[tuple[str, ...]]:
    words = normal_text(text).split()
    return {tuple(words[i : i + WIDTH]) for i in range(max(len(words) - WIDTH + 1, 1))}


def overlap(a: set[tuple[str, ...]], b: set[tuple[str, ...]]) -> float:
    return len(a & b) / min(len(a), len(b))


def nearest(likeness: Sequence[float], least: float) -> list[int]:
    """At most `MOST` indices of a likeness above `least`, the most alike first."""
    order = sorted(range(len(likeness)), key=lambda i: -likeness[i])
    return [i for i in order[:MOST] if likeness[i] > least]


def by_encoder(encoder: str, device: str | None = None) -> Recall:
    """By the cosine of sentence embeddings: mean-pooled hidden states of a Hugging Face encoder (Hub id or folder).

    The release takes sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2, which is of this kind.
    Raises ValueError when the encoder cannot be loaded.
    """
    from transformers import AutoModel

    from posttrain.policy.pretrained import checkpoint_path, choose_device, load_pretrained, load_tokenizer

    path = checkpoint_path(encoder)
    model, words = (
        load_pretrained(AutoModel, path, fresh=["pooler"]).eval().to(choose_device(device)),
        load_tokenizer(path),
    )

    def recall(texts: Sequence[str], tests: Sequence[str]) -> list[list[int]]:
        cosines = embeddings(model, words, texts) @ embeddings(model, words, tests).T
        return [nearest(row.tolist(), LEAST_COSINE) for row in cosines]

    return recall


@torch.no_grad()
def embeddings(model: torch.nn.Module, words: object, texts: Sequence[str], size: int = 64) -> Tensor:
    """[B] texts -> [B, D] embeddings of length one, on the CPU."""
    out = []
    device = next(model.parameters()).device
    longest = min(getattr(model.config, "max_position_embeddings", 512), 512)
    for start in range(0, len(texts), size):
        some = list(texts[start : start + size])
        batch = words(some, padding=True, truncation=True, max_length=longest, return_tensors="pt").to(device)  # type: ignore[operator]
        hidden = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        weight = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        out.append(((hidden * weight).sum(1) / weight.sum(1)).cpu())
    return torch.nn.functional.normalize(torch.cat(out).float(), dim=-1)
