"""The arm that reads DNA alone: attention pooling of a frozen encoder's features, and a classifier of the labels.

    z(s) = Attention(query, h(s), h(s))     one learned query, 8 heads, over the tokens of a sequence
    p    = softmax( W2 Dropout(ReLU(W1 [z(reference), z(variant)])) )

As released, with dropout 0.1; the width between W1 and W2 is the encoder's (ours).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

import posttrain as pt
from posttrain.policy.injection import FrozenEncoder
from posttrain.policy.pretrained import choose_device
from posttrain.systems.bioreason.data import Variant
from posttrain.systems.bioreason.measures import measures

HEADS, DROPOUT = 8, 0.1
WEIGHTS, ABOUT, ENCODER = "classifier.safetensors", "classifier.json", "dna"
AT_ONCE = 64  # variants that are classified together


class PooledClassifier(nn.Module):
    """Features of two sequences to logits of the classes. `width` is the features'."""

    def __init__(self, width: int, classes: int):
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, 1, width) / width**0.5)
        self.attention = nn.MultiheadAttention(width, HEADS, batch_first=True)
        self.out = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Dropout(DROPOUT), nn.Linear(width, classes))

    def pool(self, features: Sequence[Tensor]) -> Tensor:
        """[B] of [tokens, D] -> [B, D]."""
        lengths = torch.tensor([len(one) for one in features], device=self.query.device)
        padded = pad_sequence(list(features), batch_first=True)
        beyond = torch.arange(padded.shape[1], device=self.query.device)[None] >= lengths[:, None]
        query = self.query.expand(len(features), 1, -1)
        return self.attention(query, padded, padded, key_padding_mask=beyond, need_weights=False)[0][:, 0]

    def forward(self, reference: Sequence[Tensor], variant: Sequence[Tensor]) -> Tensor:
        return self.out(torch.cat([self.pool(reference), self.pool(variant)], dim=-1))


class DnaClassifier:
    """An encoder that does not learn, and a classifier that does, as a session trains and saves it.

    Raises ValueError for an encoder whose width 8 heads do not divide.
    """

    def __init__(self, encoder: pt.DnaEncoder, labels: Sequence[str], seed: int = 0, device: str | None = None):
        if encoder.width % HEADS:
            raise ValueError(f"`dna_encoder`: {HEADS} heads do not divide its width of {encoder.width}")
        self.frozen, self.labels, self.version = FrozenEncoder(encoder), tuple(labels), 0
        self.device = choose_device(device)
        self.read = cache(lambda sequence: encoder.read({"dna": sequence}))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(pt.mix(seed, "classifier") % 2**32)
            self.model = PooledClassifier(encoder.width, len(self.labels)).to(self.device).eval()

    def logits(self, some: Sequence[Variant]) -> Tensor:
        """[B, classes]."""
        both = [self.read(sequence) for one in some for sequence in (one.reference, one.variant)]
        features = self.frozen.features(both, self.device)
        return self.model(features[::2], features[1::2])

    def loss(self, some: Sequence[Variant]) -> Tensor:
        targets = torch.tensor([self.labels.index(one.label) for one in some], device=self.device)
        return nn.functional.cross_entropy(self.logits(some), targets)

    @torch.no_grad()
    def predictions(self, some: Sequence[Variant]) -> list[str]:
        pieces = [some[start : start + AT_ONCE] for start in range(0, len(some), AT_ONCE)]
        return [self.labels[i] for piece in pieces for i in self.logits(piece).argmax(-1).tolist()]

    def measures(self, some: Sequence[Variant]) -> dict[str, float]:
        return measures([one.label for one in some], self.predictions(some))

    def step(self, optimizer: torch.optim.Optimizer, some: Sequence[Variant], max_norm: float = 1.0) -> pt.Metrics:
        """One optimizer step; dropout draws from the global generator."""
        self.model.train()
        optimizer.zero_grad()
        loss = self.loss(some)
        loss.backward()
        self.model.eval()
        self.version += 1
        return {"loss": loss.item(), **pt.descend(optimizer, max_norm)}

    # ---- as a session wants it

    def check(self, tasks: Sequence[pt.Task]) -> None:
        """There are no prompts: `require_readable` has looked at the sequences."""

    def parameters(self) -> list[nn.Parameter]:
        return list(self.model.parameters())

    def state_dict(self) -> dict[str, Tensor]:
        return self.model.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.model.load_state_dict(state)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        encoder = self.frozen.encoder
        encoder.save(folder / ENCODER, encoder.state_dict())
        save_file({name: value.cpu() for name, value in self.state_dict().items()}, folder / WEIGHTS)
        (folder / ABOUT).write_text(json.dumps({"labels": self.labels, **encoder.settings()}, indent=2) + "\n")

    @classmethod
    def load(cls, folder: str | Path, device: str | None = None) -> DnaClassifier:
        """Raises ValueError for a folder that holds none."""
        path = Path(folder)
        if not (path / ABOUT).is_file():
            raise ValueError(f"`model={folder}`: it holds no {ABOUT}; stage pool makes one")
        about = json.loads((path / ABOUT).read_text())
        made = cls(pt.DnaEncoder(str(path / ENCODER), about["cut"], about["longest"]), about["labels"], device=device)
        made.load_state_dict(load_file(path / WEIGHTS))
        return made


def require_readable(encoder: pt.DnaEncoder, found: Sequence[Variant]) -> None:
    """Raises ValueError naming file and line of a sequence that the encoder cannot be shown."""
    for one in found:
        try:
            for sequence in (one.reference, one.variant):
                encoder.read({"dna": sequence})
        except ValueError as error:
            raise ValueError(f"{one.place}: {error}") from error


def learn_in_memory(
    model: DnaClassifier, found: Sequence[Variant], *, steps: int, rows: int, rate: float, seed: int
) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    source = pt.ShuffledSource(found, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(pt.mix(seed, "dropout") % 2**32)
        for _ in range(steps):
            model.step(optimizer, source.take(rows))


def learn_classifier(
    model: DnaClassifier, found: Sequence[Variant], run: pt.Run, held_out: Mapping[str, Sequence[Variant]]
) -> pt.Session:
    """In a run directory, `run.tasks` variants in a step; accuracy, precision, recall and F1 of the held-out sets."""
    learner: Any = model
    with pt.Session(run, learner, found, kind="sft", held_out=held_out, measure=model.measures) as session:
        for _ in session:
            some = session.source.take(run.tasks)
            session.log(model.step(session.optimizer, some, run.max_norm) | {"rows": float(len(some))})
    return session
