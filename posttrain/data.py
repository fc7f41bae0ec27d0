"""Tasks, demonstrations and preference pairs from the user's own files."""

from __future__ import annotations

import csv
import difflib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from posttrain.core import Message, Task
from posttrain.episode import assistant, user
from posttrain.episode import system as system_message

Record = Mapping[str, Any]
MARK = "<image>"  # in a prompt: here a picture stands
COLUMN = re.compile(r"\{([A-Za-z_]\w*)\}")  # in a template; other braces, as in \\boxed{}, stay as they are


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A conversation whose assistant messages are to be learned."""

    messages: tuple[Message, ...]
    place: str = field(default="", compare=False)  # where it stands, for error messages


@dataclass(frozen=True, slots=True)
class Pair:
    """Two replies to one prompt, the first preferred."""

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    kind: str = ""  # of a category, where results are told apart by it


def read(
    data: str | Path,
    prompt: str = "prompt",
    answer: str | None = "answer",
    *,
    image: str | None = None,
    system: str | None = None,
    limit: int | None = None,
    split: str = "train",
) -> list[Task]:
    """Tasks from a JSONL, CSV or Parquet file, or a dataset of the Hugging Face Hub.

    prompt   a column, or a template such as "Solve {question}"; a column of chat messages is taken as it is
    answer   the column of the truth that rewards see; None when there is none
    image    the column of pictures; `<image>` in the prompt says where each stands, else they come first
    system   a system message put before every prompt
    Keys are the column `id` where there is one, else the line. Raises ValueError naming file, line and column.
    """
    tasks: list[Task] = []
    seen: dict[str, int] = {}
    for place, record in records(data, limit, split):
        asked = with_pictures(prompt_of(record, prompt, place), record, image, place)
        messages = (*([system_message(system)] if system else []), *asked)
        key = str(record.get("id", record.get("key", place.line)))
        if key in seen:
            raise ValueError(f"{place}: the id {key!r} was already used in line {seen[key]}; ids must be unique")
        seen[key] = place.line
        tasks.append(Task(key, messages, None if answer is None else column(record, answer, place, "answer")))
    return tasks


def read_demonstrations(
    data: str | Path,
    prompt: str = "prompt",
    response: str = "response",
    *,
    image: str | None = None,
    system: str | None = None,
    **options: Any,
) -> list[Demonstration]:
    """Demonstrations: `prompt` and `response` columns, or one column of chat messages with assistant replies in it.

    `image` is a column of pictures, as for `read`.
    """
    out = []
    for place, record in records(data, **options):
        before: list[Message] = [system_message(system)] if system else []
        if prompt in record and is_chat(record[prompt]) and response not in record:
            said = [with_reply(message, place, prompt) for message in record[prompt]]
            messages = (*before, *with_pictures(said, record, image, place))
            if not any(message["role"] == "assistant" for message in messages):
                raise ValueError(f"{place}: the messages in {prompt!r} hold no assistant reply to learn")
        else:
            said = reply_text(column(record, response, place, "response"), place, response)
            asked = with_pictures(prompt_of(record, prompt, place), record, image, place)
            messages = (*before, *asked, assistant(said))
        out.append(Demonstration(messages, str(place)))
    return out


def read_pairs(
    data: str | Path,
    prompt: str = "prompt",
    chosen: str = "chosen",
    rejected: str = "rejected",
    *,
    system: str | None = None,
    category: str | None = None,
    **options: Any,
) -> list[Pair]:
    """Preference pairs: a prompt and two replies, each plain text or chat messages.

    Where `chosen` and `rejected` are whole conversations, the prompt is what they share before the last message.
    `category` names a column of kinds of pair.
    """
    out = []
    for place, record in records(data, **options):
        good, bad = column(record, chosen, place, "chosen"), column(record, rejected, place, "rejected")
        before = [system_message(system)] if system else []
        if prompt in record or COLUMN.search(prompt):
            asked = prompt_of(record, prompt, place)
        elif is_chat(good) and len(good) > 1:
            asked = tuple(good[:-1])
            if list(bad[:-1]) != list(good[:-1]):
                raise ValueError(f"{place}: {chosen!r} and {rejected!r} do not share their messages before the last")
        else:
            asked = prompt_of(record, prompt, place)
        asked = with_pictures(asked, record, None, place)
        pair = Pair((*before, *asked), reply_text(good, place, chosen), reply_text(bad, place, rejected))
        if category:
            pair = replace(pair, kind=str(column(record, category, place, "category")))
        if pair.chosen == pair.rejected:
            raise ValueError(f"{place}: {chosen!r} and {rejected!r} are the same text, so there is nothing to prefer")
        out.append(pair)
    return out


# ---- places and columns


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
    if record[name] is None or record[name] == "":
        raise ValueError(f"{place}: the column {name!r} is empty; fill it in or leave the line out")
    return record[name]


def prompt_of(record: Record, prompt: str, place: Place) -> tuple[Message, ...]:
    """The messages of a prompt: of a template with {columns}, of a chat column, or of a text column."""
    if COLUMN.search(prompt):
        return (user(COLUMN.sub(lambda found: str(column(record, found[1], place, "prompt")), prompt)),)
    value = column(record, prompt, place, "prompt")
    if is_chat(value):
        messages = tuple(value)
        return messages[:-1] if messages[-1]["role"] == "assistant" else messages
    if not isinstance(value, str):
        raise ValueError(f"{place}: the column {prompt!r} holds {type(value).__name__}, neither text nor chat messages")
    return (user(value),)


def with_pictures(messages: Sequence[Message], record: Record, name: str | None, place: Place) -> tuple[Message, ...]:
    """The messages with the pictures of a column where the text says `<image>`, or before the first user's text.

    What an assistant says has no pictures in it. Raises ValueError when there are not as many marks as pictures, when a
    file is not there, and when no column is named where pictures are missing.
    """
    messages = [without_nulls(message) for message in messages]
    if name is None:
        check_complete(messages, record, place)
        return tuple(messages)
    value = column(record, name, place, "image")
    given = list(value) if isinstance(value, list | tuple) else [value]
    left = [{"type": "image", "image": resolve_picture(one, place)} for one in given]
    split = [parts_of(message["content"]) if message["role"] != "assistant" else [] for message in messages]
    holes = sum(map(is_empty_picture, (part for parts in split for part in parts)))
    if holes and holes != len(left):
        raise ValueError(f"{place}: the prompt has {holes} {MARK}, and the column {name!r} has {len(left)} pictures")
    first = next((i for i, message in enumerate(messages) if message["role"] == "user"), 0)
    out: list[Message] = []
    for i, (message, parts) in enumerate(zip(messages, split, strict=True)):
        if left and not holes and i == first:
            out.append({**message, "content": [*left, *parts]})
        elif any(map(is_empty_picture, parts)):
            out.append({**message, "content": [left.pop(0) if is_empty_picture(part) else part for part in parts]})
        else:
            out.append(message)
    return tuple(out)


def without_nulls(message: Message) -> Message:
    """A message whose parts have only what is given: Parquet files have every key of any part in all of them."""
    if not isinstance(message["content"], list | tuple):
        return message
    parts = [
        {key: value for key, value in part.items() if value is not None} if isinstance(part, Mapping) else part
        for part in message["content"]
    ]
    return {**message, "content": parts}


def check_complete(messages: Sequence[Message], record: Record, place: Place) -> None:
    """Raises ValueError when a message has a place for a picture, and no column of pictures is named to fill it."""
    asked = [message["content"] for message in messages if message["role"] != "assistant"]
    if any(
        map(is_empty_picture, (part for content in asked if not isinstance(content, str) for part in parts_of(content)))
    ):
        raise ValueError(
            f"{place}: a picture is to stand in the messages, and none is given; it goes under 'image', or in a column "
            "named by `image`"
        )
    columns = [name for name in ("images", "image") if record.get(name)]
    if columns and any(isinstance(content, str) and MARK in content for content in asked):
        raise ValueError(
            f"{place}: the prompt says {MARK} and there is a column {columns[0]!r}: give `image={columns[0]}` "
            f"(preference pairs are of text only: leave the line, or {MARK}, out)"
        )


def parts_of(content: Any) -> list[dict[str, Any]]:
    """A message's content as parts, with an empty picture for every mark in a text."""
    if not isinstance(content, str):
        return list(content or ())
    first, *rest = content.split(MARK)
    parts = [{"type": "text", "text": first}]
    for text in rest:
        parts += [{"type": "image"}, {"type": "text", "text": text}]
    return [part for part in parts if part.get("text") != ""]


