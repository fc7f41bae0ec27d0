"""`posttrain run NAME`: a published system, at laptop scale or with your own checkpoint and data.

A system's module has two functions, `laptop` and `full`; their arguments are the options.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence

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
        print(USAGE + "\nsystems\n" + "\n".join(f"  {name:18} {systems.first_line(name)}" for name in systems.names()))
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
    module = systems.load(name)
    function = getattr(module, scale)
    title = f"{(module.__doc__ or '').strip().splitlines()[0]}\n\nAt {scale} scale. {inspect.getdoc(function)}"
    config = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff, tyro.conf.OmitSubcommandPrefixes)
    found = tyro.cli(function, prog=f"posttrain run {name}", description=title, args=rest, config=config)
    if isinstance(found, Session):
        finish(found.directory.path)
