"""What a model may write for Coq: a term as a statement, a list of known tactics as a proof.

Every rule is here because its breach was seen to pass a careless checker: `Admitted` ends without an error, `Redirect`
writes a file, `Axiom` and a comment hide what is proved, and `exists y, expr = y` is proved by `expr` itself, so that
a witness that is not a numeral says nothing.
"""

from __future__ import annotations

import re
from fractions import Fraction

TERM = re.compile(r"[\w\s()+\-*/=<>:,.%~^\\|#&']*", re.ASCII)  # no quotes, brackets, braces, dollars
TACTIC = re.compile(r"[\w\s()+\-*/=<>:,.%~^\\|#&';\[\]{}]*", re.ASCII)
FORBIDDEN = re.compile(
    r"\(\*|\*\)|:=\s*\(?ltac|\b(?:ltac|admit|abstract|give_up|native_compute|Redirect|Axiom)\b"
    r"|<\s*/?\s*(?:prompt|infomsg|warning)"  # what Coq itself writes
)
EXISTENCE = re.compile(r"\b(?:exists2?|ex2?|sig|sigT|inhabited)\b")
SPLIT = re.compile(r"\.(?=\s|$)")
BULLET = re.compile(r"\s*(-+|\++|\*+|[{}])")
TOKEN = re.compile(r"[A-Za-z_][\w'.]*|\d+|\|\||[^\w\s]", re.ASCII)
NUMERAL = re.compile(  # over Z 21 / 3 is to be worked out; real numbers have no other form
    r"(?P<open>\()?\s*(?P<sign>-?)\s*(?P<above>\d{1,400})(?:\s*(?P<slash>[#/])\s*(?P<below>\d{1,400}))?\s*(?(open)\))"
    r"(?:%(?P<scope>Z|nat|N|positive|Q|R))?",
    re.ASCII,
)
WITNESSES = re.compile(r"exists\s+(.+)", re.ASCII)
TYPE = r"[\w'.]+(?:\s*(?:->|\*)\s*[\w'.]+)*"
NAMES = r"[\w']+(?:\s+[\w']+)*"
BINDER = re.compile(rf"\s*exists\b\s*({NAMES}(?:\s*:\s*{TYPE})?|(?:\(\s*{NAMES}\s*:\s*{TYPE}\s*\)\s*)+)\s*,", re.ASCII)
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
        if ".." in f"{tactic}.":  # which Coq does not take for an end
            raise Refused("a tactic ends with one full stop")
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
    """How many things a statement says exist, at its head; 0 where it is not about existence.

    Raises Refused for existence anywhere else: it would be proved by terms that are no numerals.
    """
    rest, count = without_parentheses(statement), 0
    while match := BINDER.match(rest):
        names = re.sub(r":[^()]*", " ", match[1])
        count += len(re.findall(r"[\w']+", names, re.ASCII))
        rest = without_parentheses(rest[match.end() :])
    if EXISTENCE.search(rest):
        raise Refused("a statement says at its head what exists, `exists x : Z, ...`, and nowhere else")
    return count


def without_parentheses(text: str) -> str:
    """Without those around all of it."""
    text = text.strip()
    while text.startswith("(") and text.endswith(")"):
        depth = 0
        for at, letter in enumerate(text):
            depth += (letter == "(") - (letter == ")")
            if depth == 0 and at + 1 < len(text):
                return text
        text = text[1:-1].strip()
    return text


def witness(statement: str, found: list[str]) -> str | None:
    """What a proof of existence gives, `7` or `3, 4`; None where the statement is not about existence.

    Raises Refused unless its first tactics name closed numerals, as many as exist.
    """
    wanted, numerals = variables(statement), list[str]()
    for sentence in found if wanted else ():
        first, *more = sentence.removesuffix(".").split(";")
        if len(numerals) >= wanted or not (match := WITNESSES.fullmatch(first.strip())):
            break
        numerals += [plain_numeral(one) for one in match[1].split(",")]
        if more:
            break
    if len(numerals) != wanted:
        raise Refused("a proof of existence begins with `exists N`, of a closed numeral for each that exists")
    return ", ".join(numerals) if wanted else None


def plain_numeral(text: str) -> str:
    """`(-7)%Z` as -7, `3#6` as 1/2. Raises Refused for anything but a numeral."""
    match = NUMERAL.fullmatch(text.strip())
    if not match or (match["slash"] == "/" and match["scope"] != "R"):
        raise Refused("a witness is a closed numeral: 7, (-7), 3#2, or (3/2)%R")
    below = int(match["below"] or 1)
    if below == 0:
        raise Refused("a witness has no zero below")
    return str(Fraction(int(match["sign"] + match["above"]), below))