def is_empty_picture(part: Mapping[str, Any]) -> bool:
    """A picture that is yet to be given."""
    return isinstance(part, Mapping) and part.get("type") == "image" and not {"image", "path"} & set(part)


def resolve_picture(image: Any, place: Place) -> Any:
    """A picture of a column: a path made relative to its data file's folder, or the picture itself."""
    if isinstance(image, Mapping) and image.get("bytes") is None:
        image = image.get("path")
    if image is None:
        raise ValueError(f"{place}: a picture of its column is empty; fill it in or leave the line out")
    if not isinstance(image, str):
        return image
    folder = Path(place.file).parent if Path(place.file).is_file() else Path()
    path = folder / Path(image).expanduser()
    if not path.is_file():
        raise ValueError(f"{place}: there is no picture {path}")
    return str(path)


def is_chat(value: Any) -> bool:
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and len(value) > 0
        and all(isinstance(message, Mapping) and {"role", "content"} <= set(message) for message in value)
    )


def reply_text(value: Any, place: Place, name: str) -> str:
    """A reply given as text or as chat messages that end in it."""
    if is_chat(value):
        value = with_reply(assistant(value[-1]["content"]), place, name)["content"]
    if not isinstance(value, str):
        raise ValueError(f"{place}: the column {name!r} holds {type(value).__name__}, neither text nor chat messages")
    return value


