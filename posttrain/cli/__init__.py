"""The command line: one frozen dataclass per command, whose fields are its options and whose `run` does the work.

Nothing here imports torch before a command runs, so `posttrain --help` answers at once.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

DESCRIPTION = """Reinforcement learning for language models.

  posttrain train --data questions.jsonl --prompt question --answer answer --grade math --model tiny --out runs/first
  posttrain show runs/first
  posttrain run entropy                a published system; `posttrain list` names them all

Every command explains itself: posttrain train --help"""

EXPECTED = (ValueError, OSError, FloatingPointError)
TRACEBACK = "POSTTRAIN_TRACEBACK"  # set it to see where an error was raised
HERE = str(Path(__file__).parent.parent)


def main(arguments: list[str] | None = None) -> None:
    """The entry point. Exit codes: 0 done, 2 a mistake in what was asked, 130 interrupted."""
    import tyro

    from posttrain.cli.commands import COMMANDS
    from posttrain.cli.run import run

    given = sys.argv[1:] if arguments is None else arguments
    try:
        if given[:1] == ["run"]:  # its options are those of the system that is named
            run(given[1:])
            return
        command = tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="posttrain",
            description=DESCRIPTION,
            args=given,
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff, tyro.conf.OmitSubcommandPrefixes),
        )
        command.run()
    except KeyboardInterrupt as stop:
        print("\n".join(["interrupted", *getattr(stop, "__notes__", [])]), file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        notes = hasattr(error, "__notes__")  # raised by the user's own reward, and shown with the sample
        if TRACEBACK in os.environ or not (notes or isinstance(error, EXPECTED)):
            raise
        explain(error)
        sys.exit(2)


def explain(error: BaseException) -> None:
    """The message of an error, its notes, and where it was raised if that was in the user's own code."""
    print(f"error: {error}" if str(error) else f"error: {type(error).__name__}", file=sys.stderr)
    for note in getattr(error, "__notes__", []):
        print(note, file=sys.stderr)
    frames = traceback.extract_tb(error.__traceback__)
    if frames and not frames[-1].filename.startswith(HERE) and "site-packages" not in frames[-1].filename:
        last = frames[-1]
        print(f"  {type(error).__name__} at {last.filename}, line {last.lineno}: {last.line}", file=sys.stderr)
