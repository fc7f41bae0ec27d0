"""Options from a file: `--config run.yaml`, and `--from runs/first/run.json`, the command of an earlier run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

FLAGS = {"--config", "--from"}
OWN = {"--out", "--resume", "--overwrite", "--dry-run", "--quiet", *FLAGS}  # are not an earlier run's to say


def with_options_of_files(words: Sequence[str]) -> list[str]:
    """The words of a command line with the options of its `--config` and `--from` files, where it has no others.

    Raises ValueError naming the file that is not there, cannot be read, or is of another command.
    """
    if not any(word.partition("=")[0] in FLAGS for word in words):
        return list(words)
    head, given = split(words)
    command = head[0] if head else ""
    files = [(flag, values) for flag, values in given if flag in FLAGS]
    left = [(flag, values) for flag, values in given if flag not in FLAGS]
    for flag, values in reversed(files):  # the first file wins over later ones
        if len(values) != 1:
            raise ValueError(f"{flag}: give one file")
        more_head, more = (options_of_yaml if flag == "--config" else options_of_run)(values[0], command)
        head = [*head, *more_head] if len(head) == 1 else head
        named = {name_of(name) for name, _ in left}
        left += [(name, values) for name, values in more if name_of(name) not in named]
    return [*head, *(word for flag, values in left for word in (flag, *values))]


def split(words: Sequence[str]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """The words before the first flag, and each flag with the words behind it."""
    head: list[str] = []
    flags: list[tuple[str, list[str]]] = []
    for word in words:
        flag, sign, value = word.partition("=")
        if word.startswith("--"):
            flags.append((flag, [value] if sign else []))
        elif flags:
            flags[-1][1].append(word)
        else:
            head.append(word)
    return head, flags


def name_of(flag: str) -> str:
    """Of a flag and of its opposite."""
    return flag.removeprefix("--").removeprefix("no-")


def options_of_yaml(file: str, command: str) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """A mapping of options to values, as flags: `max-new: 32`, `held-out: [a.jsonl, b.jsonl]`, `bf16: true`."""
    import yaml

    try:
        found = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"`config={file}`: there is no such file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"`config={file}`: it is no readable YAML: {error}") from error
    if not isinstance(found, Mapping):
        raise ValueError(f"`config={file}`: write one option a line, such as `max-new: 32`")
    return [], [option(str(name), value, file) for name, value in found.items() if value is not None]


def option(name: str, value: Any, file: str) -> tuple[str, list[str]]:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return (f"--{flag}" if value else f"--no-{flag}"), []
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(one, str | int | float) for one in values):
        raise ValueError(f"`config={file}`: {name} is neither a word, a number nor a list of them")
    return f"--{flag}", [str(one) for one in values]


def options_of_run(file: str, command: str) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """What the command line of an earlier run said, but for where it wrote; its data must still be what they were."""
    path = Path(file) / "run.json" if Path(file).is_dir() else Path(file)
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        first, *words = about["run"]["command"]
    except FileNotFoundError:
        raise ValueError(f"`from={file}`: there is no such run.json") from None
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"`from={file}`: it is no run.json of a posttrain command: {error!r}") from error
    if first != command:
        raise ValueError(f"`from={file}`: that was `posttrain {first}`, and this is `posttrain {command}`")
    for name, digest in changed_files(about):
        raise ValueError(f"`from={file}`: {name} is not what it was then (SHA-256 {digest[:12]} in run.json)")
    head, flags = split(words)
    return head, [(flag, values) for flag, values in flags if flag not in OWN]


def changed_files(about: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The files that an earlier run's options named and that are no longer the same, with the hash they had."""
    from posttrain.cli.bridge import files_named
    from posttrain.run.directory import file_hash

    settings = about.get("run", {}).get("settings", {})
    for name, value in settings.items():
        digest = settings.get(f"{name}_sha256")
        if isinstance(value, str) and isinstance(digest, str):
            for path in files_named(value):
                if file_hash(path) != digest:
                    yield str(path), digest
