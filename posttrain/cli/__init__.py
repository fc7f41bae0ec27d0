"""The command line: one frozen dataclass per command, whose fields are its options and whose `run` does the work.

Nothing here imports torch before a command runs, so `posttrain --help` answers at once.
"""

from __future__ import annotations

import sys
import traceback

DESCRIPTION = """Reinforcement learning for language models.

  posttrain train --data questions.jsonl --prompt question --answer answer --grade math --model tiny --out runs/first
  posttrain show runs/first

Every command explains itself: posttrain train --help"""

EXPECTED = (ValueError, OSError, FloatingPointError, KeyError, TypeError, RuntimeError)


def main(arguments: list[str] | None = None) -> None:
    """The entry point. Exit codes: 0 done, 2 a mistake in what was asked, 130 interrupted."""
    import tyro

    from posttrain.cli.commands import COMMANDS

    command = tyro.extras.subcommand_cli_from_dict(
        COMMANDS,
        prog="posttrain",
        description=DESCRIPTION,
        args=arguments,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff, tyro.conf.OmitSubcommandPrefixes),
    )
    try:
        command.run()
    except KeyboardInterrupt as stop:
        print("\n".join(["interrupted", *getattr(stop, "__notes__", [])]), file=sys.stderr)
        sys.exit(130)
    except EXPECTED as error:
        explain(error)
        sys.exit(2)


def explain(error: BaseException) -> None:
    """The message of an error, its notes, and where it was raised if that was in the user's own code."""
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    print(f"error: {text}" if str(text) else f"error: {type(error).__name__}", file=sys.stderr)
    for note in getattr(error, "__notes__", []):
        print(note, file=sys.stderr)
    frames = traceback.extract_tb(error.__traceback__)
    if frames and "/posttrain/" not in frames[-1].filename and "site-packages" not in frames[-1].filename:
        last = frames[-1]
        print(f"  {type(error).__name__} at {last.filename}, line {last.lineno}: {last.line}", file=sys.stderr)