def with_reply(message: Message, place: Place, name: str) -> Message:
    """A message, an assistant's with its content as text. Raises ValueError for one that says more than text."""
    content = message["content"]
    if message["role"] != "assistant" or isinstance(content, str):
        return message
    texts = [part.get("text") if isinstance(part, Mapping) else None for part in content or ()]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{place}: an assistant's message in {name!r} is not text, so it cannot be learned")
    return {**message, "content": "".join(map(str, texts))}


# ---- files


def records(data: str | Path, limit: int | None = None, split: str = "train") -> Iterator[tuple[Place, Record]]:
    """Every record with its place. Raises ValueError for a missing, empty or malformed file."""
    if limit is not None and limit < 1:
        raise ValueError(f"`limit={limit}`: it must be at least 1")
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


def jsonl(path: Path) -> Iterator[tuple[Place, Record]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{path}, line {number}: malformed JSON, {error.msg} at column {error.colno}"
                ) from error
            if not isinstance(record, dict):
                raise ValueError(f"{path}, line {number}: a {type(record).__name__}, not an object with columns")
            yield Place(str(path), number), record


def array_or_lines(path: Path) -> Iterator[tuple[Place, Record]]:
    """Of a file with one array of objects, each of these; else JSON lines."""
    with path.open(encoding="utf-8") as file:
        if not file.read(4096).lstrip().startswith("["):
            yield from jsonl(path)
            return
        file.seek(0)
        try:
            found = json.load(file)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {error.lineno}: malformed JSON, {error.msg}") from error
    for number, record in enumerate(found, 1):
        if not isinstance(record, dict):
            raise ValueError(f"{path}, entry {number}: a {type(record).__name__}, not an object with columns")
        yield Place(str(path), number), record


def table(path: Path) -> Iterator[tuple[Place, Record]]:
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        for record in reader:
            if None in record or None in record.values():
                raise ValueError(f"{path}, line {reader.line_num}: it has not as many fields as the header")
            yield Place(str(path), reader.line_num), record


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
