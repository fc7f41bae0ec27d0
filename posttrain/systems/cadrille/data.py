"""Shapes of files, and what the model is shown of them: points on the surface, four pictures, or a description.

folder of *.py        programs, as CAD-Recode has them; what they make is both the input and the target
file of JSON lines    `program` and, where there is one, `description`, as Text2CAD has them
folder of meshes      shapes whose program nobody knows, as DeepCAD's and Fusion 360's test sets are published
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

import posttrain as pt
from posttrain.records import column, records
from posttrain.systems.cadrille.kernel.pool import Kernel, Target
from posttrain.systems.cadrille.kernel.syntax import Refused, check
from posttrain.systems.cadrille.points import MESHES, NOISE, Mesh, cloud
from posttrain.systems.cadrille.render import montage

Input: TypeAlias = Literal["points", "image", "text"]
PROMPT = "Generate cadquery code"
UNIT = 100.0  # programs live in [-100, 100]
AT_ONCE = 256  # shapes whose surfaces are made together


@dataclass(frozen=True, slots=True)
class Shape:
    """One shape: a program, or a file of a mesh, and perhaps its description. `place` says where it stands."""

    key: str
    target: Target
    place: str
    description: str | None = None


def read_shapes(data: str, limit: int | None = None, split: str = "train") -> list[Shape]:
    """Raises ValueError naming what is no program that the kernel runs, or a folder without shapes or of both kinds."""
    if limit is not None:
        pt.at_least(1, limit=limit)
    found = shapes_of_folder(Path(data), limit) if Path(data).is_dir() else shapes_of_records(data, limit, split)
    for shape in found:
        if isinstance(shape.target, str):
            try:
                check(shape.target)
            except Refused as refused:
                raise ValueError(f"{shape.place}: {refused}") from None
    return found


def shapes_of_folder(folder: Path, limit: int | None) -> list[Shape]:
    """Files of the folder and those below it, by their names without the ending."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".py", *MESHES))[:limit]
    programs = {path.suffix == ".py" for path in files}
    if len(programs) != 1:
        what = "both programs and meshes" if files else f"neither programs (.py) nor meshes ({', '.join(MESHES)})"
        raise ValueError(f"`data={folder}`: the folder holds {what}")
    return [
        Shape(
            str(path.relative_to(folder).with_suffix("")),
            path.read_text(encoding="utf-8") if path.suffix == ".py" else path,
            str(path),
        )
        for path in files
    ]


def shapes_of_records(data: str, limit: int | None, split: str) -> list[Shape]:
    found = []
    for place, record in records(data, limit, split):
        program = column(record, "program", place, "data")
        if not isinstance(program, str):
            raise ValueError(f"{place}: the column 'program' holds {type(program).__name__}, not text")
        description = record.get("description")
        found.append(Shape(str(record.get("id", place.line)), program, str(place), description and str(description)))
    keys = [shape.key for shape in found]
    if len(set(keys)) < len(keys):
        raise ValueError(f"`data={data}`: two shapes have the same id")
    return found


def prompts(
    shapes: Sequence[Shape], inputs: Sequence[Input], kernel: Kernel, seed: int = 0, noisy: float = 0.0
) -> Iterator[tuple[pt.Message, ...]]:
    """What the model is shown of each shape: of `inputs`, one that it has, drawn for each.

    noisy  share of the shapes whose vertices are disturbed
    Raises ValueError naming a shape that is no solid, or has none of the inputs.
    """
    for start in range(0, len(shapes), AT_ONCE):
        some = shapes[start : start + AT_ONCE]
        chosen: list[Input] = [input_of(shape, inputs, seed) for shape in some]
        seen = [shape for shape, one in zip(some, chosen, strict=True) if one != "text"]
        meshes = iter(kernel.meshes([shape.target for shape in seen]))
        for shape, one in zip(some, chosen, strict=True):
            if one == "text":
                yield (pt.user(shape.description or ""),)
                continue
            mesh, draw = next(meshes), np.random.default_rng(pt.mix(seed, "points", shape.key))
            if not isinstance(mesh, Mesh):
                raise ValueError(f"{shape.place}: {mesh if isinstance(mesh, str) else mesh.reason}")
            shown = in_sight(mesh, shape.target)
            shown = shown.noisy(draw, NOISE) if draw.random() < noisy else shown
            yield (pt.user([part_of(shown, one, draw), {"type": "text", "text": PROMPT}]),)


def input_of(shape: Shape, inputs: Sequence[Input], seed: int) -> Input:
    """The same for the same seed and key. Raises ValueError for a shape that has none of them."""
    able: list[Input] = [one for one in inputs if one != "text" or shape.description]
    if not able:
        raise ValueError(f"{shape.place}: a shape without a description, and `inputs={','.join(inputs)}`")
    return random.Random(pt.mix(seed, "input", shape.key)).choice(able)


def in_sight(mesh: Mesh, target: Target) -> Mesh:
    """Within [-1, 1]: a program's mesh divided by 100, one of a file moved and scaled to fill the cube."""
    return mesh.moved(np.zeros(3), 1 / UNIT) if isinstance(target, str) else mesh.in_cube().moved(np.zeros(3), 2.0)


def part_of(mesh: Mesh, kind: Input, draw: np.random.Generator) -> dict[str, object]:
    """A part of a message. `mesh` lies within [-1, 1]."""
    if kind == "points":
        return {"type": "points", "points": cloud(mesh, draw)}
    return {"type": "image", "image": montage(mesh.moved(np.zeros(3), 0.5))}


def tasks_of(shapes: Sequence[Shape], inputs: Sequence[Input], kernel: Kernel, seed: int = 0) -> list[pt.Task[Target]]:
    shown = prompts(shapes, inputs, kernel, seed)
    return [pt.Task(shape.key, prompt, shape.target) for shape, prompt in zip(shapes, shown, strict=True)]


def demonstrations_of(
    shapes: Sequence[Shape], inputs: Sequence[Input], kernel: Kernel, seed: int = 0, noisy: float = 0.5
) -> list[pt.Demonstration]:
    """Raises ValueError naming a shape without a program."""
    for shape in shapes:
        if not isinstance(shape.target, str):
            raise ValueError(f"{shape.place}: a mesh without a program cannot be imitated")
    return [
        pt.Demonstration((*prompt, pt.assistant(str(shape.target))), shape.place)
        for shape, prompt in zip(shapes, prompts(shapes, inputs, kernel, seed, noisy), strict=True)
    ]
