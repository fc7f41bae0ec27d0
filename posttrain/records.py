"""Records of files and datasets, each with its place: JSONL, CSV, Parquet, the Hugging Face Hub."""

from __future__ import annotations

import csv
import difflib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO, TypeVar

Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record stands, for error messages."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}"


def column(record: Record, name: str, place: Place, option: str) -> Any:
    """A record's column, or `outer.inner` of one that holds objects.

    Raises ValueError with the nearest name when there is none, or when it is empty.
    """
    outer, _, inner = name.partition(".")
    if name not in record and inner and isinstance(record.get(outer), Mapping):
        return column(record[outer], inner, place, option)
    if name not in record:
        near = difflib.get_close_matches(name, record, n=1)
        hint = f"; did you mean `{option}={near[0]}`?" if near else ""
        raise ValueError(f"{place}: there is no column {name!r}, only {', '.join(map(repr, record))}{hint}")
    value = record[name]
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        raise ValueError(f"{place}: the column {name!r} is empty; fill it in or leave the line out")
    return value


class Keyed(Protocol):
    @property
    def key(self) -> str: ...


Item = TypeVar("Item", bound=Keyed)


def with_unique_keys(found: Iterable[tuple[Place, Item]]) -> list[Item]:
    """What was made of records. Raises ValueError naming the place of a key, an id, that was there before."""
    items, seen = list[Item](), dict[str, int]()
    for place, item in found:
        if item.key in seen:
            raise ValueError(
                f"{place}: the id {item.key!r} was already used in line {seen[item.key]}; ids must be unique"
            )
        seen[item.key] = place.line
        items.append(item)
    return items


def records(
    data: str | Path | Sequence[Record], limit: int | None = None, split: str = "train"
) -> Iterator[tuple[Place, Record]]:
    """Every record with its place. Raises ValueError for a missing, empty or malformed file, or an empty list."""
    if limit is not None and limit < 1:
        raise ValueError(f"`limit={limit}`: it must be at least 1")
    if not isinstance(data, str | Path):
        if not data:
            raise ValueError("`data`: the list of records is empty")
        yield from ((Place("the list of records", i), record) for i, record in enumerate(data[:limit], 1))
        return
    path = Path(data)
    readers: dict[str, Callable[[Path], Iterator[tuple[Place, Record]]]] = {
        ".jsonl": jsonl,
        ".json": array_or_lines,
        ".csv": table,
        ".tsv": table,
        ".parquet": parquet,
    }
    if path.is_file():
        if path.suffix not in readers:
            raise ValueError(f"`data={data}`: the ending {path.suffix!r} is none of {', '.join(readers)}")
        found = readers[path.suffix](path)
    elif path.suffix in readers or str(data).startswith((".", "/", "~")):
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*")], n=1)
        raise ValueError(f"`data={data}`: there is no such file" + (f"; did you mean {near[0]}?" if near else ""))
    else:
        found = hub(str(data), split)
    count = 0
    for count, pair in enumerate(found, 1):
        yield pair
        if count == limit:
            break
    if not count:
        raise ValueError(f"`data={data}`: the file is empty")


def open_text(path: Path) -> TextIO:
    """A file of UTF-8, with a byte order mark or without. Raises ValueError for one that announces UTF-16."""
    with path.open("rb") as file:
        if file.read(2) in (b"\xff\xfe", b"\xfe\xff"):
            raise ValueError(f"{path} is UTF-16: save it as UTF-8 (iconv -f UTF-16 -t UTF-8)")
    return path.open(encoding="utf-8-sig", newline="" if path.suffix in (".csv", ".tsv") else None)


def lines_of(path: Path, file: TextIO) -> Iterator[str]:
    """Raises ValueError naming the line that is no UTF-8."""
    number = 0
    while True:
        try:
            line = file.readline()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path}, about line {number + 1}: it is not UTF-8 ({error.reason}); save it so, from Latin-1 by "
                "iconv -f LATIN1 -t UTF-8"
            ) from error
        if not line:
            return
        number += 1
        yield line


def parsed(text: str, place: str) -> Any:
    """Raises ValueError naming the place where the JSON is malformed, or holds what nobody can read."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = "" if ", line " in place else f", line {error.lineno}"
        raise ValueError(f"{place}{line}: malformed JSON, {error.msg} at column {error.colno}") from error
    except ValueError as error:  # an integer of more digits than Python reads
        raise ValueError(f"{place}: a number of too many digits; write it as text: {error}") from error


def jsonl(path: Path) -> Iterator[tuple[Place, Record]]:
    with open_text(path) as file:
        for number, line in enumerate(lines_of(path, file), 1):
            if not line.strip():
                continue
            record = parsed(line, f"{path}, line {number}")
            if not isinstance(record, dict):
                raise ValueError(f"{path}, line {number}: a {type(record).__name__}, not an object with columns")
            yield Place(str(path), number), record


def array_or_lines(path: Path) -> Iterator[tuple[Place, Record]]:
    """Of a file with one array of objects, each of these; else JSON lines."""
    with open_text(path) as file:
        text = "".join(lines_of(path, file))
    if not text.lstrip().startswith("["):
        yield from jsonl(path)
        return
    for number, record in enumerate(parsed(text, str(path)), 1):
        if not isinstance(record, dict):
            raise ValueError(f"{path}, entry {number}: a {type(record).__name__}, not an object with columns")
        yield Place(str(path), number), record


def table(path: Path) -> Iterator[tuple[Place, Record]]:
    """CSV with commas or semicolons, whichever its header has more of, or TSV."""
    with open_text(path) as file:
        header = next(lines_of(path, file), "")
        file.seek(0)
        separator = "\t" if path.suffix == ".tsv" else max(",;", key=header.count)
        reader = csv.DictReader(lines_of(path, file), delimiter=separator)
        for record in reader:
            if None in record or None in record.values():
                raise ValueError(f"{path}, line {reader.line_num}: it has not as many fields as the header")
            yield Place(str(path), reader.line_num), {name.lstrip("\ufeff"): value for name, value in record.items()}


def parquet(path: Path) -> Iterator[tuple[Place, Record]]:
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise ValueError(f"`data={path}`: Parquet needs the extra: pip install 'posttrain[data]'") from error
    number = 0
    for batch in ParquetFile(path).iter_batches():
        for record in batch.to_pylist():
            number += 1
            yield Place(str(path), number), record


def hub(name: str, split: str) -> Iterator[tuple[Place, Record]]:
    """A dataset id, or `id:configuration`."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ValueError(f"`data={name}`: a Hub dataset needs the extra: pip install 'posttrain[data]'") from error
    repository, _, configuration = name.partition(":")
    try:
        found = load_dataset(repository, configuration or None, split=split)
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(
            f"`data={name}`: neither a file here nor a dataset that the Hugging Face Hub gave us: {error}"
        ) from error
    for number, record in enumerate(found, 1):
        yield Place(name, number), dict(record)
