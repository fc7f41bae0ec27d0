"""Lean 4 behind a Kimina Lean Server. No package registry has Lean: this was tried against a stand-in alone."""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.request
from fractions import Fraction
from typing import Any

from posttrain.systems.nl_fl_hybrid.prover.script import Refused
from posttrain.systems.nl_fl_hybrid.prover.verdict import ProverDied, Verdict

HEADER = (
    "import Mathlib\nimport Aesop\n\nset_option maxHeartbeats 400000\n\nopen BigOperators Real Nat Topology Rat\n\n"
)
FORBIDDEN = re.compile(  # whatever declares, runs or trusts something: a script is tactics alone
    r"\b(?:sorry|sorryAx|admit|stop|axiom|unsafe|opaque|macro|macro_rules|syntax|elab|elab_rules|by_elab|notation3?|infix[lr]?|"
    r"prefix|postfix|run_cmd|run_tac|run_meta|run_elab|initialize|builtin_initialize|extern|implemented_by|native_decide|"
    r"import|open_private|end|namespace|section|mutual|set_option|attribute|instance|deriving|local|universe|variable|"
    r"simproc|dsimproc|simproc_decl|alias|export|recall|init_quot|binder_predicate|irreducible_def|"
    r"def|abbrev|theorem|lemma|example|structure|inductive|class|trace|dbg_trace|logInfo)\b|#|@\[|\+native"
)
STATED = re.compile(r"\A\s*theorem\s+([\w.']+)(.*):=\s*by\s*\Z", re.DOTALL)
TRUSTED = {"propext", "Classical.choice", "Quot.sound"}
NUMERAL = r"\(?-?\d{1,400}(?:/\d{1,400})?\)?"
NUMERALS = rf"({NUMERAL}(?: *, *{NUMERAL})*)"
WITNESSES = re.compile(
    rf"\A( *)(?:(?:use|exists) +{NUMERALS} *|(?:refine|exact) +⟨ *{NUMERALS} *[,⟩].*)(?:\n|\Z)", re.ASCII
)
NAMES = r"[\w']+(?:\s+[\w']+)*"
BOUND = re.compile(rf"\s*∃\s*({NAMES}(?:\s*:\s*[\w']+)?|(?:\(\s*{NAMES}\s*:\s*[\w']+\s*\)\s*)+)\s*,")
FRACTIONS = ("ℚ", "ℝ")
GAP = "\n" * 12  # lines between a script and what is asked about it: more than the header has
LONGEST = 20_000  # characters of a statement or a script
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
        if len(statement) + len(script) > LONGEST:
            return Verdict(False, error=f"a statement and its script have at most {LONGEST} characters")
        if found := FORBIDDEN.search(f"{stated[2]}\n{script}"):
            return Verdict(False, error=f"`{found[0]}` is not allowed")
        try:
            witness = witness_of(goal_of(stated[2]), script)
        except Refused as reason:
            return Verdict(False, error=str(reason))
        lines = "\n".join(f"  {line}" for line in script.strip("\n").splitlines())
        code = f"{HEADER}{statement.rstrip()}\n{lines}\n{GAP}#print axioms {stated[1]}"
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


def goal_of(stated: str) -> str:
    """What a theorem states behind its hypotheses: from the last colon that is not inside of parentheses."""
    depth, start = 0, 0
    for at, letter in enumerate(stated):
        depth += (letter in "([{⟨") - (letter in ")]}⟩")
        if (
            letter == ":"
            and depth == 0
            and stated[at + 1 : at + 2] != "="
            and not stated[start:at].lstrip().startswith("∃")
        ):
            start = at + 1
    return stated[start:].strip()


def witness_of(goal: str, script: str) -> str | None:
    """The numerals that a script begins with, as many as the goal says exist; None where it is not about existence.

    Raises Refused for anything else than closed numerals, and for existence that is not at the head of the goal.
    """
    bound = BOUND.match(goal)
    if "∃" in (goal[bound.end() :] if bound else goal):
        raise Refused("a goal says at its head what exists, `∃ x : ℤ, ...`, and nowhere else")
    if bound is None:
        return None
    names = re.findall(r"[\w']+", re.sub(r":[^()]*", " ", bound[1]))
    match = WITNESSES.match(script)
    given = [one.strip() for one in (match[2] or match[3]).split(",")] if match else []
    if match is None or len(given) != len(names) or continues(script, len(match[1])):
        raise Refused("a proof of existence begins with closed numerals, as many as exist: `use 7`")
    if any("/" in one for one in given) and not any(kind in bound[1] for kind in FRACTIONS):
        raise Refused("a fraction of integers is to be worked out: it is no witness")
    return ", ".join(map(plain_numeral, given))


def continues(script: str, indent: int) -> bool:
    """Whether the second line goes on with the first: it stands further to the right."""
    following = next((line for line in script.split("\n")[1:] if line.strip()), "")
    return len(following) - len(following.lstrip()) > indent


def plain_numeral(text: str) -> str:
    if text.count("(") != text.count(")"):
        raise Refused("a parenthesis is missing")
    above, _, below = text.strip("()").partition("/")
    if below and int(below) == 0:
        raise Refused("a witness has no zero below")
    return str(Fraction(int(above), int(below or 1)))


def axioms_in(messages: list[dict[str, Any]], name: str, last: int) -> list[str] | None:
    """What `#print axioms`, the last thing in the file, said of the theorem; None where it said nothing.

    By its place, the last line, which some servers count without the header: what a script prints is further up.
    """
    for one in messages:
        said, line = str(one.get("data")), int((one.get("pos") or {}).get("line") or 0)
        if line <= last - len(GAP):
            continue
        if said.startswith(f"'{name}' does not depend on any axioms"):
            return []
        if match := re.match(rf"'{re.escape(name)}' depends on axioms: \[(.*)\]", said, re.DOTALL):
            return [axiom.strip() for axiom in match[1].split(",")]
    return None
