"""What a prover says of a script."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

MISSING = (
    "no prover is installed: `apt-get install coq` (Debian's Coq), or pip install 'posttrain[z3]' for integers alone, "
    "or give the address of a Kimina Lean Server (http://...)"
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a script proves its statement.

    witness    what the statement is said to be true of, a closed numeral; None where it is not about existence
    error      why not, as far as the prover says
    axioms     that the proof rests on, besides those that are allowed
    timed_out  the script asked for more work than it may
    """

    ok: bool
    witness: str | None = None
    error: str = ""
    axioms: tuple[str, ...] = ()
    milliseconds: float = 0.0
    timed_out: bool = False


class ProverDied(Exception):
    """The prover itself failed, whatever it was asked."""


class Prover(Protocol):
    """A formal system. `check` raises ProverDied where it cannot say."""

    @property
    def language(self) -> str: ...  # of statements and scripts: coq or lean4
    def check(self, statement: str, script: str) -> Verdict: ...
    def close(self) -> None: ...
