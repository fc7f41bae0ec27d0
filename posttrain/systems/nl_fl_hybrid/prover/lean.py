"""Lean 4 behind a Kimina Lean Server. No package registry has Lean: this was tried against a stand-in alone."""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.request
from typing import Any

from posttrain.systems.nl_fl_hybrid.prover import ProverDied, Verdict

HEADER = (
    "import Mathlib\nimport Aesop\n\nset_option maxHeartbeats 400000\n\nopen BigOperators Real Nat Topology Rat\n\n"
)
FORBIDDEN = re.compile(
    r"\b(?:sorry|admit|axiom|unsafe|opaque|macro|macro_rules|syntax|elab|notation|run_cmd|run_tac|initialize|extern|"
    r"implemented_by|native_decide|import|open_private|end|namespace|set_option)\b|#|\battribute\b"
)
TRUSTED = {"propext", "Classical.choice", "Quot.sound"}
NAME = re.compile(r"\btheorem\s+([\w.']+)")
WITNESS = re.compile(r"\A\s*(?:use|refine|exact|exists)\s*⟨?\s*(-?\d+(?:\s*/\s*\d+)?)\b")
SECONDS = 60


class LeanServer:
    """Checks by a server that speaks the protocol of Kimina Lean Server: `codes` in, Lean's messages out."""

    language = "lean4"

    def __init__(self, address: str, seconds: int = SECONDS):
        self.address, self.seconds = address.rstrip("/"), seconds

    def check(self, statement: str, script: str) -> Verdict:
        """Of `theorem NAME ... := by` and the tactics behind it. Raises ProverDied where the server does not answer."""
        start, name = time.perf_counter(), NAME.search(statement)
        if name is None or not statement.rstrip().endswith(":= by"):
            return Verdict(False, error="a statement is `theorem NAME ... := by`")
        if found := FORBIDDEN.search(f"{statement}\n{script}"):
            return Verdict(False, error=f"`{found[0]}` is not allowed")
        lines = "\n".join(f"  {line}" for line in script.strip("\n").splitlines())
        answer = self.ask(f"{HEADER}{statement.rstrip()}\n{lines}\n\n#print axioms {name[1]}\n")
        took = 1000 * (time.perf_counter() - start)
        if answer.get("error"):
            timed_out = "time" in str(answer["error"]).lower()
            return Verdict(False, error=str(answer["error"])[:300], milliseconds=took, timed_out=timed_out)
        messages = (answer.get("response") or {}).get("messages") or []
        error = next((str(one.get("data"))[:300] for one in messages if one.get("severity") == "error"), "")
        axioms = axioms_in(messages, name[1])
        if not error and axioms is None:
            error = "the server did not say what the proof rests on"
        found_witness = WITNESS.match(script) if "∃" in statement else None
        number = found_witness[1].replace(" ", "") if found_witness else None
        wrong = tuple(one for one in axioms or () if one not in TRUSTED)
        return Verdict(not error and not wrong, number, error, wrong, took)

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


def axioms_in(messages: list[dict[str, Any]], name: str) -> list[str] | None:
    """What `#print axioms` said of the theorem; None where it said nothing."""
    for one in messages:
        said = str(one.get("data"))
        if said.startswith(f"'{name}' does not depend on any axioms"):
            return []
        if match := re.match(rf"'{re.escape(name)}' depends on axioms: \[(.*)\]", said, re.DOTALL):
            return [axiom.strip() for axiom in match[1].split(",")]
    return None
