"""The command line: each command is a function whose arguments are its options.

Nothing here imports torch before a command runs, so `posttrain --help` answers at once.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

EXPECTED = (ValueError, OSError, FloatingPointError)
TRACEBACK = "POSTTRAIN_TRACEBACK"  # set it to see where an error was raised
HERE = str(Path(__file__).parent.parent)


def main(arguments: list[str] | None = None) -> None:
    """The entry point. Exit codes: 0 done, 2 a mistake in what was asked, 130 interrupted, 143 by SIGTERM."""
    from posttrain.cli.commands import parse
    from posttrain.cli.launch import launch

    words = sys.argv[1:] if arguments is None else arguments
    try:
        launch(parse, words)
    except KeyboardInterrupt as stop:
        notes = [translated(note, words) for note in getattr(stop, "__notes__", [])]
        print("\n".join(["interrupted", *notes]), file=sys.stderr)
        sys.exit(getattr(stop, "exit_code", 130))
    except Exception as error:
        notes = hasattr(error, "__notes__")  # raised by the user's own reward, and shown with the sample
        if TRACEBACK in os.environ or not (notes or isinstance(error, EXPECTED)):
            raise
        explain(error, words)
        sys.exit(2)


def explain(error: BaseException, words: list[str]) -> None:
    """Print an error's message, its notes, and where it was raised if that was in the user's own code."""
    print(f"error: {translated(str(error), words) or type(error).__name__}", file=sys.stderr)
    for note in getattr(error, "__notes__", []):
        print(translated(note, words), file=sys.stderr)
    frames = traceback.extract_tb(error.__traceback__)
    if frames and not frames[-1].filename.startswith(HERE) and "site-packages" not in frames[-1].filename:
        last = frames[-1]
        print(f"  {type(error).__name__} at {last.filename}, line {last.lineno}: {last.line}", file=sys.stderr)


def translated(text: str, words: list[str]) -> str:
    """A message that names arguments, with the flags that were given for them."""
    from posttrain.cli.bridge import translate
    from posttrain.cli.commands import given_options

    return translate(text, given_options(words))
