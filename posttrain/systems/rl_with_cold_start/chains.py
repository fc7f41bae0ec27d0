"""A teacher's chains on problems of your own: each is written as soon as its problem is answered.

answers.jsonl   what came of every problem so far; work that was interrupted goes on after it
chains.jsonl    the chains that were kept, once all problems are answered: what is learned
chains.json     the settings they were made with, which a resume must share
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import posttrain as pt
from posttrain.chat import readable_content
from posttrain.core import ShardedSampler
from posttrain.evaluation import GROUPS_AT_ONCE
from posttrain.policy.pixels import open_picture
from posttrain.run.lines import whole_lines
from posttrain.systems.rl_with_cold_start.styles import STYLES, Choice, choose

CHAINS, ANSWERS = "chains.jsonl", "answers.jsonl"
MOST_FAILED = 0.1  # share of problems that the teacher may fail on


class Answers:
    """What came of every problem, and which the teacher could not answer. The first of several ranks writes."""

    def __init__(self, folder: Path, system: str | None):
        self.folder, self.system = folder, system
        self.known = {
            line["id"] for line in pt.ranks.run_on_primary(lambda: list(whole_lines(folder / ANSWERS)), "for answers")
        }
        self.lines = pt.Lines(folder / ANSWERS) if pt.ranks.is_primary() else None
        self.failures: list[str] = []

    def add(self, number: int, key: str, found: Choice, candidates: int) -> None:
        """Keep what came of the problem of this number; one whose candidates all failed is asked again on a resume."""
        if len(found.ungraded) == candidates:
            self.failures.append(found.ungraded[0])
            return
        self.known.add(key)
        if self.lines:
            picture = self.folder / f"picture-{number}"
            chain = None if found.chain is None else record(key, found.chain, picture, self.system)
            self.lines.add({"id": key, "chain": chain})

    def check(self, problems: int) -> None:
        """Raises ValueError, with the first reason, when the teacher could not answer more than a tenth of them."""
        if not self.failures:
            return
        counted = (
            f"the teacher could not answer {len(self.failures)} of {problems} problems; the first because: "
            f"{self.failures[0]}"
        )
        if len(self.failures) > MOST_FAILED * problems:
            raise ValueError(f"{counted}\nwhat it did answer is kept: `resume=True` asks for the rest")
        if pt.ranks.is_primary():
            print(f"warning: {counted}", file=sys.stderr)

    def write_chains(self, tasks: Sequence[pt.Task]) -> int:
        """Write the chains in the order of their tasks; returns how many there are."""
        assert self.lines is not None
        chains = {line["id"]: line["chain"] for line in self.lines.found}
        kept = [chains[task.key] for task in tasks if chains.get(task.key)]
        pt.Lines(self.folder / CHAINS).replace(kept)
        return len(kept)


def collect(
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

    Raises ValueError, with the first reason, when the teacher could not answer more than a tenth of the problems; what
    it did answer stays, for a resume.
    """
    if count := pt.ranks.run_on_primary(lambda: len(list(whole_lines(folder / CHAINS))), "for the chains"):
        return count
    answers = Answers(folder, system)
    left = [number for number, task in enumerate(tasks) if task.key not in answers.known]
    at_once = len(left) if pt.ranks.world() == 1 else GROUPS_AT_ONCE * pt.ranks.world()
    with pt.progress_bar("problems", len(tasks), quiet or not pt.ranks.is_primary()) as step:
        step(len(tasks) - len(left))
        with teacher.gather_parameters() if isinstance(teacher, ShardedSampler) else nullcontext():
            for start in range(0, len(left), max(at_once, 1)):
                mine, done = pt.ranks.share(left[start : start + at_once]), dict[int, Choice]()

                def ended(i: int, group: pt.Group, mine: Any = mine, done: Any = done) -> None:
                    done[mine[i]] = choose(group, verify, style)
                    if pt.ranks.is_primary():
                        answers.add(mine[i], group[0].task.key, done[mine[i]], candidates)
                    step()

                pt.rollout(STYLES[style], [tasks[n] for n in mine], {"policy": teacher}, candidates, seed, ended, mine)
                for number, found in pt.ranks.merge_shares(list(done.items()), "for the teacher's answers"):
                    if not (pt.ranks.is_primary() and number in done):
                        answers.add(number, tasks[number].key, found, candidates)
    answers.check(len(tasks))
    return pt.ranks.run_on_primary(lambda: answers.write_chains(tasks), "for the chains")


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
