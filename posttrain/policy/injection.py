"""Parts of other kinds than pictures, in a language model that has never seen any: DNA, clouds of points.

    policy = pt.inject("Qwen/Qwen3-1.7B", [pt.DnaEncoder("InstaDeepAI/nucleotide-transformer-500m-human-ref")])
    user([{"type": "dna", "dna": "ACGT..."}, {"type": "text", "text": "Which disease?"}])

An encoder makes features of a part, and a projector embeddings of the features, which stand in the place of the part's
tokens. It works on every model that is called with embeddings, one that sees pictures included.
"""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from posttrain.chat import trace
from posttrain.core import Row
from posttrain.policy.encoders import ENCODERS, Encoder, Payload
from posttrain.policy.parts import Kind, Part, PartsPolicy, parts_of
from posttrain.policy.pretrained import MODALITIES
from posttrain.policy.text import TextPolicy, whole_copy
from posttrain.policy.vision import VisionPolicy
from posttrain.ranks import is_primary

PROJECTOR = "projector.safetensors"
KEPT = 2**30  # bytes of features of frozen encoders that are kept


class FrozenEncoder:
    """An encoder that does not learn: one for all copies of a policy, with the features that it has made."""

    def __init__(self, encoder: Encoder):
        self.encoder = encoder.eval().requires_grad_(False)
        self.kept: dict[int, Tensor] = {}
        self.lock = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenEncoder:
        return self

    @torch.no_grad()
    def features(self, payloads: Sequence[Payload], device: torch.device) -> list[Tensor]:
        """[tokens, width] of each. They are computed one by one: beside others the last digits would differ, and a
        resumed run would not be the same."""
        with self.lock, torch.autocast(device.type, enabled=False):
            self.encoder.to(device)
            made = [self.kept.pop(one.name) if one.name in self.kept else self.encode(one) for one in payloads]
            self.kept.update(zip((one.name for one in payloads), made, strict=True))
            held = sum(one.nbytes for one in self.kept.values())
            while held > KEPT:
                held -= self.kept.pop(next(iter(self.kept))).nbytes
        return [one.to(device) for one in made]

    def encode(self, payload: Payload) -> Tensor:
        [made] = self.encoder([payload])
        return made.cpu()


class Modality(nn.Module):
    """An encoder, and a linear map that projects its features to embeddings.

    width    D, of an embedding
    trained  whether the encoder learns too; the projector always does
    """

    def __init__(self, encoder: Encoder, width: int, trained: bool = False):
        super().__init__()
        self.learning = encoder if trained else None
        self.frozen = None if trained else FrozenEncoder(encoder)
        self.projector = nn.Linear(encoder.width, width)

    @property
    def encoder(self) -> Encoder:
        found = self.learning if self.frozen is None else self.frozen.encoder
        assert found is not None
        return found

    def whole_copy(self) -> Modality:
        """A copy that is not trained, whole on each of several ranks, all of which take part."""
        if self.frozen is None:
            raise ValueError("a policy whose encoders learn is copied before it lies on several ranks, not after")
        twin = Modality(self.encoder, self.projector.out_features)
        twin.projector.load_state_dict({name: whole_tensor(p) for name, p in self.projector.state_dict().items()})
        return twin.requires_grad_(False)

    def forward(self, payloads: Sequence[Payload]) -> list[Tensor]:
        """[tokens, D] embeddings of each payload."""
        device = self.projector.weight.device
        features = self.encoder(payloads) if self.frozen is None else self.frozen.features(payloads, device)
        embedded = self.projector(torch.cat([one.to(device) for one in features]))
        return list(embedded.split([one.tokens for one in payloads]))


