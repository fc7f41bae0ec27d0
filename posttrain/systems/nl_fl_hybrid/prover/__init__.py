"""A formal system behind one interface: does this script prove this statement, and which witness does it give?

coq     Coq's own kernel, in one process that stays (Debian's package `coq`); the default where it is installed
z3      z3 from PyPI (the extra `z3`): it takes the witness and decides the rest itself; statements about integers
lean    a Kimina Lean Server; no Lean is on the package registries, so that it was only tried against a stand-in

Scripts come from a model, and are untrusted: `script` says what is refused before any prover sees it.
"""

from __future__ import annotations

import shutil

from posttrain.systems.nl_fl_hybrid.prover.verdict import Prover, ProverDied, Verdict

__all__ = ["CachedProver", "Prover", "ProverDied", "Verdict", "prover_of"]


class CachedProver:
    """Asks a prover about each statement and script once."""

    def __init__(self, prover: Prover):
        self.prover, self.known = prover, dict[tuple[str, str], Verdict]()

    @property
    def language(self) -> str:
        return self.prover.language

    def check(self, statement: str, script: str) -> Verdict:
        asked = (statement, script)
        if asked in self.known:
            return self.known[asked]
        verdict = self.prover.check(statement, script)
        if not verdict.timed_out:  # another time, on a quieter machine, it may be decided
            self.known[asked] = verdict
        return verdict

    def close(self) -> None:
        self.prover.close()


def prover_of(name: str | None = None) -> CachedProver:
    """`coq`, `z3`, or the address of a Lean server; None takes Coq, or else z3.

    Raises ValueError, with what to install, when it is not there.
    """
    if name is None:
        name = "coq" if shutil.which("coqtop") else "z3"
    if name == "coq":
        from posttrain.systems.nl_fl_hybrid.prover.coq import Coq

        return CachedProver(Coq())
    if name == "z3":
        from posttrain.systems.nl_fl_hybrid.prover.smt import Z3

        return CachedProver(Z3())
    if name.startswith(("http://", "https://")):
        from posttrain.systems.nl_fl_hybrid.prover.lean import LeanServer

        return CachedProver(LeanServer(name))
    raise ValueError(f"`prover={name}`: it is coq, z3, or the address of a Lean server (http://...)")
