"""Vision-language checkpoints in the real format, of random weights, with pictures and a template to go with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from conftest import DEVICE

import posttrain as pt
from posttrain import tiny, tiny_vision
from posttrain.policy.pixels import Preprocessing
from posttrain.policy.text import Sampling
from posttrain.policy.vision import VisionPolicy

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
SMALL = Preprocessing(patch=4, merge=2, least=64, most=4096)
TEMPLATE = (  # in the style of Qwen-VL's
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer() -> Any:
    words = tiny.tokenizer()
    words.add_special_tokens({"additional_special_tokens": list(tiny_vision.MARKS)}, replace_extra_special_tokens=False)
    words.chat_template = TEMPLATE
    return words


def policy(family: Any = "qwen2_5_vl", seed: int = 0, max_new: int = 12, **options: Any) -> VisionPolicy:
    words = tokenizer()
    model = tiny_vision.network(words, SMALL, seed, family, hidden=32, positions=1024, depth=2).to(DEVICE)
    return VisionPolicy(model, words, SMALL, Sampling(max_new), **options)


def checkpoint(folder: Path, family: Any = "qwen2_5_vl") -> str:
    policy(family).save(folder)
    return str(folder)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, height, width]).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(path: Path, height: int, width: int, seed: int = 0) -> Path:
    from PIL import Image

    Image.fromarray(noise(height, width, seed)).save(path)
    return path


def image(array: Any) -> dict[str, Any]:
    return {"type": "image", "image": array}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def task(key: str, *pictures: Any, words: str | None = None) -> pt.Task:
    return pt.Task(key, (pt.user([*map(image, pictures), text(words or f"what is {key}?")]),), None)
