"""Tasks, demonstrations and preference pairs from the user's own files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from posttrain.core import Message, Task
from posttrain.episode import assistant, user
from posttrain.episode import system as system_message
from posttrain.records import Place, Record, column, records, with_unique_keys

MARK = "<image>"  # in a prompt: here a picture stands
SPEAKER = re.compile(r"\n\n(Human|Assistant):")
COLUMN = re.compile(r"\{([A-Za-z_]\w*)\}")  # in a template; other braces, as in \\boxed{}, stay as they are


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A conversation whose assistant messages are to be learned."""

    messages: tuple[Message, ...]
    place: str = field(default="", compare=False)  # where it stands, for error messages


Continuation: TypeAlias = "str | tuple[Message, ...]"  # a reply's text, or messages, of which every reply is learned


@dataclass(frozen=True, slots=True)
class Pair:
    """Two ways to go on from one prompt, the first preferred."""

    prompt: tuple[Message, ...]
    chosen: Continuation
    rejected: Continuation
    kind: str = ""  # of a category, where results are told apart by it


def read(
    data: str | Path | Sequence[Record],
    prompt: str = "prompt",
    answer: str | None = "answer",
    *,
    image: str | None = None,
    system: str | None = None,
    limit: int | None = None,
    split: str = "train",
) -> list[Task]:
    """Tasks from a JSONL, CSV or Parquet file, a dataset of the Hugging Face Hub, or a list of records.

    prompt   a column, or a template such as "Solve {question}"; a column of chat messages is taken as it is
    answer   the column of the truth that rewards see; None when there is none
    image    the column of pictures; `<image>` in the prompt says where each stands, else they come first
    system   a system message put before every prompt
    Keys are the column `id` where there is one, else the line. Raises ValueError naming file, line and column.
    """

    def task(place: Place, record: Record) -> Task:
        asked = with_pictures(prompt_of(record, prompt, place), record, image, place)
        messages = with_tools((*([system_message(system)] if system else []), *asked), record, place)
        key = str(next((record[name] for name in ("id", "key") if record.get(name) is not None), place.line))
        truth = None if answer is None else column(record, answer, place, "answer")
        return Task(key, messages, truth, record)

    return with_unique_keys((place, task(place, record)) for place, record in records(data, limit, split))


def read_demonstrations(
    data: str | Path | Sequence[Record],
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
            check_roles(said, place, prompt)
            messages = (*before, *with_pictures(said, record, image, place))
        else:
            said = reply_messages(column(record, response, place, "response"), place, response)
            asked = with_pictures(prompt_of(record, prompt, place), record, image, place)
            if asked[-1].get("content") == said[0].get("content"):
                said = said[1:]  # the response is the whole conversation
            messages = (*before, *asked, *said)
        out.append(Demonstration(with_tools(messages, record, place), str(place)))
    return out


def read_pairs(
    data: str | Path | Sequence[Record],
    prompt: str = "prompt",
    chosen: str = "chosen",
    rejected: str = "rejected",
    *,
    system: str | None = None,
    category: str | None = None,
    **options: Any,
) -> list[Pair]:
    """Preference pairs: a prompt and two replies, each plain text, chat messages, or a transcript as HH-RLHF has them.

    Where `chosen` and `rejected` are whole conversations, the prompt is what they share; from the first reply in which
    they differ on, every reply of each is learned. `category` names a column of kinds of pair.
    """
    out = []
    for place, record in records(data, **options):
        good, bad = (
            messages_of_transcript(column(record, name, place, argument))
            for name, argument in ((chosen, "chosen"), (rejected, "rejected"))
        )
        before = [system_message(system)] if system else []
        earlier = shared_messages(good, bad, place, (chosen, rejected))
        if earlier and (earlier[0]["role"] != "assistant" or not (prompt in record or COLUMN.search(prompt))):
            asked = earlier
        else:
            asked = (*prompt_of(record, prompt, place), *earlier)
        asked = with_pictures(asked, record, None, place)
        asked = with_tools((*before, *asked), record, place)
        pair = Pair(
            asked, continuation(good, len(earlier), place, chosen), continuation(bad, len(earlier), place, rejected)
        )
        if category:
            pair = replace(pair, kind=str(column(record, category, place, "category")))
        if pair.chosen == pair.rejected:
            raise ValueError(f"{place}: {chosen!r} and {rejected!r} are the same text, so there is nothing to prefer")
        out.append(pair)
    return out


# ---- messages of a record


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
    split = [parts_of(message.get("content")) if message["role"] != "assistant" else [] for message in messages]
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
    if not isinstance(message.get("content"), list | tuple):
        return message
    parts = [
        {key: value for key, value in part.items() if value is not None} if isinstance(part, Mapping) else part
        for part in message["content"]
    ]
    return {**message, "content": parts}


def check_complete(messages: Sequence[Message], record: Record, place: Place) -> None:
    """Raises ValueError when a message has a place for a picture, and no column of pictures is named to fill it."""
    asked = [message.get("content") for message in messages if message["role"] != "assistant"]
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
        and all(
            isinstance(message, Mapping) and "role" in message and ("content" in message or message.get("tool_calls"))
            for message in value
        )
    )


