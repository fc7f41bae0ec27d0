"""The work that both sides are given: checkpoints with random weights, prompts, lengths, and a reward of the text."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Workload:
    """A GRPO step: `prompts` tasks of `prompt` tokens, `samples` replies each, of `new` tokens or up to as many.

    `ends`: replies end by themselves, at a random moment (the end token is as likely as any other); otherwise the
    end token has no row in the model, and every reply runs to its limit. `turns`: replies per episode.
    """

    name: str
    hidden: int
    layers: int
    vocabulary: int
    prompts: int
    samples: int
    prompt: int
    new: int
    ends: bool = False
    turns: int = 1
    flat: bool = False  # about half of the prompts earn nothing whatever is said
    together: int = 1  # steps that a side takes in its turn

    @property
    def inner(self) -> int:
        return 3 * self.hidden

    @property
    def heads(self) -> int:
        return max(self.hidden // 64, 4)

    @property
    def key_heads(self) -> int:
        return self.heads // 2


WORKLOADS = {
    "a": Workload("tiny", 64, 2, 128, prompts=4, samples=4, prompt=12, new=16, together=10),
    "b": Workload("small", 256, 4, 512, prompts=16, samples=8, prompt=13, new=24),
    "c": Workload("medium", 512, 8, 512, prompts=8, samples=8, prompt=13, new=24),
    "d": Workload("long prompts", 256, 4, 512, prompts=4, samples=16, prompt=512, new=32),
    "e": Workload("long-tailed lengths", 256, 4, 64, prompts=8, samples=8, prompt=16, new=256, ends=True),
    "f": Workload("large vocabulary", 128, 2, 151_936, prompts=4, samples=8, prompt=16, new=16),
    "g": Workload("multi-turn", 256, 4, 512, prompts=8, samples=8, prompt=16, new=16, turns=3),
    "h": Workload("half of the groups flat", 256, 4, 512, prompts=16, samples=8, prompt=13, new=24, flat=True),
}
ANSWER = " ".join(f"w{i}" for i in range(2, 10))  # what the environment says after every reply but the last
TEMPLATE = "{% for message in messages %}{{ message['content'] }} {% endfor %}"


def rewarded(work: Workload, prompt: str, said: str) -> float:
    """The reward of a reply: the share of its words that have an even number. It is learnt in a few dozen steps."""
    return 0.0 if work.flat and even(prompt.split()[0]) else even(said)


def even(text: str) -> float:
    words = [int(word[1:]) for word in text.split() if word[1:].isdigit()]
    return sum(number % 2 == 0 for number in words) / max(len(words), 1)


def build(work: Workload, folder: Path) -> None:
    """A Qwen3 checkpoint with random weights, its tokenizer of whole words, and the prompts, one JSON line each."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    rows = work.vocabulary
    words: dict[str, int] = {"<end>": 0 if work.ends else rows, "<pad>": 1}
    words |= {f"w{i}": i for i in range(0 if not work.ends else 2, rows) if i != 1}
    core = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    tokenizer: Any = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<end>", pad_token="<pad>", chat_template=TEMPLATE
    )
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=rows,
        hidden_size=work.hidden,
        intermediate_size=work.inner,
        num_hidden_layers=work.layers,
        num_attention_heads=work.heads,
        num_key_value_heads=work.key_heads,
        head_dim=work.hidden // work.heads,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=1,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    draw = random.Random(0)
    lines = [" ".join(f"w{draw.randrange(2, rows)}" for _ in range(work.prompt)) for _ in range(64)]
    (folder / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": line}) for line in lines))
