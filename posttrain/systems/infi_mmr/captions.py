"""Descriptions of a file's pictures by a captioner, each made once.

replies.jsonl    what was said about every problem so far; work that was interrupted goes on after it
captions.jsonl   the problems with a column `caption`: what the phase captioned reads
captions.json    the settings, which a resume must share

The captioner sees the pictures and not the question, so that a caption cannot give the answer away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import posttrain as pt
from posttrain.chat import without_thinking
from posttrain.data import MARK, with_pictures
from posttrain.grade.stated import whole_reply
from posttrain.policy.pixels import open_picture
from posttrain.systems.infi_mmr.data import Problem, pictures_of

CAPTIONS, REPLIES = "captions.jsonl", "replies.jsonl"
DESCRIBE = (
    "Describe what is to be seen as exactly as you can: every number, label, word and shape, and how they lie to one "
    "another. Do not solve anything."
)


def to_describe(one: Problem) -> pt.Task:
    """What the captioner is asked. Raises ValueError for a problem without pictures."""
    if not one.pictures:
        raise ValueError(f"{one.place}: there are no pictures to describe")
    asked = MARK * len(pictures_of(one)) + DESCRIBE
    return pt.Task(one.key, with_pictures((pt.user(asked),), one.record, one.pictures, one.place), None)


def description(group: pt.Group) -> Mapping[str, Any] | pt.Invalid:
    """What the captioner said, behind what it thought; None where it said nothing."""
    [one] = group
    if isinstance(one.facts, pt.Failure):
        return pt.Invalid(one.facts.reason)
    return {"caption": without_thinking(whole_reply(one)).strip() or None}


def write_captions(folder: Path, some: Sequence[Problem], lines: Sequence[Mapping[str, Any]]) -> int:
    """Write captions.jsonl, with the problems that have a caption; returns their number."""
    known = {line["id"]: line["caption"] for line in lines if line["caption"]}
    rows = [
        {**one.record, "id": one.key, str(one.pictures): stored_pictures(one, folder), "caption": known[one.key]}
        for one in some
        if one.key in known
    ]
    pt.ranks.run_on_primary(lambda: pt.Lines(folder / CAPTIONS).replace(rows), "for the captions")
    return len(rows)


def stored_pictures(one: Problem, folder: Path) -> list[str]:
    """Paths of a problem's pictures; those that are no files are written to the folder as PNG."""
    [message] = to_describe(one).prompt
    found = [part["image"] for part in message["content"] if part["type"] == "image"]
    return [stored_picture(image, folder / f"picture-{one.place.line}-{i}.png") for i, image in enumerate(found)]


def stored_picture(image: Any, path: Path) -> str:
    if isinstance(image, str):
        return str(Path(image).absolute())
    if pt.ranks.is_primary():
        open_picture(image).save(path)
    return str(path.absolute())
