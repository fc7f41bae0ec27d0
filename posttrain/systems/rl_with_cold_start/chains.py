"""A teacher's chains on problems of the user's own: each is written as soon as its problem is answered.

answers.jsonl          what came of every problem so far; work that was interrupted goes on after it
demonstrations.jsonl   the chains that were kept, once all problems are answered: what is learned
chains.json            the settings they were made with, which a resume must share
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from posttrain.chat import in_words
from posttrain.core import Group, Message, Reward, Sampler, Task
from posttrain.data import Demonstration
from posttrain.episode import rollout
from posttrain.policy.pixels import opened
from posttrain.run.lines import Lines
from posttrain.run.progress import bar
from posttrain.systems.rl_with_cold_start.styles import STYLES, judged

CHAINS, ANSWERS = "demonstrations.jsonl", "answers.jsonl"
MOST_FAILED = 0.1  # share of problems that the teacher may fail on


def collected(
    teacher: Sampler,
    tasks: Sequence[Task],
    verify: Reward,
    style: str,
    candidates: int,
    seed: int,
    folder: Path,
    system: str | None = None,
    quiet: bool = False,
) -> Path:
    """The file of the chains that are kept, in a folder that is `prepared`; a problem is not asked about twice.

    Raises ValueError, with the first reason, when the teacher could not answer more than a tenth of the problems; what
    it did answer stays, for a resume.
    """
    path, answers = folder / CHAINS, folder / ANSWERS
    if path.is_file():
        return path
    lines, failures = Lines(answers), list[str]()
    known = {line["id"] for line in lines.found}
    numbers = [number for number, task in enumerate(tasks) if task.key not in known]
    with bar("problems", len(tasks), quiet) as step:
        step(len(known))

        def ended(i: int, group: Group) -> None:
            task, found = group[0].task, judged(group, verify, style)
            line: dict[str, Any] = {"id": task.key, "chain": None}
            if found.chain is not None:
                line["chain"] = record(task.key, found.chain, folder / f"picture-{numbers[i]}", system)
            if len(found.ungraded) == len(group):  # asked again on a resume
                failures.append(found.ungraded[0])
            else:
                lines.add(line)
            step()

        left = [tasks[number] for number in numbers]
        if left:
            rollout(STYLES[style], left, {"policy": teacher}, candidates, seed, ended, numbers)
    if failures:
        counted = (
            f"the teacher could not answer {len(failures)} of {len(tasks)} problems; the first because: {failures[0]}"
        )
        if len(failures) > MOST_FAILED * len(tasks):
            raise ValueError(f"{counted}\nwhat it did answer is kept: --resume asks for the rest")
        print(f"warning: {counted}", file=sys.stderr)
    chains = {line["id"]: line["chain"] for line in lines.found}
    Lines(path).replace(chains[task.key] for task in tasks if chains.get(task.key))
    return path


def record(key: str, chain: Demonstration, picture: Path, system: str | None = None) -> dict[str, Any]:
    """A chain with the columns id, prompt, images and response, which `--stage sft` reads.

    The message that every stage puts first itself, `system`, is left out. Pictures that are no files are written as
    PNG, under the name of `picture`.
    """
    *asked, said = chain.messages
    if system is not None and asked[0] == {"role": "system", "content": system}:
        asked = asked[1:]
    return {
        "id": key,
        "prompt": [{"role": message["role"], "content": in_words(message["content"])} for message in asked],
        "images": [stored(image, Path(f"{picture}-{i}.png")) for i, image in enumerate(images_of(asked))],
        "response": said["content"],
    }


def images_of(messages: Sequence[Message]) -> list[Any]:
    contents = [message["content"] for message in messages if not isinstance(message["content"], str)]
    return [part.get("image", part.get("path")) for parts in contents for part in parts if part.get("type") == "image"]


def stored(image: Any, path: Path) -> str:
    """Where a picture's file is; one that has none is written."""
    if isinstance(image, str | Path):
        return str(Path(image).absolute())
    opened(image).save(path)
    return str(path.absolute())
