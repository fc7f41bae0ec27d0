"""The embedded model: a small Qwen3 with its tokenizer, made here from a seed, in about a minute.

It is warm-started on sums, differences and products of numbers below 100. Half of what it is shown answers at once,
which it learns poorly; the rest first calculates digit by digit, units first, which it learns well:

    What is 48+24?   ->   #### 72
    What is 48+24?   ->   8+4=12 4+2+1=7 #### 72

So it can do something, not always, and reinforcement can teach it to prefer what works: which is what a model of
this size can learn from rewards in minutes. It cannot be taught a skill that it does not have.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.chat import CHATML
from posttrain.core import Task
from posttrain.data import Demonstration
from posttrain.episode import user

VOCABULARY = 512
POSITIONS = 1024
STEPS, ROWS, RATE = 900, 64, 3e-3
WORKED = 0.5  # share of demonstrations that calculate first
PHRASES = ("What is {}?", "Compute {}.", "{} = ?", "How much is {}?")
WORDS = """the of and to in is that for was on are with they be at one have this from or had by hot but some what there
we can out other were all your when up use word how said an each she which do their time if will way about many then
them would write like so these her long make thing see him two has look more day could go come did my sound no most
number who over know water than call first people may down side been now find any new work part take get place made
live where after back little only round man year came show every good me give our under name very through just form
much great think say help low line before turn cause same mean differ move right boy old too does tell sentence set
three want air well also play small end put home read hand port large spell add even land here must big high such
follow act why ask men change went light kind off need house picture try us again animal point mother world near build
self earth father how many much total altogether left each per sold bought spent money dollars cost hours minutes days
week month year half twice times more less than remaining answer question reply assistant user system"""


@dataclass(frozen=True, slots=True)
class Problem:
    expression: str
    value: int
    steps: str  # the calculation digit by digit, units first


def addition(a: int, b: int) -> Problem:
    """48+24: 8+4=12 4+2+1=7"""
    steps, carry = [], 0
    for k in range(max(len(str(a)), len(str(b)))):
        x, y = digit(a, k), digit(b, k)
        steps.append(f"{x}+{y}{f'+{carry}' if carry else ''}={x + y + carry}")
        carry = (x + y + carry) // 10
    return Problem(f"{a}+{b}", a + b, " ".join(steps))


def subtraction(a: int, b: int) -> Problem:
    """52-28: 12-8=4 5-2-1=2"""
    steps, borrow = [], 0
    for k in range(len(str(a))):
        x, y = digit(a, k), digit(b, k)
        short = x < y + borrow
        steps.append(f"{x + 10 * short}-{y}{f'-{borrow}' if borrow else ''}={x + 10 * short - y - borrow}")
        borrow = int(short)
    return Problem(f"{a}-{b}", a - b, " ".join(steps))


def multiplication(a: int, b: int) -> Problem:
    """47*8: 7*8=56 4*8+5=37, for one-digit b"""
    steps, carry = [], 0
    for k in range(len(str(a))):
        product = digit(a, k) * b + carry
        steps.append(f"{digit(a, k)}*{b}{f'+{carry}' if carry else ''}={product}")
        carry = product // 10
    return Problem(f"{a}*{b}", a * b, " ".join(steps))


def digit(number: int, k: int) -> int:
    return number // 10**k % 10


def problem(draw: random.Random) -> Problem:
    """A sum, a difference or a product of numbers below 100."""
    sign = draw.choice("+-*")
    a, b = draw.randint(1, 99), draw.randint(1, 99)
    if sign == "+":
        return addition(a, b)
    if sign == "-":
        return subtraction(max(a, b), min(a, b))
    return multiplication(a, draw.randint(2, 9))


def question(draw: random.Random) -> tuple[str, int]:
    """An arithmetic question in words, and its answer."""
    found = problem(draw)
    return draw.choice(PHRASES).format(found.expression), found.value


def tasks(count: int, seed: int = 0) -> list[Task]:
    """Arithmetic tasks of the kind that the tiny model knows; their truth is the answer as text."""
    draw = random.Random(seed)
    asked = [question(draw) for _ in range(count)]
    return [Task(str(i), (user(text),), str(value)) for i, (text, value) in enumerate(asked)]


def demonstration(draw: random.Random) -> Demonstration:
    found = problem(draw)
    asked = draw.choice(PHRASES).format(found.expression)
    said = f"{found.steps} #### {found.value}" if draw.random() < WORKED else f"#### {found.value}"
    return Demonstration(({"role": "user", "content": asked}, {"role": "assistant", "content": said}))


def tokenizer() -> Any:
    """Byte-level BPE over a few hundred common words; every digit is its own token; ChatML."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    phrases = [phrase.format("") for phrase in PHRASES] * 50 + [" #### ", "user\n", "assistant\n", "system\n"] * 50
    core.train_from_iterator([WORDS, " " + " ".join(WORDS.split()), *phrases], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHATML,
        additional_special_tokens=["<|im_start|>"],
        clean_up_tokenization_spaces=False,
    )


