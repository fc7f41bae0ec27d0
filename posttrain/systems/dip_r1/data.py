"""Pictures with boxes: COCO-style JSON, and CrowdHuman's .odgt.

    COCO        {"images": [{"id", "file_name"}], "categories": [{"id", "name"}],
                 "annotations": [{"image_id", "category_id", "bbox": [x, y, width, height], "iscrowd"}]}
    CrowdHuman  a line for each picture, ID.jpg:
                {"ID", "gtboxes": [{"tag": "person", "fbox", "vbox", "extra": {"ignore": 1}}, {"tag": "mask", "fbox"}]}

What is a crowd, a mask or to be ignored is a region where a box is neither right nor wrong. Boxes are cut at the edges
of their picture, and left out if nothing is left of them: published files have some without an area.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import posttrain as pt
from posttrain.policy.pixels import pillow
from posttrain.records import lines_of, open_text, parsed
from posttrain.systems.dip_r1.frames import Box

Extent = Literal["full", "visible"]
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that exchange width and height


@dataclass(slots=True)
class Scene:
    """A picture of so many pixels, what is to be found in it, and regions that do not count."""

    key: str
    picture: str
    width: int
    height: int
    category: str
    place: str  # for error messages
    boxes: list[Box] = field(default_factory=list)
    ignored: list[Box] = field(default_factory=list)

    def add(self, box: Box, ignored: bool) -> None:
        x1, y1, x2, y2 = box
        cut = max(x1, 0.0), max(y1, 0.0), min(x2, float(self.width)), min(y2, float(self.height))
        if cut[0] < cut[2] and cut[1] < cut[3]:
            (self.ignored if ignored else self.boxes).append(cut)


def scenes(
    file: str,
    pictures: str | None = None,
    category: str | None = None,
    extent: Extent = "full",
    limit: int | None = None,
) -> list[Scene]:
    """The pictures of a file.

    pictures  folder of the pictures; the file's own if not given
    category  of COCO's, which of its categories is to be found; its only one if not given. CrowdHuman has persons
    extent    of CrowdHuman's boxes: of full bodies, or of what is visible of them
    limit     only the first so many pictures
    Raises ValueError naming the file with its line or entry for what cannot be read, and for a picture that is not
    there.
    """
    if limit is not None:
        pt.at_least(1, limit=limit)
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"`data={file}`: there is no such file")
    folder = Path(pictures) if pictures else path.parent
    if path.suffix == ".odgt":
        found = crowd_human(path, folder, category, extent, limit)
    elif path.suffix == ".json":
        found = coco(path, folder, category, limit)
    else:
        raise ValueError(
            f"`data={file}`: the ending {path.suffix!r} is neither .json, as COCO's, nor CrowdHuman's .odgt"
        )
    if not found:
        raise ValueError(f"`data={file}`: there is no picture in it")
    return found


# ---- COCO


def coco(path: Path, folder: Path, category: str | None, limit: int | None) -> list[Scene]:
    with open_text(path) as text:
        whole = parsed("".join(lines_of(path, text)), str(path))
    if not isinstance(whole, Mapping):
        raise ValueError(f"{path}: a {type(whole).__name__}, not an object with images, annotations and categories")
    images, categories, annotations = (
        dict(entries(whole, name, path)) for name in ("images", "categories", "annotations")
    )
    wanted, name = wanted_category(categories, category, path)
    found: dict[Any, Scene] = {}
    known = set()
    for place, one in images.items():
        key = value(one, "id", (int, str), place)
        if key in known:
            raise ValueError(f"{place}: the id {key!r} was there before; ids must be unique")
        known.add(key)
        if limit is None or len(found) < limit:
            found[key] = scene(str(key), folder / value(one, "file_name", (str,), place), name, place)
    for place, one in annotations.items():
        image = value(one, "image_id", (int, str), place)
        if image not in known:
            raise ValueError(f"{place}: there is no image with the id {image!r}")
        if value(one, "category_id", (int, str), place) == wanted and image in found:
            found[image].add(box_at(one, "bbox", place), bool(one.get("iscrowd", 0)))
    return list(found.values())


def entries(whole: Mapping[str, Any], name: str, path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The objects of a list, each with its place."""
    some = whole.get(name)
    if not isinstance(some, list):
        raise ValueError(f"{path}: it has no list of {name}, as COCO's files have")
    for i, one in enumerate(some):
        if not isinstance(one, Mapping):
            raise ValueError(f"{path}: {name}[{i}]: a {type(one).__name__}, not an object")
        yield f"{path}: {name}[{i}]", one


