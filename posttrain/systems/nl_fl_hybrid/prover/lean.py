"""Lean 4 behind a Kimina Lean Server. No package registry has Lean: this was tried against a stand-in alone."""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.request
from fractions import Fraction
from typing import Any

from posttrain.systems.nl_fl_hybrid.prover import ProverDied, Verdict

HEADER = (
    "import Mathlib\nimport Aesop\n\nset_option maxHeartbeats 400000\n\nopen BigOperators Real Nat Topology Rat\n\n"
)
FORBIDDEN = re.compile(  # whatever declares, runs or trusts something: a script is tactics alone
    r"\b(?:sorry|sorryAx|admit|stop|axiom|unsafe|opaque|macro|macro_rules|syntax|elab|elab_rules|by_elab|notation3?|infix[lr]?|"
    r"prefix|postfix|run_cmd|run_tac|run_meta|run_elab|initialize|builtin_initialize|extern|implemented_by|native_decide|"
    r"import|open_private|end|namespace|section|mutual|set_option|attribute|instance|deriving|local|universe|variable|"
    r"def|abbrev|theorem|lemma|example|structure|inductive|class|trace|dbg_trace|logInfo)\b|#|@\[|\+native"
)
STATED = re.compile(r"\A\s*theorem\s+([\w.']+)(.*):=\s*by\s*\Z", re.DOTALL)
TRUSTED = {"propext", "Classical.choice", "Quot.sound"}
WITNESS = re.compile(r"\A\s*(?:use|exists|refine\s*⟨|exact\s*⟨)\s*\(?(-?\d+(?:/\d+)?)\)?\s*(?=[,⟩\n]|\Z)")
SECONDS = 60


class LeanServer:
    """Checks by a server that speaks the protocol of Kimina Lean Server: `codes` in, Lean's messages out."""

    language = "lean4"

    def __init__(self, address: str, seconds: int = SECONDS):
        self.address, self.seconds = address.rstrip("/"), seconds

    def check(self, statement: str, script: str) -> Verdict:
        """Of `theorem NAME ... := by` and the tactics behind it. Raises ProverDied where the server does not answer."""
        start, stated, witness = time.perf_counter(), STATED.match(statement), None
        if stated is None:
            return Verdict(False, error="a statement is `theorem NAME ... := by`")
        if found := FORBIDDEN.search(f"{stated[2]}\n{script}"):
            return Verdict(False, error=f"`{found[0]}` is not allowed")
        if "∃" in statement:
            given = WITNESS.match(script)
            if given is None:
                return Verdict(False, error="a proof of existence begins with a closed numeral: `use 7`")
            witness = str(Fraction(given[1]))
        lines = "\n".join(f"  {line}" for line in script.strip("\n").splitlines())
        code = f"{HEADER}{statement.rstrip()}\n{lines}\n\n#print axioms {stated[1]}"
        answer = self.ask(code)
        took = 1000 * (time.perf_counter() - start)
        if answer.get("error"):
            timed_out = "time" in str(answer["error"]).lower()
            return Verdict(False, error=str(answer["error"])[:300], milliseconds=took, timed_out=timed_out)
        messages = (answer.get("response") or {}).get("messages") or []
        errors = [
            str(one.get("data"))
            for one in messages
            if one.get("severity") == "error" or "sorry" in str(one.get("data"))
        ]
        axioms = axioms_in(messages, stated[1], code.count("\n") + 1)
        error = (
            errors[0][:300]
            if errors
            else ""
            if axioms is not None
            else "the server did not say what the proof rests on"
        )
        wrong = tuple(one for one in axioms or () if one not in TRUSTED)
        return Verdict(not error and not wrong, witness, error, wrong, took)

    def ask(self, code: str) -> dict[str, Any]:
        body = {
            "codes": [{"custom_id": "posttrain", "proof": code}],
            "infotree_type": "original",
            "timeout": self.seconds,
        }
        request = urllib.request.Request(
            f"{self.address}/verify", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=self.seconds + 30) as reply:
                results = json.load(reply)["results"]
                return dict(results[0])
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            raise ProverDied(f"the Lean server {self.address} did not answer as one: {error}") from error

    def close(self) -> None:
        pass


def axioms_in(messages: list[dict[str, Any]], name: str, line: int) -> list[str] | None:
    """What `#print axioms`, on this line, said of the theorem; None where it said nothing."""
    for one in messages:
        said = str(one.get("data"))
        if (one.get("pos") or {}).get("line") != line:
            continue
        if said.startswith(f"'{name}' does not depend on any axioms"):
            return []
        if match := re.match(rf"'{re.escape(name)}' depends on axioms: \[(.*)\]", said, re.DOTALL):
            return [axiom.strip() for axiom in match[1].split(",")]
    return None
