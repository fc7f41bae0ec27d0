"""What the parts of `gpu.py` share: Qwen2.5's shapes made on the device, prompts, and what a device can do at most."""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

TB, TF = 1e12, 1e12
# dense peaks by the vendors' datasheets: bfloat16, TF32, float32 in operations a second; bytes a second of memory
PEAKS = {
    "H200": (989 * TF, 495 * TF, 67 * TF, 4.8 * TB),
    "H100": (989 * TF, 495 * TF, 67 * TF, 3.35 * TB),
    "A100": (312 * TF, 156 * TF, 19.5 * TF, 2.0 * TB),
}


@dataclass(frozen=True)
class Shape:
    """A model of Qwen2.5's architecture, and the work of a step: `tasks` prompts, `samples` replies to each."""

    hidden: int
    layers: int
    heads: int
    key_heads: int
    inner: int
    vocabulary: int = 151_936
    tasks: int = 64
    samples: int = 8
    prompt: int = 128
    new: int = 256

    @property
    def parameters(self) -> int:
        """Of the matrices, the tied embedding once: what a token is multiplied by."""
        size = self.hidden // self.heads
        attention = 2 * self.hidden * self.hidden + 2 * self.hidden * size * self.key_heads
        return self.layers * (attention + 3 * self.hidden * self.inner) + self.vocabulary * self.hidden

    def quick(self) -> Shape:
        return replace(
            self, hidden=64, layers=2, heads=4, inner=128, vocabulary=2048, tasks=3, samples=4, prompt=12, new=6
        )


SHAPES = {"0.5B": Shape(896, 24, 14, 2, 4864), "1.5B": Shape(1536, 28, 12, 2, 8960)}


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--to", required=True, help="the JSON file that results are written to")
    return parser


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options; on a CPU, where only the code is tried, with one thread."""
    given = parser.parse_args()
    if given.device == "cpu":
        torch.set_num_threads(1)
    return given


def tokenizer(shape: Shape) -> Any:
    """Whole words w0, w1, ...; the end token has no row in the model, so that every reply runs to its limit."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, **{f"w{i}": i for i in range(1, shape.vocabulary)}, "<end>": shape.vocabulary}
    core = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    made: Any = PreTrainedTokenizerFast
    return made(tokenizer_object=core, eos_token="<end>", pad_token="<pad>", chat_template=template)


def model(shape: Shape, device: str, words: Any) -> Any:
    """Random weights in float32, drawn on the device."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=words.eos_token_id,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    with torch.device(device):
        return Qwen2ForCausalLM(config)


def prompts(shape: Shape, count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(f"w{draw.randrange(1, shape.vocabulary)}" for _ in range(shape.prompt)) for _ in range(count)]


def even(text: str) -> float:
    """The reward: the share of a reply's words that have an even number."""
    words = [int(word[1:]) for word in text.split() if word[1:].isdigit()]
    return sum(number % 2 == 0 for number in words) / max(len(words), 1)


def wait(device: str) -> None:
    """Until the device has done what it was told to: before every reading of a clock."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def reset_peak(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()


def peak(device: str) -> dict[str, float]:
    """GiB at most since `reset_peak`; nothing on a CPU."""
    if not device.startswith("cuda"):
        return {}
    return {
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
        "reserved_gib": torch.cuda.max_memory_reserved() / 2**30,
    }


def about(device: str) -> dict[str, Any]:
    """The device, and the versions of what ran on it."""
    import transformers

    cuda = device.startswith("cuda")
    name = torch.cuda.get_device_name() if cuda else "CPU"
    return {"device_name": name, "torch": torch.__version__, "transformers": transformers.__version__}


def peaks(name: str) -> tuple[float, float, float, float] | None:
    """bfloat16, TF32, float32 and memory of a device that is known."""
    return next((found for known, found in PEAKS.items() if known in name), None)


def writer(file: str) -> Callable[[dict[str, Any]], None]:
    """Writes all results so far, so that a kill while writing loses none."""

    def write(results: dict[str, Any]) -> None:
        scratch = Path(file).with_suffix(".part")
        scratch.write_text(json.dumps(results, indent=1))
        scratch.replace(file)

    return write


def learning_operations(shape: Shape) -> float:
    """Of a step's learning as MFU counts: 6 P a token, and attention's 12 L D a pair of query and key, by causality.

    All tokens of all rows count, though prompts that samples share are computed once: so it is what another trainer
    would have to do, and the share of the peak may flatter. `distinct` tokens give the stricter one.
    """
    length = shape.prompt + shape.new
    rows = shape.tasks * shape.samples
    return rows * (6.0 * shape.parameters * length + 12.0 * shape.layers * shape.hidden * length * length / 2)


def distinct_operations(shape: Shape) -> float:
    """The same with each prompt once, and logits of replies alone: what is in truth computed."""
    rows, after = shape.tasks * shape.samples, shape.prompt + shape.new
    tokens = rows * shape.new + shape.tasks * shape.prompt
    trunk = shape.parameters - shape.vocabulary * shape.hidden
    pairs = rows * (after * after - shape.prompt * shape.prompt) / 2 + shape.tasks * shape.prompt**2 / 2
    return 6.0 * (trunk * tokens + shape.vocabulary * shape.hidden * rows * shape.new) + (
        12.0 * shape.layers * shape.hidden * pairs
    )


def decoding_bytes(shape: Shape, rows: int, number: int) -> float:
    """Read by one step of decoding at mid-reply: the layers' weights in numbers of `number` bytes, the float32 logits'
    matrix, keys and values of `rows` replies and of each prompt once."""
    trunk = shape.parameters - shape.vocabulary * shape.hidden
    kv = 2 * shape.layers * shape.hidden // shape.heads * shape.key_heads * number
    tokens = rows * shape.new / 2 + rows / shape.samples * shape.prompt
    return trunk * number + shape.vocabulary * shape.hidden * 4 + kv * tokens
