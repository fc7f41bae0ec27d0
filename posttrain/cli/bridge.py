"""Between the words of a command line and a Python function: its arguments are the options.

bind       words -> the function's arguments; the docstring explains each option
record     arguments -> what run.json holds of them, and a resumed run must share
translate  an error that names `arguments` -> the same with --flags

The rest of the library knows arguments only. This package is the only place that writes flags.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_type_hints

from tyro.conf import Suppress

from posttrain.cli.options import ModelOptions, ScorerOptions, player_name
from posttrain.run.settings import Output, Run

ARGUMENT = re.compile(r"`([a-z][\w.]*)(?:=([^`]*))?`")
SEPARATORS = re.compile(r"[=,:*]")
NUMBER = re.compile(r"-?[\d.e-]+|inf|None")  # says nothing of which option was meant


@dataclass(frozen=True)
class Call:
    """A function with its arguments bound from a command line."""

    function: Callable[..., Any]
    arguments: Mapping[str, Any]

    @property
    def options(self) -> dict[str, Any]:
        """Every option's value by its name, those of groups too."""
        return {name: value for _, name, value in leaves(self.arguments)}

    def group(self, kind: type) -> Any:
        """The argument that is a group of this kind; None without one."""
        return next((value for value in self.arguments.values() if isinstance(value, kind)), None)

    def run(self) -> Any:
        """What the function returns. What it draws before its first step depends on the seed: a head, an adapter."""
        seed = self.options.get("seed")
        if isinstance(seed, int):
            from posttrain.seeding import mix, seed_everything

            seed_everything(mix(seed, "start"))
        return self.function(**self.arguments)


def bind(function: Callable[..., Any], words: Sequence[str], prog: str, title: str = "", note: str = "") -> Call:
    """The call that the words ask for. `--help` and unknown options end the process, as tyro does.

    title, note  before and behind what the function's docstring says of itself
    """
    import tyro

    prose, texts = explained(function)

    def bound(**arguments: Any) -> dict[str, Any]:
        return arguments

    bound.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    bound.__annotations__ = parameter_types(function)
    bound.__name__, bound.__module__ = getattr(function, "__name__", "command"), function.__module__
    names = options_of(function)
    on = {name for name, one in inspect.signature(function).parameters.items() if one.default is True}
    flags = {name: f"{'Turn off: ' if name in on else ''}{translate(text, names)}" for name, text in texts.items()}
    bound.__doc__ = "\n".join(["Options.", "", *(f":param {name}: {text}" for name, text in flags.items())])
    description = translate("\n\n".join(filter(None, [title, prose, note])), names)
    config = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff, tyro.conf.OmitSubcommandPrefixes)
    with group_errors():
        arguments = tyro.cli(bound, prog=prog, description=description, args=list(words), config=config)
    kept = record(arguments)
    if any(isinstance(value, Run) and value.dry_run for value in arguments.values()):
        for name, value in arguments.items():
            if isinstance(value, ModelOptions | ScorerOptions):
                arguments[name] = replace(value, weights=False)
    for name, value in arguments.items():
        if isinstance(value, Run):
            value = replace(value, command=(*prog.split()[1:], *words))
        if isinstance(value, Run | Output):
            arguments[name] = replace(value, settings={**value.settings, **kept})
    return Call(function, arguments)


@contextlib.contextmanager
def group_errors() -> Iterator[None]:
    """Raise the ValueError of a group's own checks, in which tyro would print arguments and not flags."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            yield
    except SystemExit as stop:
        error = stop.__context__ and stop.__context__.__context__
        if isinstance(error, ValueError) and ARGUMENT.search(str(error)):
            raise error from None
        sys.stderr.write(said.getvalue())
        raise


def explained(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """A docstring's prose, and its text on each parameter.

    A parameter's line is its name, two spaces or more, and a text that may continue on indented lines.
    """
    names, prose, texts, last = inspect.signature(function).parameters, list[str](), dict[str, str](), ""
    for line in (inspect.getdoc(function) or "").splitlines():
        name, _, text = line.partition("  ")
        if name in names and text:
            texts[name], last = text.strip(), name
        elif last and line.startswith("  "):
            texts[last] += f" {line.strip()}"
        else:
            prose.append(line)
            last = ""
    return "\n".join(prose).strip(), texts


def options_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The names of a function's options, those of its groups too, with no values yet."""
    found: dict[str, Any] = {}
    for name, kind in parameter_types(function).items():
        found |= dict.fromkeys(fields_shown(kind) if is_dataclass(kind) and isinstance(kind, type) else [name])
    return found


