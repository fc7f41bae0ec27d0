"""The attitude predictor: from a statement and the dialogue so far to Bob's attitude, without asking Bob.

    level = argmax MLP( e(statement) + e(dialogue) )     two embeddings end to end, five classes

It is learnt before reinforcement, from dialogues of earlier runs in which the true persuadee was asked.
"""

from __future__ import annotations

import itertools
import json
import random
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import posttrain as pt
from posttrain.policy.pretrained import checkpoint_path, choose_device, load_pretrained, load_tokenizer
from posttrain.systems.tomap.wording import ATTITUDES, Wording

WEIGHTS, ABOUT = "predictor.safetensors", "predictor.json"


class Embedder(Protocol):
    """Texts to vectors."""

    name: str  # what `embedder` makes it from again

    def embed(self, texts: Sequence[str]) -> Tensor: ...  # [B, D] float32 on the CPU


# ---- embedders


class Hashed:
    """A bag of n-grams of words, each put into one of `width` places; of length 1."""

    def __init__(self, width: int = 512, longest: int = 1):
        self.width, self.longest = width, longest
        self.name = f"hashed:{width}:{longest}"

    def embed(self, texts: Sequence[str]) -> Tensor:
        out = torch.zeros(len(texts), self.width)
        for row, text in zip(out, texts, strict=True):
            words = text.lower().split()
            for n, i in itertools.product(range(1, self.longest + 1), range(len(words))):
                if i + n <= len(words):
                    row[zlib.crc32(" ".join(words[i : i + n]).encode()) % self.width] += 1
        return nn.functional.normalize(out, dim=-1)


class Encoder:
    """An encoder in the Hugging Face format, as BGE-M3 is used: the first token's state, of length 1.

    A text that is too long for it keeps its end: what was said last.
    """

    def __init__(self, model: str, device: str | None = None, rows: int = 32):
        from transformers import AutoModel

        self.name, self.rows = model, rows
        path = checkpoint_path(model)
        self.tokenizer = load_tokenizer(path)
        self.model = (
            load_pretrained(AutoModel, path, fresh=["pooler"]).to(choose_device(device)).eval().requires_grad_(False)
        )
        self.tokenizer.truncation_side = "left"
        config = self.model.config
        counted_from = config.pad_token_id + 1 if "roberta" in config.model_type else 0  # RoBERTa's first position
        self.most = int(config.max_position_embeddings) - counted_from

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        device, found = next(self.model.parameters()).device, []
        for start in range(0, len(texts), self.rows):
            some = list(texts[start : start + self.rows])
            read = self.tokenizer(some, padding=True, truncation=True, max_length=self.most, return_tensors="pt")
            hidden = self.model(
                input_ids=read["input_ids"].to(device), attention_mask=read["attention_mask"].to(device)
            ).last_hidden_state
            found.append(nn.functional.normalize(hidden[:, 0].float(), dim=-1).cpu())
        return torch.cat(found)


