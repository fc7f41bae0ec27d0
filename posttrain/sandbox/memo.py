"""Results that are kept, so that a policy which says the same twice is graded once."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict

from posttrain.sandbox.program import USUAL, Limits, Outcome, Program, Sandbox, json_files


class Memo:
    """Outcomes by a hash of program and limits: the `most` last used of them, of at most `most_mib` of output together.

    For what a program prints and how it ends. Never for seconds or memory: these belong to a machine and a moment, and
    one unlucky measurement would be every later sample's. Timeouts are not kept either, for the same reason.
    """

    def __init__(self, sandbox: Sandbox, most: int = 10_000, most_mib: int = 256) -> None:
        if most < 1 or most_mib < 1:
            raise ValueError(f"Memo(most={most}, most_mib={most_mib}): not above zero")
        self.sandbox, self.most, self.most_size = sandbox, most, most_mib << 20
        self.size = 0  # characters that are held
        self.ran = 0  # programs whose outcome was not held
        self._held: OrderedDict[str, Outcome] = OrderedDict()
        self._lock = threading.Lock()

    def run(self, program: Program, limits: Limits = USUAL) -> Outcome:
        return self.run_all([program], limits)[0]

    def run_all(self, programs: Sequence[Program], limits: Limits = USUAL, at_once: int | None = None) -> list[Outcome]:
        """The outcomes in order; programs that are equal run once, those whose outcome is held not at all."""
        keys = [key(program, limits) for program in programs]
        with self._lock:
            found = {name: self._held[name] for name in keys if name in self._held}
        missing = {name: program for name, program in zip(keys, programs, strict=True) if name not in found}
        found |= zip(missing, self.sandbox.run_all(list(missing.values()), limits, at_once), strict=True)
        with self._lock:
            self.ran += len(missing)
            for name in keys:
                if found[name].status not in ("timeout", "killed"):
                    self.size += size(found[name]) if name not in self._held else 0
                    self._held[name] = found[name]
                    self._held.move_to_end(name)
            while len(self._held) > self.most or self.size > self.most_size:
                _, forgotten = self._held.popitem(last=False)
                self.size -= size(forgotten)
        return [found[name] for name in keys]


def size(outcome: Outcome) -> int:
    return len(outcome.stdout) + len(outcome.stderr)


def key(program: Program, limits: Limits) -> str:
    parts = [program.source, program.stdin, sorted(json_files(program.files).items()), asdict(limits)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
