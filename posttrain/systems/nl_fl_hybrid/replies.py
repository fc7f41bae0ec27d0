"""What is read out of replies: a block, a theorem, a thought, a proof, an answer. None where it is not there."""

from __future__ import annotations

import re

from posttrain.grade.verify import last_box

BLOCK = re.compile(r"```([^\n`]*)\n(.*?)```", re.DOTALL)
LEAN = re.compile(r"\btheorem\b.*?:=\s*by\b", re.DOTALL)
COQ = re.compile(r"\b(?:Theorem|Lemma|Example)\s+[\w']+\s*:\s*(.*?)\.(?=\s|$)", re.DOTALL)
COQ_PROOF = re.compile(r"\bProof\s*\.(.*?)\b(?:Qed|Defined)\s*\.", re.DOTALL)
LONGEST = 200_000  # characters of a reply that are searched


def last_block(text: str, *kinds: str) -> str | None:
    """The last fenced block of one of these kinds (`md`, `lean4`)."""
    found = [body.strip() for kind, body in BLOCK.findall(text[:LONGEST]) if kind.strip().lower() in kinds]
    return found[-1] if found and found[-1] else None


def theorem_in(text: str, language: str) -> str | None:
    """Lean: from the first `theorem` to `:= by`. Coq: what the first theorem states."""
    if language == "lean4":
        match = LEAN.search(text[:LONGEST])
        return match[0] if match else None
    match = COQ.search(text[:LONGEST])
    return " ".join(match[1].split()) if match else None


def thought_in(text: str) -> str | None:
    """What stands between <think> and </think>, or the end."""
    _, opened, rest = text.partition("<think>")
    return rest.partition("</think>")[0].strip() if opened else None


def proof_in(text: str, statement: str, language: str) -> str | None:
    """The tactics of the last block of the language; Lean's must prove this statement, and no other."""
    if language == "coq":
        block = last_block(text, "coq")
        match = COQ_PROOF.search(block) if block else None
        return (match[1].strip() if match else block) if block else None
    block = last_block(text, "lean4", "lean")
    if block is None:
        return None
    before, found, after = block.partition(statement.strip())
    return after.strip("\n") if found and "theorem" not in before else None


def boxed(text: str) -> str | None:
    found = last_box(text[-LONGEST:])
    return found.strip() or None if found is not None else None


def plain_answer(answer: str) -> str:
    """As the released comparison has it: without spaces, `dfrac` as `frac`, `\\left(` and `\\right)` as parentheses."""
    plain = answer.replace(" ", "").replace("dfrac", "frac")
    return plain.replace("\\left(", "(").replace("\\right)", ")")
