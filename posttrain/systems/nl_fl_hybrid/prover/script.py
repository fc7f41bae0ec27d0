"""What a model may write for Coq: a term as a statement, a list of known tactics as a proof.

Every rule is here because its breach was seen to pass a careless checker: `Admitted` ends without an error, `Redirect`
writes a file, `Axiom` and a comment hide what is proved, and `exists y, expr = y` is proved by `expr` itself, so that
a witness that is not a numeral says nothing.
"""

from __future__ import annotations

import re

TERM = re.compile(r"[\w\s()+\-*/=<>:,.%~^\\|#&']*", re.ASCII)  # no quotes, brackets, braces, dollars
TACTIC = re.compile(r"[\w\s()+\-*/=<>:,.%~^\\|#&';\[\]{}]*", re.ASCII)
FORBIDDEN = re.compile(r"\(\*|\*\)|\b(?:ltac|admit|abstract|give_up|native_compute|Redirect|Axiom)\b|:=\s*\(?ltac")
SPLIT = re.compile(r"\.(?=\s|$)")
BULLET = re.compile(r"\s*(-+|\++|\*+|[{}])")
TOKEN = re.compile(r"[A-Za-z_][\w'.]*|\d+|\|\||[^\w\s]", re.ASCII)
NUMERAL = (  # 21 / 3 is to be worked out, but for real numbers, which have no other form
    r"(?:\(?\s*-?\s*\d+(?:\s*#\s*\d+)?\s*\)?(?:%\w+)?|\(\s*-?\s*\d+\s*/\s*\d+\s*\)%R)"
)
WITNESS = re.compile(rf"exists\s+({NUMERAL}(?:\s*,\s*{NUMERAL})*)", re.ASCII)
BINDER = re.compile(r"\s*exists\s+([^,]*),")
COMBINATORS = {"try", "repeat", "now", "solve", "first", "progress", "do"}
TACTICS = {
    *("exists", "split", "left", "right", "intro", "intros", "constructor", "assumption", "trivial", "easy", "auto"),
    *("lia", "lra", "nia", "nra", "ring", "field", "reflexivity", "symmetry", "discriminate", "congruence", "subst"),
    *("simpl", "cbn", "compute", "vm_compute", "unfold", "destruct", "induction", "rewrite", "apply", "exact"),
    *("assert", "replace", "specialize", "contradiction", "exfalso", "clear", "f_equal", "ring_simplify", "intuition"),
}  # fmt: skip
LONGEST = 10_000  # characters of a statement or a script
MOST_SENTENCES = 200


class Refused(Exception):
    """A statement or script that no prover is shown, and why."""


def check_statement(statement: str) -> str:
    """The statement, on one line. Raises Refused for anything but a term."""
    found = " ".join(statement.split())
    if not found or len(found) > LONGEST or not TERM.fullmatch(found):
        raise Refused("a statement is a term of letters, digits and operators")
    if FORBIDDEN.search(found) or re.search(r"\.(?![A-Za-z_])|(?<![\w'])\.", found):
        raise Refused("a statement holds no sentence of its own, comment or tactic")
    return found


def sentences(script: str) -> list[str]:
    """The bullets, braces and tactics of a proof, each as Coq reads it. Raises Refused for what is not allowed."""
    if len(script) > LONGEST or not TACTIC.fullmatch(script) or FORBIDDEN.search(script):
        raise Refused("a script is made of known tactics: no command, quote, comment or `ltac`")
    *whole, rest = SPLIT.split(script)
    found = [one for part in whole for one in with_bullets(part, ends=True)] + list(with_bullets(rest, ends=False))
    if len(found) > MOST_SENTENCES:
        raise Refused(f"a script has at most {MOST_SENTENCES} sentences")
    return found


def with_bullets(part: str, *, ends: bool) -> list[str]:
    """The bullets before a tactic, and the tactic; behind the last full stop there may be bullets alone."""
    out = []
    while match := BULLET.match(part):
        out.append(match[1])
        part = part[match.end() :]
    if tactic := " ".join(part.split()):
        if not ends:
            raise Refused("the last tactic has no full stop")
        check_tactic(tactic)
        out.append(f"{tactic}.")
    elif ends:
        raise Refused("a full stop without a tactic")
    return out


def check_tactic(tactic: str) -> None:
    """Raises Refused unless every tactic in it, also behind `;` and inside of brackets, is one that is known."""
    wanted, pattern, before = True, 0, ""  # whether a tactic comes next; depth inside of a pattern of names
    for token in TOKEN.findall(tactic):
        if pattern or (token == "[" and not wanted and before in ("as", "intros")):
            pattern += (token == "[") - (token == "]")
        elif token == ";" or (token == "|" and not wanted) or (token == "by" and not wanted):
            wanted = True
        elif wanted and token not in ("(", ")", "[", "]", "|") and token not in COMBINATORS and not token.isdigit():
            if token not in TACTICS:
                raise Refused(f"the tactic `{token[:40]}` is not one that is allowed")
            wanted = False
        elif not wanted and token in "[]{}" and token != "]":
            raise Refused(f"a `{token}` is out of its place")
        before = token
    if wanted and tactic.strip("()[]| ") in COMBINATORS:
        raise Refused("a tactic is missing")


def variables(statement: str) -> int:
    """How many things a statement says exist, at its head; 0 where it is not about existence."""
    match = BINDER.match(statement)
    if not match:
        return 0
    names = re.sub(r":[^()]*", "", match[1])
    return len(re.findall(r"[\w']+", names, re.ASCII))


def witness(statement: str, found: list[str]) -> str | None:
    """What a proof of existence gives, `7` or `3, 4`; None where the statement is not about existence.

    Raises Refused unless its first tactics name closed numerals, as many as exist.
    """
    wanted = variables(statement)
    if not wanted:
        return None
    numerals: list[str] = []
    for sentence in found:
        parts = [part.strip() for part in sentence.rstrip(".").split(";")]
        if len(numerals) < wanted and (match := WITNESS.fullmatch(parts[0])):
            numerals += [plain_numeral(one) for one in match[1].split(",")]
        if len(parts) > 1 or len(numerals) >= wanted or not match:
            break
    if len(numerals) != wanted:
        raise Refused("a proof of existence begins with `exists N`, of a closed numeral for each that exists")
    return ", ".join(numerals)


def plain_numeral(text: str) -> str:
    """`(-7)%Z` as -7."""
    return re.sub(r"%\w+|[()\s]", "", text)