class Injection(PartsPolicy):
    """Before a kind of policy in the order of classes: it is shown the parts that the model's modalities encode."""

    def __init__(self, model: Any, *arguments: Any, **options: Any):
        self.modalities = base_of(model).modalities
        super().__init__(model, *arguments, **options)
        self.dense = (
            self.dense and self.body.config.model_type != "gemma"
        )  # it scales what the table of embeddings says

    @property
    def kinds(self) -> Mapping[str, Kind]:
        ids = self.tokenizer.convert_tokens_to_ids
        encoders = {name: modality.encoder for name, modality in self.modalities.items()}
        own = {name: Kind(one.read, ids(one.marks[1]), "".join(one.marks)) for name, one in encoders.items()}
        return {**super().kinds, **own}

    @property
    def never(self) -> list[int]:
        marks = [mark for one in self.modalities.values() for mark in one.encoder.marks if mark]
        return sorted({*super().never, *self.tokenizer.convert_tokens_to_ids(marks)})

    def embedding(self, shown: Mapping[int, Part]) -> Callable[[Tensor], Tensor]:
        found = {name: one for name, one in shown.items() if isinstance(one, Payload)}
        return lambda ids: self.embeddings(ids, found)

    def embeddings(self, ids: Tensor, shown: Mapping[int, Payload]) -> Tensor:
        """Tokens [..., T] with names in them -> [..., T, D], a part's embeddings in the place of its names."""
        flat, order, at = ids.flatten().tolist(), list[int](), 0
        while at < len(flat):
            if flat[at] in shown:
                order.append(flat[at])
                at += shown[flat[at]].tokens
            else:
                at += 1
        embedded = self.body.get_input_embeddings()(ids.clamp(min=0))
        if not order:
            return embedded
        made = self.parts_embedded([shown[name] for name in dict.fromkeys(order)])
        standing = torch.isin(ids, torch.tensor(list(made), device=ids.device))[..., None]
        return embedded.masked_scatter(standing, torch.cat([made[name] for name in order]).to(embedded.dtype))

    def parts_embedded(self, payloads: Sequence[Payload]) -> dict[int, Tensor]:
        """[tokens, D] of each, by its name."""
        found: dict[int, Tensor] = {}
        for name, modality in self.modalities.items():
            own = [one for one in payloads if one.kind == name]
            if own:
                found |= zip((one.name for one in own), modality(own), strict=True)
        return found

    def model_inputs(self, inputs: dict[str, Any], rows: Sequence[Row]) -> dict[str, Any]:
        found = dict(super().model_inputs(inputs, rows))
        ids = found.pop("input_ids")
        shown = {
            part.name: part
            for row in rows
            for turn in row.turns
            for _, part in parts_of(trace(turn.reply).asked)
            if isinstance(part, Payload)
        }
        return {**found, "inputs_embeds": self.embeddings(ids, shown)}

    def beside(self) -> Iterable[nn.Parameter]:
        return [*super().beside(), *self.modalities.parameters()]

    # ---- copies and files

    def frozen_copy(self) -> TextPolicy:
        """As `TextPolicy.frozen_copy`; projectors and trained encoders are copied under LoRA too.

        Raises ValueError for a policy on several ranks whose encoders learn: copy it before it is laid over them.
        """
        if self.shards and not hasattr(self.model, "disable_adapter"):
            copies = {name: one.whole_copy() for name, one in self.modalities.items()}
            with self.without_modalities():
                model = whole_copy(self)
            model.modalities = nn.ModuleDict(copies)
            return self.with_model(model)
        twin = super().frozen_copy()
        assert isinstance(twin, Injection)
        if twin.model is self.model:
            twin.modalities = copy.deepcopy(self.modalities).requires_grad_(False)
        return twin

    def around(self, model: Any) -> TextPolicy:
        twin = super().around(model)
        twin.modalities = twin.body.modalities  # type: ignore[attr-defined]
        return twin

    def save(self, path: Path) -> None:
        """The checkpoint of the language model, and beside it a folder for each modality."""
        tensors = {name: whole_tensor(value) for name, value in self.modalities.state_dict().items()}
        with self.without_modalities():
            super().save(path)
        if not is_primary():
            return
        settings = {}
        for name, one in self.modalities.items():
            folder = path / name
            folder.mkdir(parents=True, exist_ok=True)
            one.encoder.save(folder, tensors_below(tensors, f"{name}.learning.") or one.encoder.state_dict())
            projector = tensors_below(tensors, f"{name}.projector.")
            save_file(projector, folder / PROJECTOR, metadata={"format": "pt"})
            settings[name] = {"trained": one.frozen is None, **one.encoder.settings()}
        (path / MODALITIES).write_text(json.dumps(settings, indent=2) + "\n")

    @contextmanager
    def without_modalities(self) -> Iterator[None]:
        """While the language model is written as a checkpoint of its own."""
        del self.body.modalities
        try:
            yield
        finally:
            self.body.modalities = self.modalities


class InjectedPolicy(Injection):
    """A text model that is shown parts. Made by `posttrain.inject`."""


class InjectedVisionPolicy(Injection, VisionPolicy):
    """A model that sees pictures, and is shown other parts. Made by `posttrain.inject`."""


def attach(network: Any, encoders: Sequence[Encoder], trained: Iterable[str], seed: int) -> None:
    """Hang modalities on a loaded model, with projectors drawn from the seed."""
    body = base_of(network)
    width = body.get_input_embeddings().embedding_dim
    with torch.random.fork_rng(), torch.device(body.device.type if body.device.type == "meta" else "cpu"):
        torch.manual_seed(seed)
        made = {one.kind: Modality(one, width, one.kind in trained) for one in encoders}
    body.modalities = nn.ModuleDict(made)
    if body.device.type != "meta":
        body.modalities.to(body.device)


def add_marks(network: Any, tokenizer: Any, encoders: Sequence[Encoder]) -> None:
    """Have the tokenizer know what stands for parts, and the model have a row for each; new rows are drawn alike."""
    marks = [mark for one in encoders for mark in one.marks if mark]
    tokenizer.add_special_tokens({"additional_special_tokens": marks}, replace_extra_special_tokens=False)
    if len(tokenizer) > network.get_input_embeddings().num_embeddings:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network.resize_token_embeddings(len(tokenizer), mean_resizing=False)


def saved_encoders(path: Path, weights: bool) -> tuple[list[Encoder], set[str]]:
    """The encoders of a checkpoint, and which of them are trained. Raises ValueError for one that is not known here."""
    encoders, trained = list[Encoder](), set[str]()
    for name, settings in json.loads((path / MODALITIES).read_text()).items():
        if name not in ENCODERS:
            raise ValueError(f"{path / MODALITIES}: {name!r} is none of the kinds of parts {', '.join(ENCODERS)}")
        if settings.pop("trained"):
            trained.add(name)
        encoders.append(ENCODERS[name].load(path / name, weights, **settings))
    return encoders, trained


def load_projectors(network: Any, path: Path) -> None:
    for name, one in base_of(network).modalities.items():
        one.projector.load_state_dict(load_file(path / name / PROJECTOR))


def base_of(model: Any) -> Any:
    """The model below its adapter, if it has one."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def whole_tensor(value: Tensor) -> Tensor:
    """On the CPU; of a tensor that lies on several ranks, all of them call this."""
    value = value.detach()
    return (value.full_tensor() if isinstance(value, DTensor) else value).cpu()


def tensors_below(tensors: Mapping[str, Tensor], start: str) -> dict[str, Tensor]:
    """Those whose names begin so, without that beginning."""
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