def wanted_category(categories: Mapping[str, Mapping[str, Any]], category: str | None, path: Path) -> tuple[Any, str]:
    """Id and name of the category that is to be found."""
    names = {
        value(one, "name", (str,), place): value(one, "id", (int, str), place) for place, one in categories.items()
    }
    if category is None and len(names) != 1:
        raise ValueError(f"{path}: name one of its categories with `category`: {', '.join(names) or 'it has none'}")
    name = next(iter(names)) if category is None else pt.check_choice(category, names, "category")
    return names[name], name


# ---- CrowdHuman


def crowd_human(path: Path, folder: Path, category: str | None, extent: Extent, limit: int | None) -> list[Scene]:
    if category not in (None, "person"):
        raise ValueError(f"`category={category}`: CrowdHuman's files have persons")
    name, found, seen = "fbox" if extent == "full" else "vbox", list[Scene](), set[str]()
    with open_text(path) as text:
        for number, line in enumerate(lines_of(path, text), 1):
            if not line.strip():
                continue
            if len(found) == limit:
                break
            place = f"{path}:{number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{place}: malformed JSON, {error}") from error
            if not isinstance(row, Mapping):
                raise ValueError(f"{place}: a {type(row).__name__}, not an object with ID and gtboxes")
            key = value(row, "ID", (str,), place)
            if key in seen:
                raise ValueError(f"{place}: the ID {key!r} was there before; IDs must be unique")
            seen.add(key)
            found.append(scene(key, folder / f"{key}.jpg", "person", place))
            add_persons(found[-1], value(row, "gtboxes", (list,), place), name, place)
    return found


def add_persons(one: Scene, given: list[Any], name: str, place: str) -> None:
    """A mask has a full box alone, and is ignored, as is a person that `extra` says to ignore."""
    for i, row in enumerate(given):
        at = f"{place}: gtboxes[{i}]"
        if not isinstance(row, Mapping):
            raise ValueError(f"{at}: a {type(row).__name__}, not an object")
        tag, extra = value(row, "tag", (str,), at), row.get("extra") or {}
        if not isinstance(extra, Mapping):
            raise ValueError(f"{at}: 'extra' is {extra!r}, not an object")
        ignored = tag != "person" or bool(extra.get("ignore", 0))
        one.add(box_at(row, "fbox" if tag != "person" else name, at), ignored)


# ---- both


def scene(key: str, picture: Path, category: str, place: str) -> Scene:
    """Raises ValueError for a picture that is not there or cannot be read."""
    library = pillow()
    try:
        with library.Image.open(picture) as opened:
            width, height = opened.size
            if opened.getexif().get(0x0112) in SIDEWAYS:  # it will be shown upright
                width, height = height, width
    except FileNotFoundError as error:
        raise ValueError(f"{place}: there is no picture {picture}; name their folder with `pictures`") from error
    except (OSError, ValueError, SyntaxError, library.Image.DecompressionBombError) as error:
        raise ValueError(f"{place}: the picture {picture} cannot be read: {error}") from error
    return Scene(key, str(picture), width, height, category, place)


def value(row: Mapping[str, Any], name: str, kinds: tuple[type, ...], place: str) -> Any:
    """A row's value of one of these types. Raises ValueError for another, and where there is none."""
    if type(row.get(name)) not in kinds:
        wanted = " or ".join({int: "a whole number", str: "text", list: "a list"}[kind] for kind in kinds)
        raise ValueError(f"{place}: {name!r} is {row.get(name)!r}, not {wanted}")
    return row[name]


def box_at(row: Mapping[str, Any], name: str, place: str) -> Box:
    """A row's [x, y, width, height] as a box."""
    given = row.get(name)
    numbers = given if isinstance(given, list) else []
    is_box = len(numbers) == 4 and all(type(n) in (int, float) and abs(n) < math.inf for n in numbers)
    if not is_box or min(numbers[2:]) < 0:
        raise ValueError(f"{place}: {name!r} is {given!r}, not [x, y, width, height] of finite numbers")
    try:
        x, y, width, height = map(float, numbers)
    except OverflowError as error:
        raise ValueError(f"{place}: {name!r} has a number that is too large") from error
    return x, y, x + width, y + height
