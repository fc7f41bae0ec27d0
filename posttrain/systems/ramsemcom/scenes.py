"""A user's own scenes: what senders have, what receivers are asked, and the encoder in whose space they meet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

import posttrain as pt
from posttrain.embedding import MeanOfTokens
from posttrain.policy.checkpoint_folder import quiet
from posttrain.policy.pixels import open_picture
from posttrain.policy.pretrained import choose_device, first_line
from posttrain.records import Place, records
from posttrain.systems.ramsemcom.element import Element, Question, Scene

BATCH = 64  # texts or pictures that are encoded together


class Encoder(Protocol):
    """Texts, and pictures where it sees, in one space: [N, D] of unit length."""

    def texts(self, texts: Sequence[str]) -> Tensor: ...
    def pictures(self, paths: Sequence[str]) -> Tensor: ...


class Clip:
    """A CLIP model of transformers: texts and pictures."""

    def __init__(self, model: str, device: str | None = None):
        from transformers import CLIPModel, CLIPProcessor

        self.processor = part(CLIPProcessor, model)
        self.model = part(CLIPModel, model, dtype=torch.float32).eval().to(choose_device(device))

    def texts(self, texts: Sequence[str]) -> Tensor:
        inputs = self.processor(text=list(texts), return_tensors="pt", padding=True, truncation=True)
        return unit(self.model.get_text_features(**inputs.to(self.model.device)))

    def pictures(self, paths: Sequence[str]) -> Tensor:
        from PIL import Image

        shown = [Image.open(path).convert("RGB") for path in paths]
        inputs = self.processor(images=shown, return_tensors="pt")
        return unit(self.model.get_image_features(**inputs.to(self.model.device)))


class TextAlone:
    """A language model, or an encoder of sentences. It sees no pictures."""

    def __init__(self, model: str, device: str | None = None):
        self.name, self.encoder = model, MeanOfTokens(model, device)

    def texts(self, texts: Sequence[str]) -> Tensor:
        return self.encoder.embed(texts)

    def pictures(self, paths: Sequence[str]) -> Tensor:
        raise ValueError(f"`encoder={self.name}` reads text alone, and {paths[0]} is a picture: give a CLIP model")


def unit(found: Any) -> Tensor:
    """[N, D] of unit length, on the CPU; newer models wrap their embeddings."""
    embeddings = found if isinstance(found, Tensor) else found.pooler_output
    return functional.normalize(embeddings.float().cpu(), dim=-1)


def part(kind: Any, model: str, **options: Any) -> Any:
    try:
        with quiet():
            return kind.from_pretrained(model, **options)
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f"`encoder={model}`: it has no loadable {kind.__name__}: {first_line(error)}") from error


def encoder(model: str, device: str | None = None) -> Encoder:
    """A CLIP model by Hub id or folder, or any other checkpoint for text alone."""
    from transformers import AutoConfig

    from posttrain.policy.pretrained import checkpoint_path

    config = part(AutoConfig, checkpoint_path(model))
    return Clip(model, device) if config.model_type == "clip" else TextAlone(model, device)


@torch.no_grad()
def in_batches(encode: Any, items: Sequence[Any]) -> Iterator[Tensor]:
    for start in range(0, len(items), BATCH):
        yield encode(items[start : start + BATCH])


def scenes(
    data: str, by: Encoder, *, decibels: tuple[float, float], seed: int, limit: int | None = None, split: str = "train"
) -> list[Scene]:
    """A scene for each row of a JSONL file or dataset:

        elements   what its sender has: texts, or {"text": ...} or {"image": PATH}, relative to the file
        questions  [{"question": ..., "answer": ...}, ...]; or one, in `question` and `answer`
        snr        the mean signal-to-noise ratio in dB; drawn between `decibels` where it is left out
        summary    a text that the receiver has from the start, if there is one

    Raises ValueError naming file, line and what is wrong.
    """
    read = [(place, record) for place, record in records(data, limit, split)]
    elements = [elements_of(record, place) for place, record in read]
    asked = [questions_of(record, place) for place, record in read]
    low, high = decibels
    draw = torch.rand(len(read), generator=torch.Generator().manual_seed(pt.mix(seed, "decibels"))).tolist()
    flat = [element for some in elements for element in some]
    index = embeddings(flat, by).split([len(some) for some in elements])
    queries = torch.cat([*in_batches(by.texts, [question for some in asked for question, _ in some])])
    left = iter(queries)
    return [
        Scene(
            tuple(elements[i]),
            index[i],
            tuple(Question(question, answer, next(left)) for question, answer in asked[i]),
            decibels_of(record, place, low + (high - low) * draw[i]),
            summary_of(record, place),
        )
        for i, (place, record) in enumerate(read)
    ]


def embeddings(elements: Sequence[Element], by: Encoder) -> Tensor:
    """[M, D]"""
    texts = [i for i, one in enumerate(elements) if one.part["type"] == "text"]
    pictures = [i for i, one in enumerate(elements) if one.part["type"] == "image"]
    found = [
        *in_batches(by.texts, [elements[i].part["text"] for i in texts]),
        *in_batches(by.pictures, [elements[i].part["image"] for i in pictures]),
    ]
    return torch.cat(found)[torch.tensor([*texts, *pictures]).argsort()]


def elements_of(record: Mapping[str, Any], place: Place) -> list[Element]:
    given = record.get("elements")
    if not isinstance(given, list | tuple) or not given:
        raise ValueError(f"{place}: there are no `elements`, a list of texts or of {{'image': PATH}}")
    return [element_of(one, f"{place.line}-{i}", place) for i, one in enumerate(given)]


def element_of(one: Any, key: str, place: Place) -> Element:
    """A text counts eight bits a byte, a picture those of its file."""
    one = {"text": one} if isinstance(one, str) else one
    if isinstance(one, Mapping) and isinstance(one.get("text"), str) and one["text"].strip():
        return Element(key, {"type": "text", "text": one["text"]}, 8 * len(one["text"].encode()))
    if isinstance(one, Mapping) and isinstance(one.get("image"), str):
        path = Path(place.file).parent / Path(one["image"]).expanduser()
        if not path.is_file():
            raise ValueError(f"{place}: there is no picture {path}")
        try:
            open_picture(str(path))
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
        return Element(key, {"type": "image", "image": str(path)}, 8 * path.stat().st_size)
    raise ValueError(f"{place}: the element {str(one)[:80]!r} is neither a text nor {{'image': PATH}}")


def questions_of(record: Mapping[str, Any], place: Place) -> list[tuple[str, str]]:
    given = record.get("questions", [record])
    if not isinstance(given, list | tuple) or not given:
        raise ValueError(f"{place}: `questions` is no list of {{'question': ..., 'answer': ...}}")
    found = []
    for one in given:
        pair = [one.get(name) if isinstance(one, Mapping) else None for name in ("question", "answer")]
        question, answer = (str(value) if isinstance(value, str | int | float) else "" for value in pair)
        if not question.strip() or not answer.strip():
            raise ValueError(f"{place}: a question needs `question` and `answer`, and has {str(one)[:80]!r}")
        found.append((question, answer))
    return found


def decibels_of(record: Mapping[str, Any], place: Place, drawn: float) -> float:
    value = record.get("snr", drawn)
    if isinstance(value, bool) or not isinstance(value, int | float) or not -100 <= value <= 100:
        raise ValueError(f"{place}: `snr` is {value!r}, and no ratio in dB from -100 to 100")
    return float(value)


def summary_of(record: Mapping[str, Any], place: Place) -> tuple[Mapping[str, Any], ...]:
    text = record.get("summary")
    if text is not None and not isinstance(text, str):
        raise ValueError(f"{place}: `summary` is no text")
    return ({"type": "text", "text": text},) if text else ()