def with_tools(messages: Sequence[Message], record: Record, place: Place) -> tuple[Message, ...]:
    """The messages, the first of which names the tools of the record's column `tools`: templates are given them."""
    tools = record.get("tools")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except json.JSONDecodeError as error:
            raise ValueError(f"{place}: the column 'tools' is not JSON: {error.msg}") from error
    if not tools:
        return tuple(messages)
    if not isinstance(tools, Sequence) or not all(isinstance(tool, Mapping) for tool in tools):
        raise ValueError(f"{place}: the column 'tools' must hold a list of tools, as OpenAI's interface has them")
    return ({**messages[0], "tools": list(tools)}, *messages[1:])


ROLES = ("system", "developer", "user", "assistant", "tool")


def check_roles(messages: Sequence[Message], place: Place, name: str) -> None:
    """Raises ValueError for an unknown role, and where there is no reply to learn, or the last word is not one."""
    for message in messages:
        if message["role"] not in ROLES:
            known = ", ".join(ROLES)
            raise ValueError(f"{place}: a message in {name!r} has the role {message['role']!r}, none of {known}")
    if not any(message["role"] == "assistant" for message in messages):
        raise ValueError(f"{place}: the messages in {name!r} hold no assistant reply to learn")
    last = messages[-1]["role"]
    if last in ("user", "system"):
        raise ValueError(f"{place}: the messages in {name!r} end with the {last}'s, not the assistant's")


def reply_messages(value: Any, place: Place, name: str) -> list[Message]:
    """A reply given as text, or as chat messages of which every assistant's is learned."""
    if not is_chat(value):
        return [assistant(reply_text(value, place, name))]
    messages = [with_reply(message, place, name) for message in value]
    check_roles(messages, place, name)
    return messages


def messages_of_transcript(value: Any) -> Any:
    """A transcript of HH-RLHF, "\\n\\nHuman: ...\\n\\nAssistant: ...", as chat messages; anything else as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith("Human:"):
        return value
    _, *said = SPEAKER.split("\n\n" + value.lstrip())
    roles: dict[str, Any] = {"Human": "user", "Assistant": "assistant"}
    return [{"role": roles[who], "content": text.strip()} for who, text in zip(said[::2], said[1::2], strict=True)]


def shared_messages(good: Any, bad: Any, place: Place, names: tuple[str, str]) -> tuple[Message, ...]:
    """What both conversations of a pair say before the first reply in which they differ.

    Raises ValueError when they differ in something else.
    """
    if not is_chat(good) or not is_chat(bad):
        return ()
    pairs = list(zip(good, bad, strict=False))
    shared = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs) - 1)
    role = next((one[shared]["role"] for one in (good, bad) if one[shared]["role"] != "assistant"), None)
    if role is not None:
        raise ValueError(f"{place}: {names[0]!r} and {names[1]!r} differ in a {role}'s message before any reply")
    return tuple(good[:shared])


def continuation(value: Any, start: int, place: Place, name: str) -> Continuation:
    """What one side of a pair says from message `start` on: a text, or messages where there is more than one reply."""
    if not is_chat(value):
        return reply_text(value, place, name)
    said = reply_messages(value[start:], place, name)
    if said[0]["role"] != "assistant":
        raise ValueError(f"{place}: the messages in {name!r} begin with the {said[0]['role']}'s, not with a reply")
    return said[0]["content"] if len(said) == 1 and not said[0].get("tool_calls") else tuple(said)


def reply_text(value: Any, place: Place, name: str) -> str:
    """Raises ValueError for a reply that is no text."""
    if not isinstance(value, str):
        raise ValueError(f"{place}: the column {name!r} holds {type(value).__name__}, neither text nor chat messages")
    return value


def with_reply(message: Message, place: Place, name: str) -> Message:
    """A message, an assistant's with its content as text. Raises ValueError for one that says more than text."""
    content = message.get("content")
    if message["role"] != "assistant" or isinstance(content, str):
        return message
    if content is None and message.get("tool_calls"):
        return {**message, "content": ""}
    texts = [part.get("text") if isinstance(part, Mapping) else None for part in content or ()]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{place}: an assistant's message in {name!r} is not text, so it cannot be learned")
    return {**message, "content": "".join(map(str, texts))}
