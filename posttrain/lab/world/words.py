"""Tiny models that speak in whole words, made from a world's demonstrations and kept on disk."""

from __future__ import annotations

import hashlib
import inspect
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from posttrain import tiny_vision
from posttrain.core import Task
from posttrain.data import Demonstration
from posttrain.episode import assistant, user
from posttrain.seeding import mix
from posttrain.tiny_vision import MARKS, PICTURE

if TYPE_CHECKING:
    from posttrain.policy.text import TextPolicy
    from posttrain.policy.value import RewardModel

END, PAD = "<end>", "<pad>"
TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }} "
    "{% if message['role'] == 'assistant' %}" + END + " {% endif %}{% endfor %}"
)
PICTURED = (
    "{% for message in messages %}{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}" + PICTURE + " {% else %}"
    "{{ part['text'] }}{% endif %}{% endfor %}{% endif %} "
    "{% if message['role'] == 'assistant' %}" + END + " {% endif %}{% endfor %}"
)


class World(Protocol):
    """What a base model is made from. One that has a `preprocessing` too has pictures, and gets a model that sees."""

    @property
    def vocabulary(self) -> Sequence[str]: ...  # every word of prompts and replies
    @property
    def longest(self) -> int: ...  # words of a reply, at most
    def demonstration(self, draw: random.Random) -> Demonstration: ...


@dataclass(frozen=True, slots=True)
class Size:
    """Of a base model, and how long it is trained on demonstrations."""

    hidden: int = 48
    layers: int = 2
    steps: int = 600
    rows: int = 64
    rate: float = 3e-3


def demonstration_of(prompt: str, reply: str) -> Demonstration:
    return Demonstration((user(prompt), assistant(reply)))


def task(key: str, prompt: str, truth: Any) -> Task:
    return Task(key, (user(prompt),), truth)


def tokenizer_of(vocabulary: Sequence[str]) -> Any:
    """A tokenizer whose tokens are these words, separated by blanks; replies are closed by an end token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {word: i for i, word in enumerate((PAD, END, *vocabulary))}
    core = Tokenizer(models.WordLevel(ids, unk_token=PAD))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    made: Any = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=END, pad_token=PAD, clean_up_tokenization_spaces=False
    )
    made.chat_template = TEMPLATE
    return made


def tokenizer_with_pictures(vocabulary: Sequence[str]) -> Any:
    """The same with the tokens that stand for pictures, and a template that writes them."""
    made = tokenizer_of([*MARKS, *vocabulary])
    made.chat_template = PICTURED
    return made


def base(
    world: World,
    seed: int = 0,
    size: Size = Size(),
    *later: tuple[World, Size],
    build: Callable[..., TextPolicy] | None = None,
) -> TextPolicy:
    """A policy that has learnt the world's demonstrations: built on first use, then read from the cache.

    `later` are worlds of the same vocabulary whose demonstrations it has learnt after that, one after another; of
    their sizes the steps, rows and rate count. `build` replaces `train_base`.
    The same for the same worlds, seed, sizes, code and torch.
    """
    from posttrain.policy.load import load_policy

    path = folder(world, seed, size, *later, build=build or train_base)
    return load_policy(str(path), max_new=world.longest, device="cpu", threads=1)


def folder(world: World, seed: int, size: Size, *later: tuple[World, Size], build: Callable[..., TextPolicy]) -> Path:
    import torch

    from posttrain import tiny

    code = inspect.getsource(type(world)) + inspect.getsource(tiny.warm_start) + inspect.getsource(tiny.network)
    if hasattr(world, "preprocessing"):
        module = inspect.getmodule(type(world))
        assert module is not None
        code += inspect.getsource(module) + inspect.getsource(tiny_vision)
    recipe = hashlib.sha256(repr((code, world, size, seed, torch.__version__, *later)).encode()).hexdigest()
    name = f"{type(world).__name__.lower()}-{seed}-{recipe[:12]}"
    return tiny.cached_folder(name, "config.json", lambda path: build(world, seed, size, *later).save(path))


def train_base(world: World, seed: int, size: Size, *later: tuple[World, Size]) -> TextPolicy:
    """The base model, trained here and now, from the one before the last of `later`."""
    import torch

    from posttrain import tiny

    policy = base(world, seed, size, *later[:-1]) if later else untrained_policy(world, seed, size)
    taught, length = later[-1] if later else (world, size)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    tiny.warm_start(policy, demonstrations(taught, seed), length.steps, length.rows, length.rate)
    torch.set_num_threads(threads)
    return policy


def untrained_policy(world: World, seed: int, size: Size) -> TextPolicy:
    """A policy of this size that has learnt nothing."""
    from posttrain import tiny
    from posttrain.policy.text import Sampling, TextPolicy

    start, sampling = mix(seed, "network") % 2**32, Sampling(world.longest)
    preprocessing = getattr(world, "preprocessing", None)
    if preprocessing is None:
        words = tokenizer_of(world.vocabulary)
        return TextPolicy(tiny.network(words, start, size.hidden, size.layers, positions=128), words, sampling)
    from posttrain.policy.vision import VisionPolicy

    words = tokenizer_with_pictures(world.vocabulary)
    network = tiny_vision.network(words, preprocessing, start, hidden=size.hidden, layers=size.layers)
    return VisionPolicy(network, words, preprocessing, sampling)


def untrained_judge(words: Any, seed: int = 0, hidden: int = 32, layers: int = 1, positions: int = 64) -> RewardModel:
    """A reward model from random weights."""
    from transformers import Qwen3ForSequenceClassification

    from posttrain import tiny
    from posttrain.policy.value import RewardModel

    body = tiny.network(words, mix(seed, "judge") % 2**32, hidden, layers, positions)
    body.config.num_labels = 1
    judge: Any = Qwen3ForSequenceClassification(body.config)
    judge.model.load_state_dict(body.model.state_dict())
    judge.score.weight.data.zero_()
    return RewardModel(judge.eval(), words)


def demonstrations(world: World, seed: int) -> Iterator[Demonstration]:
    draw = random.Random(mix(seed, "demonstrations"))
    while True:
        yield world.demonstration(draw)