def fields_shown(group: type) -> list[str]:
    """The fields of a group that are options: not those that the program itself sets."""
    kinds = get_type_hints(group, include_extras=True)
    return [one.name for one in fields(group) if Suppress not in getattr(kinds[one.name], "__metadata__", ())]


def parameter_types(function: Callable[..., Any]) -> dict[str, Any]:
    """The types of a function's parameters. Its module need not import the type that it returns."""
    own = {name: kind for name, kind in function.__annotations__.items() if name != "return"}
    return get_type_hints(SimpleNamespace(__annotations__=own), function.__globals__, include_extras=True)


def leaves(arguments: Mapping[str, Any]) -> Iterator[tuple[Any, str, Any]]:
    """Every option with the group it is of (None for one of the function itself), its name and its value."""
    for name, value in arguments.items():
        if is_dataclass(value) and not isinstance(value, type):
            yield from ((value, one, getattr(value, one)) for one in fields_shown(type(value)))
        else:
            yield None, name, value


def record(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What run.json holds of the options: each by its value, files also by their hash. `Run` is kept beside them.

    Of a chat server only the model is kept: its address may be another when the run is resumed.
    """
    from posttrain.run.directory import file_hash

    found: dict[str, Any] = {}
    for group, name, value in leaves(arguments):
        if isinstance(group, Run | Output):
            continue
        found[name] = [*map(player_name, value)] if isinstance(value, tuple) else player_name(value)
        words = value if isinstance(value, tuple) else (value,)
        files = [file for word in words if isinstance(word, str) for file in files_named(word)]
        if files:
            hashes = [file_hash(file) for file in files]
            found[f"{name}_sha256"] = hashes[0] if len(hashes) == 1 else hashes
    return found


def files_named(word: str) -> list[Path]:
    """The files that an option's value names: by itself, as file.py:function, or among name=file=grade,..."""
    if not word or "\n" in word or len(word) > 4096:
        return []
    pieces = [word] if Path(word).is_file() else SEPARATORS.split(word)
    return [Path(piece) for piece in pieces if piece and Path(piece).is_file()]


def translate(text: str, options: Mapping[str, Any]) -> str:
    """A message that names `arguments`, with the flags of those options in their place.

    `max_new=9` becomes --max-new 9 and `resume=True` --resume. An argument that was given under another name is found
    by its value: `data=x.jsonl` becomes --held-out x.jsonl where that is what the user wrote.
    """

    def flag(match: re.Match[str]) -> str:
        name, value = match.group(1), match.group(2)
        if value is None:
            return spelled(name) if name in options else match.group(0)
        if value in ("True", "False") and name in options:
            return spelled(name if value == "True" else f"no_{name}")
        if not (name in options and holds(options[name], value)) and not NUMBER.fullmatch(value):
            name = next((other for other, given in options.items() if holds(given, value)), name)
        return f"{spelled(name)} {value}" if name in options else match.group(0)

    return ARGUMENT.sub(flag, text)


def holds(given: Any, value: str) -> bool:
    """Whether an option was given this value, alone or in a list, with a name or without."""
    if isinstance(given, tuple):
        return any(holds(one, value) for one in given)
    return given is not None and not isinstance(given, bool) and value in (str(given), str(given).partition("=")[2])


def spelled(name: str) -> str:
    return "--" + name.strip("_").replace("_", "-")
