"""Masked-token pretraining of a DNA encoder in Nucleotide Transformer's format: an ESM network over k-mers.

Of the tokens 15 % are to be predicted: 80 % of these are hidden, 10 % replaced by others, 10 % left as they are (BERT;
Nucleotide Transformer takes the same numbers). The result is what `pt.DnaEncoder` reads.
"""

from __future__ import annotations

import itertools
import random
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import posttrain as pt
from posttrain.policy.checkpoint_folder import quiet
from posttrain.policy.pretrained import choose_device
from posttrain.policy.trained import restore, trained_parameters
from posttrain.records import Place, records
from posttrain.systems.bioreason.data import bases

SPECIAL = ("<unk>", "<pad>", "<mask>", "<cls>", "<eos>", "<bos>")
BASES = "ATCG"  # in the order of the published vocabulary
MASKED, HIDDEN, REPLACED = 0.15, 0.8, 0.1
FASTA = (".fa", ".fasta", ".fna")
WIDE = 0.1  # standard deviation of a small network's first weights; from the usual 0.02 it learns half as fast


def dna_tokenizer(size: int) -> Any:
    """Of k-mers of `size` bases; with 6 the 4107 entries of Nucleotide Transformer's first version."""
    from transformers import EsmTokenizer

    mers = list(map("".join, itertools.product(BASES, repeat=size)))
    words = [*SPECIAL, *mers, *(letter for letter in (*BASES, "N") if letter not in mers)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vocab.txt"
        file.write_text("\n".join(words))
        return EsmTokenizer(str(file))


class MaskedModel:
    """An encoder with its head, as a session trains and saves it.

    width      D, of a feature
    positions  most tokens of a sequence that are meant to be read; positions are rotary
    """

    def __init__(
        self,
        tokenizer: Any,
        width: int = 64,
        layers: int = 2,
        heads: int = 4,
        *,
        positions: int = 2048,
        seed: int = 0,
        device: str | None = None,
    ):
        from transformers import EsmConfig, EsmForMaskedLM

        if width % heads:
            raise ValueError(f"`width={width}`: it must be a multiple of `heads={heads}`")
        self.tokenizer, self.version = tokenizer, 0
        config = EsmConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=4 * width,
            max_position_embeddings=positions,
            position_embedding_type="rotary",
            pad_token_id=tokenizer.pad_token_id,
            mask_token_id=tokenizer.mask_token_id,
            token_dropout=False,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            initializer_range=WIDE,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(pt.mix(seed, "encoder") % 2**32)
            self.model: Any = EsmForMaskedLM(config)
        self.model.to(choose_device(device))

    def loss(self, sequences: Sequence[str], seed: int) -> Tensor:
        """Mean cross-entropy, in nats, of the tokens that are to be predicted; the seed chooses these."""
        ids = self.tokenizer(list(sequences), padding=True, return_tensors="pt")["input_ids"]
        shown, wanted = self.masked(ids, torch.Generator().manual_seed(seed))
        device = self.model.device
        mask = (ids != self.tokenizer.pad_token_id).to(device)
        hidden = self.model.esm(input_ids=shown.to(device), attention_mask=mask).last_hidden_state
        return nn.functional.cross_entropy(self.model.lm_head(hidden[wanted.to(device)]), ids[wanted].to(device))

    def masked(self, ids: Tensor, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        """What is shown of tokens [B, T], and which of them are to be predicted: of a batch one at least."""
        plain = ~torch.isin(ids, torch.tensor(self.tokenizer.all_special_ids))
        wanted = plain & (torch.rand(ids.shape, generator=draw) < MASKED)
        if not wanted.any():
            wanted.view(-1)[plain.flatten().nonzero()[0]] = True
        fate = torch.rand(ids.shape, generator=draw)
        others = torch.randint(len(SPECIAL), len(self.tokenizer), ids.shape, generator=draw)
        shown = torch.where(wanted & (fate < HIDDEN), self.tokenizer.mask_token_id, ids)
        return torch.where(wanted & (fate >= 1 - REPLACED), others, shown), wanted

    def step(
        self, optimizer: torch.optim.Optimizer, sequences: Sequence[str], seed: int, max_norm: float = 1.0
    ) -> pt.Metrics:
        optimizer.zero_grad()
        loss = self.loss(sequences, seed)
        loss.backward()
        self.version += 1
        return {"loss": loss.item(), **pt.descend(optimizer, max_norm)}

    # ---- as a session wants it

    def check(self, tasks: Sequence[pt.Task]) -> None:
        """Sequences are cut to windows: every one of them fits."""

    def parameters(self) -> list[nn.Parameter]:
        return list(self.model.parameters())

    def state_dict(self) -> dict[str, Tensor]:
        return trained_parameters(self.model)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        restore(trained_parameters(self.model), state)

    def save(self, folder: Path) -> None:
        with quiet():
            self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def learn_in_memory(
    model: MaskedModel, window: Callable[[random.Random], str], *, steps: int, rows: int, rate: float, seed: int
) -> float:
    """Steps on fresh windows; the rate rises over 50 of them and falls to zero over the last third. The last loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
    draw, loss = random.Random(pt.mix(seed, "windows")), 0.0
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * min(1.0, (step + 1) / 50, 3 * (steps - step) / steps)
        loss = model.step(optimizer, [window(draw) for _ in range(rows)], pt.mix(seed, "masks", step) % 2**63)["loss"]
    return loss


def learn_encoder(
    model: MaskedModel, sequences: Sequence[str], window: int, run: pt.Run, held_out: Mapping[str, Sequence[str]]
) -> pt.Session:
    """In a run directory, a window of so many bases of each of `run.tasks` sequences in a step; the held-out loss."""
    learner: Any = model

    @torch.no_grad()
    def measure(some: Sequence[str]) -> pt.Metrics:
        pieces = [some[start : start + run.tasks] for start in range(0, len(some), run.tasks)]
        return {"loss": statistics.fmean(model.loss(windows(piece, window, 0), 0).item() for piece in pieces)}

    options: dict[str, Any] = {"held_out": held_out, "measure": measure}
    with pt.Session(run, learner, sequences, kind="sft", **options) as session:
        for _ in session:
            some = windows(session.source.take(run.tasks), window, session.seed)
            found = model.step(session.optimizer, some, pt.mix(session.seed, "masks") % 2**63, run.max_norm)
            session.log(found | {"rows": float(len(some))})
    return session


def windows(sequences: Sequence[str], length: int, seed: int) -> list[str]:
    """So many bases of each, from a place that the seed draws; the whole of a shorter one."""
    draw = random.Random(pt.mix(seed, "windows"))
    starts = [draw.randrange(max(len(one) - length, 0) + 1) for one in sequences]
    return [one[start : start + length] for one, start in zip(sequences, starts, strict=True)]


# ---- files


def read_sequences(data: str) -> list[str]:
    """Of a FASTA file, or of the column `sequence`. Raises ValueError naming file and line of other letters."""
    path = Path(data)
    found = fasta(path) if path.suffix in FASTA and path.is_file() else records(data)
    return ["".join(bases(record, "sequence", place).split()) for place, record in found]


def fasta(path: Path) -> Iterator[tuple[Place, Mapping[str, str]]]:
    """Each entry with the line of its name. Raises ValueError for a file that does not begin with one."""
    start, lines = 0, list[str]()
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line.startswith(">"):
            if start:
                yield Place(str(path), start), {"sequence": "".join(lines)}
            start, lines = number, []
        elif line.strip() and not start:
            raise ValueError(f"{Place(str(path), number)}: a sequence before the first line that begins with '>'")
        else:
            lines.append(line.strip())
    if not start:
        raise ValueError(f"`data={path}`: the file is empty")
    yield Place(str(path), start), {"sequence": "".join(lines)}
