"""Files of JSON lines that grow as results come, and outlive a kill."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any


def whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines, up to one that a kill cut short; none of a file that is not there."""
    for text in path.read_text(encoding="utf-8").split("\n") if path.is_file() else ():
        try:
            yield json.loads(text)
        except json.JSONDecodeError:
            return


class Lines:
    """A file to which each result is added when it is there; `found` is all that it holds.

    Opened again it goes on behind its last whole line; with `resume` false it begins anew.
    """

    def __init__(self, path: Path, resume: bool = True):
        self.path = path
        self.found: list[Mapping[str, Any]] = []
        self.replace(whole_lines(path) if resume else ())

    def add(self, *lines: Mapping[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
        self.found += lines

    def replace(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Write these in place of all, at once: a kill leaves the old file or the new one."""
        self.found = list(lines)
        scratch = self.path.with_suffix(".writing")
        scratch.write_text("".join(json.dumps(line) + "\n" for line in self.found), encoding="utf-8")
        os.replace(scratch, self.path)
