"""`posttrain run NAME`: a published system, at laptop scale or with your own checkpoint and data.

A system's module has two functions, `laptop` and `full`; their arguments are the options.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Sequence
from types import FunctionType

from posttrain import systems
from posttrain.options import one_of

SCALES = ("laptop", "full")
USAGE = """usage: posttrain run SYSTEM [--scale laptop|full] [options]

Run a published system. At laptop scale, the default, it trains a tiny model from scratch, in minutes; with
--scale full it trains your checkpoint on your data. What a system takes: posttrain run SYSTEM --scale full --help
"""


def run(arguments: Sequence[str]) -> None:
    """Raises ValueError for an unknown system or scale."""
    import tyro

    from posttrain.cli.finish import finish
    from posttrain.run import Session

    if not arguments or arguments[0] in ("-h", "--help"):
        print(
            USAGE
            + "\nsystems\n"
            + "\n".join(f"  {name.replace('_', '-'):18} {systems.first_line(name)}" for name in systems.names())
        )
        sys.exit(0 if arguments else 2)
    name, rest = arguments[0].replace("-", "_"), list(arguments[1:])
    one_of(name, systems.names(), "run")
    scale = "laptop"
    if "--scale" in rest:
        at = rest.index("--scale")
        scale = one_of(rest[at + 1] if at + 1 < len(rest) else "", SCALES, "--scale")
        del rest[at : at + 2]
    if "--dry-run" in rest:
        raise ValueError("--dry-run: a system has no plan; try it with --steps 1 --tasks 2")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "posttrain run learns in one process: start it without torchrun; a system's parts are trained over several "
            "by posttrain train --with (see posttrain list)"
        )
    module = systems.load(name)
    prose, function = documented(getattr(module, scale))
    title = f"{(module.__doc__ or '').strip().splitlines()[0]}\n\nAt {scale} scale. {prose}"
    config = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff, tyro.conf.OmitSubcommandPrefixes)
    found = tyro.cli(
        function, prog=f"posttrain run {arguments[0]} --scale {scale}", description=title, args=rest, config=config
    )
    if isinstance(found, Session):
        finish(found.directory.path)


def documented(function: FunctionType) -> tuple[str, FunctionType]:
    """The prose of a docstring, and a copy of the function that says the rest as tyro reads it.

    A parameter's line is its name, two spaces or more, and a text, which may go on in lines that are indented.
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

    same = FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__)
    same.__annotations__, same.__kwdefaults__ = function.__annotations__, function.__kwdefaults__
    same.__doc__ = "\n".join(["Options.", "", *(f":param {name}: {text}" for name, text in texts.items())])
    return "\n".join(prose).strip(), same
