"""A teacher's chains on problems of your own: each is written as soon as its problem is answered.

answers.jsonl   what came of every problem so far; work that was interrupted goes on after it
chains.jsonl    the chains that were kept, once all problems are answered: what is learned
chains.json     the settings they were made with, which a resume must share
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import posttrain as pt
from posttrain.chat import readable_content
from posttrain.policy.pixels import open_picture
from posttrain.systems.rl_with_cold_start.styles import STYLES, choose

CHAINS, ANSWERS = "chains.jsonl", "answers.jsonl"


def collect_chains(
    teacher: pt.Sampler,
    tasks: Sequence[pt.Task],
    verify: pt.Reward,
    style: str,
    candidates: int,
    seed: int,
    folder: Path,
    system: str | None = None,
    quiet: bool = False,
) -> int:
    """Write the chains that are kept to a folder that is there; no problem is asked about twice. Returns their number.

    Raises ValueError, with the first reason, when more than a tenth of the problems could not be answered; what was
    answered stays, for a resume.
    """
    numbers = {task.key: number for number, task in enumerate(tasks)}

    def line(group: pt.Group) -> Mapping[str, Any] | pt.Invalid:
        found, key = choose(group, verify, style), group[0].task.key
        if len(found.ungraded) == candidates:
            return pt.Invalid(found.ungraded[0])
        picture = folder / f"picture-{numbers[key]}"
        return {"chain": None if found.chain is None else record(key, found.chain, picture, system)}

    options: dict[str, Any] = {"env": STYLES[style], "samples": candidates, "seed": seed, "name": "problems"}
    lines = pt.collect(teacher, tasks, line, folder / ANSWERS, quiet=quiet, **options)
    kept = [found["chain"] for found in lines if found["chain"]]
    pt.ranks.run_on_primary(lambda: pt.Lines(folder / CHAINS).replace(kept), "for the chains")
    return len(kept)


def record(key: str, chain: pt.Demonstration, picture: Path, system: str | None = None) -> dict[str, Any]:
    """A chain with the columns id, prompt, images and response, which stage sft reads.

    The message that every stage puts first itself, `system`, is left out. Pictures that are no files are written as
    PNG, under the name of `picture`.
    """
    *asked, said = chain.messages
    if system is not None and asked[0] == {"role": "system", "content": system}:
        asked = asked[1:]
    return {
        "id": key,
        "prompt": [{"role": message["role"], "content": readable_content(message["content"])} for message in asked],
        "images": [store(image, Path(f"{picture}-{i}.png")) for i, image in enumerate(images_of(asked))],
        "response": said["content"],
    }


def images_of(messages: Sequence[pt.Message]) -> list[Any]:
    contents = [message["content"] for message in messages if not isinstance(message["content"], str)]
    return [part.get("image", part.get("path")) for parts in contents for part in parts if part.get("type") == "image"]


def store(image: Any, path: Path) -> str:
    """The path of a picture's file; a picture without one is written to `path`."""
    if isinstance(image, str | Path):
        return str(Path(image).absolute())
    open_picture(image).save(path)
    return str(path.absolute())