class Served:
    """An embedding model behind OpenAI's interface (`/v1/embeddings`): vLLM, sentence-transformers, a vendor's."""

    def __init__(self, url: str, model: str | None = None, rows: int = 128):
        from posttrain.sampler.server import Server

        self.name, self.rows = url, rows
        self.server = Server(url, model=model)

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Raises ServerError when it does not answer, or not with one vector for every text."""
        from posttrain.sampler.server import ServerError

        rows: list[list[float]] = []
        for start in range(0, len(texts), self.rows):
            body = {"model": self.server.model, "input": list(texts[start : start + self.rows])}
            try:
                data = self.server.post(f"{self.server.url}/embeddings", body)["data"]
                some = [one["embedding"] for one in sorted(data, key=lambda one: one["index"])]
            except (KeyError, TypeError) as error:
                raise ServerError(f"{self.server.url} gave no embeddings: {error!r}") from error
            if len(some) != len(body["input"]):
                raise ServerError(f"{self.server.url} gave {len(some)} embeddings for {len(body['input'])} texts")
            rows += some
        return nn.functional.normalize(torch.tensor(rows), dim=-1)


def embedder(name: str, device: str | None = None) -> Embedder:
    """By the address of a server, as `hashed:WIDTH:LONGEST`, or by a Hub id or folder."""
    if name.startswith("http"):
        return Served(name)
    if name.startswith("hashed"):
        numbers = re.fullmatch(r"hashed:([1-9]\d*):([1-9]\d*)", name)
        if numbers is None:
            raise ValueError(f"`encoder={name}`: of the form hashed:WIDTH:LONGEST, such as hashed:512:1")
        return Hashed(*map(int, numbers.groups()))
    return Encoder(name, device)


# ---- what it learns from


@dataclass(frozen=True, slots=True)
class Example:
    """What Bob thought of a statement after a dialogue. `source` is the episode that it is of."""

    statement: str
    transcript: str
    level: int
    source: int = 0


def examples(dialogues: Iterable[Mapping[str, Any]], wording: Wording) -> list[Example]:
    """Of the facts of episodes, as a run records them: every attitude that was asked for, after every round."""
    return [
        Example(statement, wording.transcript(facts["lines"][: 2 + 2 * t]), level, source)
        for source, facts in enumerate(dialogues)
        for t, asked in enumerate(facts["beliefs"])
        for statement, level in asked
    ]


def logged(runs: Sequence[str | Path]) -> list[Mapping[str, Any]]:
    """The facts of all dialogues of some run directories in which Bob was asked for his beliefs.

    Raises ValueError for one without.
    """
    found: list[Mapping[str, Any]] = []
    for run in runs:
        facts = [one["facts"] for one in pt.read_rollouts(run) if one["reward"] is not None]
        asked = [one for one in facts if isinstance(one, Mapping) and any(one.get("beliefs", ()))]
        if not asked:
            raise ValueError(
                f"{run} has no dialogue in which the persuadee was asked for its beliefs: make some with `stage` "
                "collect, or train with `setting=white` or `probe`"
            )
        found += asked
    return found


# ---- the predictor


class Predictor:
    """An embedder and a small network, as a player: asked with (statement, dialogue), it answers with a level."""

    def __init__(self, embed: Embedder, sizes: Sequence[int] = (1024, 512, 128), dropout: float = 0.1, seed: int = 0):
        self.embedder, self.sizes, self.dropout = embed, tuple(sizes), dropout
        self.width = embed.embed(["width"]).shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(pt.mix(seed, "predictor"))
            layers: list[nn.Module] = []
            for before, after in itertools.pairwise((2 * self.width, *self.sizes)):
                layers += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(dropout)]
            self.network = nn.Sequential(*layers, nn.Linear((2 * self.width, *self.sizes)[-1], len(ATTITUDES))).eval()

    def features(self, pairs: Sequence[tuple[str, str]]) -> Tensor:
        """[B, 2 D] of statements and dialogues; a text that comes often is embedded once."""
        texts = list(dict.fromkeys(text for pair in pairs for text in pair))
        place = {text: i for i, text in enumerate(texts)}
        vectors = self.embedder.embed(texts)
        return torch.cat([vectors[[place[pair[side]] for pair in pairs]] for side in (0, 1)], dim=-1)

    @torch.no_grad()
    def levels(self, pairs: Sequence[tuple[str, str]]) -> list[int]:
        """[B] 0 to 4: Bob's attitude to each statement after each dialogue."""
        return self.network(self.features(pairs)).argmax(-1).tolist() if pairs else []

    @torch.no_grad()
    def probabilities(self, pairs: Sequence[tuple[str, str]]) -> Tensor:
        """[B, 5] of each attitude."""
        return self.network(self.features(pairs)).softmax(-1) if pairs else torch.zeros(0, len(ATTITUDES))

    def sample(self, asks: Sequence[pt.Ask]) -> list[pt.Reply]:
        return [pt.Reply(found, torch.zeros(0), None) for found in self.levels([pair_of(ask) for ask in asks])]

    def learn(
        self,
        found: Sequence[Example],
        *,
        epochs: int = 15,
        rows: int = 64,
        lr: float = 5e-4,
        decay: float = 0.1,
        warmup: float = 0.1,
        seed: int = 0,
    ) -> None:
        """Cross-entropy with AdamW; the rate rises over the first share `warmup` of the steps, then stays."""
        inputs = self.features([(one.statement, one.transcript) for one in found])
        targets = torch.tensor([one.level for one in found])
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=lr, weight_decay=decay)
        total = epochs * -(-len(found) // rows)
        self.network.train()
        with torch.random.fork_rng(devices=[]):  # dropout draws from the global generator
            torch.manual_seed(pt.mix(seed, "predictor's rows"))
            some = (part for _ in range(epochs) for part in torch.randperm(len(found)).split(rows))
            for step, chosen in enumerate(some):
                optimizer.param_groups[0]["lr"] = lr * min(1.0, (step + 1) / max(warmup * total, 1))
                optimizer.zero_grad()
                nn.functional.cross_entropy(self.network(inputs[chosen]), targets[chosen]).backward()
                optimizer.step()
        self.network.eval()

    def accuracy(self, found: Sequence[Example]) -> float:
        levels = self.levels([(one.statement, one.transcript) for one in found])
        return sum(a == one.level for a, one in zip(levels, found, strict=True)) / len(found)

    def state_dict(self) -> dict[str, Tensor]:
        return self.network.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.network.load_state_dict(state)

    def save(self, folder: Path, **found: float) -> None:
        """Two files; `found` is what is to be said of it."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.state_dict(), folder / WEIGHTS)
        about = {"embedder": self.embedder.name, "sizes": list(self.sizes), "width": self.width, **found}
        pt.write_json(folder / ABOUT, about)


def pair_of(ask: pt.Ask) -> tuple[str, str]:
    """The statement and the dialogue that a predictor is asked with."""
    return str(ask.messages[0]["content"]), str(ask.messages[1]["content"])


def load_predictor(folder: str | Path, device: str | None = None) -> Predictor:
    """A saved predictor with its embedder. Raises ValueError when there is none, or the embedder has another width."""
    path = Path(folder)
    if not (path / ABOUT).is_file():
        raise ValueError(f"`predictor={folder}`: it holds no {ABOUT}; make one with `stage=predictor`")
    about = json.loads((path / ABOUT).read_text())
    found = Predictor(embedder(about["embedder"], device), about["sizes"])
    if found.width != about["width"]:
        raise ValueError(
            f"`predictor={folder}`: it was learnt on vectors of {about['width']} numbers, but {about['embedder']} "
            f"gives {found.width}"
        )
    found.load_state_dict(load_file(path / WEIGHTS))
    return found


def majority(found: Sequence[Example]) -> float:
    """The accuracy of always saying the commonest level."""
    return max(Counter(one.level for one in found).values()) / len(found)


def split_by_dialogue(found: Sequence[Example], share: float, seed: int = 0) -> tuple[list[Example], list[Example]]:
    """A `share` of the episodes to learn from, and a tenth of the others, one at least, to test on."""
    sources = sorted({one.source for one in found})
    random.Random(pt.mix(seed, "episodes")).shuffle(sources)
    cut = min(max(round(share * len(sources)), 1), len(sources) - 1)
    if cut < 1:
        raise ValueError("a predictor needs two dialogues at least: one to learn from, one to be tested on")
    learnt, tested = set(sources[:cut]), set(sources[cut : cut + max(len(sources) // 10, 1)])
    return [one for one in found if one.source in learnt], [one for one in found if one.source in tested]


class Guessing:
    """A predictor that knows nothing (`black_random`)."""

    def sample(self, asks: Sequence[pt.Ask]) -> list[pt.Reply]:
        return [pt.Reply(random.Random(ask.seed).randrange(len(ATTITUDES)), torch.zeros(0), None) for ask in asks]