def network(words: Any, seed: int = 0, hidden: int = 64, layers: int = 2, positions: int = POSITIONS) -> Any:
    """A Qwen3 from random weights, drawn wide: from the usual narrow start it would not leave the plateau."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=len(words),
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=hidden // 4,
        max_position_embeddings=positions,
        initializer_range=0.1,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    torch.manual_seed(seed)
    model: Any = Qwen3ForCausalLM(config)
    with torch.no_grad():
        model.get_input_embeddings().weight.normal_(0, 0.3)
    return model


def warm_start(
    policy: Any,
    demonstrations: Iterator[Demonstration],
    steps: int,
    rows: int = ROWS,
    rate: float = RATE,
    watch: Callable[[int, float], None] = lambda step, loss: None,
) -> None:
    """Supervised steps on fresh demonstrations; the rate is held, then falls to zero over the last fifth."""
    import torch

    from posttrain.descent import update
    from posttrain.loss import likelihood
    from posttrain.row import demonstration_rows

    optimizer = torch.optim.AdamW(policy.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 20, (steps - step) / (0.2 * steps))
        batch = [row for _ in range(rows) for row in demonstration_rows(policy, next(demonstrations))]
        watch(step, update(policy, optimizer, batch, likelihood)["loss"])
    policy.version = 0


def stream(seed: int) -> Iterator[Demonstration]:
    draw = random.Random(seed)
    while True:
        yield demonstration(draw)


def cache() -> Path:
    """Where built models are kept: POSTTRAIN_CACHE, or ~/.cache/posttrain."""
    return Path(os.environ.get("POSTTRAIN_CACHE", "~/.cache/posttrain")).expanduser()


def cached_folder(name: str, file: str, write: Callable[[Path], None]) -> Path:
    """The folder of that name in the cache; where it has no such file it is written, by one process at a time.

    Writing leaves torch's generator as it was: what is drawn afterwards does not depend on what the cache held.
    """
    import torch
    from filelock import FileLock

    folder = cache() / name
    cache().mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock"), timeout=1800):  # several processes may want it at once
        if not (folder / file).is_file():
            scratch = folder.with_name(f".{name}-{os.getpid()}")
            with torch.random.fork_rng(devices=[]):
                write(scratch)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(scratch, folder)
    return folder


def tiny_checkpoint(seed: int = 0, steps: int = STEPS) -> Path:
    """The folder of the tiny checkpoint; built on first use, the same for the same seed, code and torch."""
    import torch

    code = inspect.getsource(problem) + inspect.getsource(demonstration) + inspect.getsource(warm_start)
    made = (code, WORKED, PHRASES, WORDS, VOCABULARY, POSITIONS, steps, ROWS, RATE, seed, torch.__version__)
    recipe = hashlib.sha256(repr(made).encode()).hexdigest()
    return cached_folder(f"tiny-{seed}-{recipe[:12]}", "config.json", lambda folder: build(folder, seed, steps))


def build(folder: Path, seed: int, steps: int) -> None:
    import torch
    from rich.console import Console
    from rich.progress import track

    from posttrain.policy.text import TextPolicy

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    words = tokenizer()
    policy = TextPolicy(network(words, seed), words)
    bar: Iterator[int] = iter(
        track(
            range(steps),
            "building the tiny model (once)",
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
    )
    if not sys.stderr.isatty():
        print("building the tiny model, once: about a minute", file=sys.stderr, flush=True)

    def watch(step: int, loss: float) -> None:
        next(bar, None)

    warm_start(policy, stream(seed), steps, watch=watch)
    torch.set_num_threads(threads)
    policy.save(folder)
