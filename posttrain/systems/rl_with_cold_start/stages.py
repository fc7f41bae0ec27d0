"""The cold start on a checkpoint and data of the user's own: chains to a file, then supervised fine-tuning on them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.chat import in_words
from posttrain.core import Message
from posttrain.data import Demonstration
from posttrain.options import RunOptions
from posttrain.policy.pixels import opened
from posttrain.policy.text import TextPolicy
from posttrain.run import Session
from posttrain.supervised import sft

CHAINS = "demonstrations.jsonl"
STARTED = ("distil", "sft")  # stages whose checkpoints reinforcement starts from


def written(chains: Mapping[str, Demonstration], folder: Path) -> Path:
    """The chains as a file with the columns id, prompt, images and response, which `--stage sft` reads.

    The system's message is left out: every stage puts it there itself. Pictures that are no files are written as PNG.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, (key, one) in enumerate(chains.items()):
        *asked, said = [message for message in one.messages if message["role"] != "system"]
        images = [stored(image, folder / f"picture-{number}-{i}.png") for i, image in enumerate(images_of(asked))]
        prompt = [{"role": message["role"], "content": in_words(message["content"])} for message in asked]
        line = {"id": key, "prompt": prompt, "response": said["content"]}
        lines.append(json.dumps({**line, **({"images": images} if images else {})}))
    path = folder / CHAINS
    path.write_text("\n".join(lines) + "\n")
    return path


def images_of(messages: Sequence[Message]) -> list[Any]:
    contents = [message["content"] for message in messages if not isinstance(message["content"], str)]
    return [part.get("image", part.get("path")) for parts in contents for part in parts if part.get("type") == "image"]


def stored(image: Any, path: Path) -> str:
    """Where a picture's file is; one that has none is written."""
    if isinstance(image, str | Path):
        return str(Path(image).absolute())
    opened(image).save(path)
    return str(path.absolute())


def aligned(policy: TextPolicy, vision: bool = False) -> None:
    """Leave the vision tower as it is, unless `vision`; what maps its features to tokens is trained (as published)."""
    for name, parameter in policy.model.named_parameters():
        if not vision and "visual." in name and "merger" not in name:
            parameter.requires_grad_(False)


def cold_started(
    policy: TextPolicy, demonstrations: Sequence[Demonstration], run: RunOptions, described: Mapping[str, Any]
) -> Session:
    """Supervised fine-tuning on the chains. Raises ValueError when there are none."""
    if not demonstrations:
        raise ValueError(
            f"--stage {described['stage']}: not one chain of the teacher was right, so there is nothing to learn"
        )
    return sft(policy, demonstrations, run.run(chains=len(demonstrations), **described))


def check_started(model: str) -> None:
    """Raises ValueError for a checkpoint that no cold start has written: RL on it is the paper's RL-only arm."""
    about = Path(model).expanduser().parent / "run.json"
    settings = json.loads(about.read_text()).get("run", {}).get("settings", {}) if about.is_file() else {}
    if settings.get("stage") not in STARTED:
        raise ValueError(
            f"--stage rl --model {model}: this is no checkpoint of --stage distil or sft, so there was no cold start; "
            "give one (RUN/model), or --no-cold-start for reinforcement alone"
        )
