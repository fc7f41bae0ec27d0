"""z3 as a prover: it is told the witness, and decides whether the statement is true of it. Integers only.

Statements are read as Coq reads them in the scope of Z: numerals, names, + - * ^, `/` and `mod` by positive numerals
(which round down), = <> < <= > >=, chains such as `0 <= x < 15`, ~ /\\ \\/ -> <->, forall and exists over Z.
"""

from __future__ import annotations

import importlib
import re
import time
from collections.abc import Mapping
from typing import Any

from posttrain.systems.nl_fl_hybrid.prover.script import Refused, check_statement, sentences, witness
from posttrain.systems.nl_fl_hybrid.prover.verdict import MISSING, Verdict

TOKEN = re.compile(r"\s*(<->|->|/\\|\\/|<=|>=|<>|[A-Za-z_][\w']*|\d+|[-+*/^=<>~(),:])", re.ASCII)
NO_INTEGER = re.compile(r"%(?!Z\b)|[/#]")  # of a numeral: another scope, or a fraction
RELATIONS = ("=", "<>", "<", "<=", ">", ">=")
WORK = 20_000_000  # z3's own count of steps: the same on every machine
MOST_GROWTH = 64  # of powers, multiplied where one is inside of another: they are worked out
MOST_DIGITS = 400
PATIENCE_MS = 20_000  # where the count of steps does not hold it back
DEEPEST = 40  # parentheses and quantifiers within one another


class Z3:
    """Of a script only the witness counts: what follows it is decided by z3, which proves more than `lia` does.

    Raises ValueError without the extra.
    """

    language = "coq"

    def __init__(self, work: int = WORK):
        try:
            self.z3: Any = importlib.import_module("z3")
        except ImportError as error:
            raise ValueError(MISSING) from error
        self.work = work

    def check(self, statement: str, script: str) -> Verdict:
        """What z3 cannot decide within its count of steps is not proved, and marked as timed out."""
        start, z3 = time.perf_counter(), self.z3
        try:
            stated, steps = check_statement(statement), sentences(script)
            found = witness(stated, steps)
            if not steps:
                raise Refused("the script is empty")
            if any(step.startswith("exists") and NO_INTEGER.search(step) for step in steps):
                raise Refused("z3 takes integers alone")
            goal = Reader(z3, stated).goal(found)
        except Refused as reason:
            return Verdict(False, error=str(reason))
        solver = z3.Solver()
        solver.set("rlimit", self.work)
        solver.set("timeout", PATIENCE_MS)
        solver.add(z3.Not(goal))
        said = solver.check()
        took = 1000 * (time.perf_counter() - start)
        if said == z3.unsat:
            return Verdict(True, found, milliseconds=took)
        undecided = said == z3.unknown
        error = "z3 could not decide it" if undecided else "it is false of this witness"
        return Verdict(False, found, error, milliseconds=took, timed_out=undecided)

    def close(self) -> None:
        pass


class Reader:
    """A statement, read from left to right. Raises Refused for what is not in the language."""

    def __init__(self, z3: Any, text: str):
        self.z3, self.depth, self.growth = z3, 0, 1
        self.tokens: list[str] = []
        at = 0
        while at < len(text.rstrip()):
            match = TOKEN.match(text, at)
            if not match:
                raise Refused(f"z3 cannot read `{text[at : at + 20]}`: it takes integers, and Coq can do more")
            self.tokens.append(match[1])
            at = match.end()
        self.at = 0

    def goal(self, found: str | None) -> Any:
        """The statement, of its witness where it has one."""
        names: dict[str, Any] = {}
        values = found.split(", ") if found else []
        while values:
            opened = self.skip_parentheses()
            self.take("exists")
            bound = self.bound_names()
            if opened or len(bound) > len(values):
                raise Refused("z3 reads `exists x : Z, ...` without parentheses around it")
            for name in bound:
                names[name] = self.z3.IntVal(values.pop(0))
        goal = self.truth(self.formula(names))
        if self.next():
            raise Refused(f"z3 cannot read on from `{self.next()}`")
        return goal

    def skip_parentheses(self) -> int:
        count = 0
        while self.next() == "(":
            self.take()
            count += 1
        return count

    # ---- formulas, from the loosest operator to the tightest

    def formula(self, names: Mapping[str, Any]) -> Any:
        if self.next() in ("forall", "exists"):
            return self.nested(self.quantified, names)
        left = self.nested(self.equivalence, names)
        if self.next() != "->":
            return left
        self.take()
        return self.z3.Implies(self.truth(left), self.truth(self.nested(self.formula, names)))

    def equivalence(self, names: Mapping[str, Any]) -> Any:
        left = self.disjunction(names)
        if self.next() != "<->":
            return left
        self.take()
        return self.truth(left) == self.truth(self.disjunction(names))

    def quantified(self, names: Mapping[str, Any]) -> Any:
        kind = self.take()
        fresh = {name: self.z3.Int(f"{name}!{self.at}") for name in self.bound_names()}
        body = self.formula({**names, **fresh})
        return (self.z3.ForAll if kind == "forall" else self.z3.Exists)(list(fresh.values()), self.truth(body))

    def bound_names(self) -> list[str]:
        """Of `x y : Z,` or `(x : Z) (y : Z),`, up to the comma."""
        names: list[str] = []
        while (token := self.take()) != ",":
            if token == ":":
                if self.take() != "Z":
                    raise Refused("z3 takes integers alone, `: Z`")
            elif re.match(r"[A-Za-z_]", token):
                names.append(token)
            elif token not in "()":
                raise Refused(f"`{token}` is out of its place")
        return names

    def disjunction(self, names: Mapping[str, Any]) -> Any:
        parts = [self.conjunction(names)]
        while self.next() == "\\/":
            self.take()
            parts.append(self.conjunction(names))
        return self.z3.Or([*map(self.truth, parts)]) if len(parts) > 1 else parts[0]

    def conjunction(self, names: Mapping[str, Any]) -> Any:
        parts = [self.relation(names)]
        while self.next() == "/\\":
            self.take()
            parts.append(self.formula(names) if self.next() in ("forall", "exists") else self.relation(names))
        return self.z3.And([*map(self.truth, parts)]) if len(parts) > 1 else parts[0]

    def relation(self, names: Mapping[str, Any]) -> Any:
        if self.next() == "~":
            self.take()
            return self.z3.Not(self.truth(self.nested(self.relation, names)))
        left, parts = self.sum(names), []
        chained = True
        while chained and self.next() in RELATIONS:
            sign, right = self.take(), self.sum(names)
            parts.append(self.compared(left, sign, right))
            left, chained = right, sign in ("<", "<=") and self.next() in ("<", "<=")
        return self.z3.And(parts) if len(parts) > 1 else parts[0] if parts else left

    def compared(self, left: Any, sign: str, right: Any) -> Any:
        left, right = self.number(left), self.number(right)
        return {"=": left == right, "<>": left != right, "<": left < right, "<=": left <= right}.get(
            sign, left > right if sign == ">" else left >= right
        )

    # ---- numbers

    def sum(self, names: Mapping[str, Any]) -> Any:
        left = self.product(names)
        while self.next() in ("+", "-"):
            sign, right = self.take(), self.number(self.product(names))
            left = self.number(left) + right if sign == "+" else self.number(left) - right
        return left

    def product(self, names: Mapping[str, Any]) -> Any:
        left = self.power(names)
        while self.next() in ("*", "/", "mod"):
            sign, right = self.take(), self.number(self.power(names))
            left = self.number(left)
            if sign == "*":
                left = left * right
            else:
                if not (self.z3.is_int_value(right) and right.as_long() > 0):
                    raise Refused("z3 divides by positive numerals alone")
                left = left % right if sign == "mod" else left / right
        return left

    def power(self, names: Mapping[str, Any]) -> Any:
        if self.next() == "-":
            self.take()
            return -self.number(self.nested(self.power, names))
        outside, self.growth = self.growth, 1
        base = self.atom(names)
        if self.next() == "^":
            self.take()
            power = self.number(self.nested(self.power, names))
            count = power.as_long() if self.z3.is_int_value(power) else -1
            self.growth *= max(count, 1)
            if count < 0 or self.growth > MOST_GROWTH:
                raise Refused(f"z3 takes powers from 0 to {MOST_GROWTH}, multiplied where one is inside of another")
            factor, base = self.number(base), self.z3.IntVal(1)
            for _ in range(count):
                base = base * factor
            base = self.z3.simplify(base)
        self.growth = max(self.growth, outside)
        return base

    def atom(self, names: Mapping[str, Any]) -> Any:
        token = self.take()
        if token.isdigit():
            if len(token) > MOST_DIGITS:
                raise Refused(f"z3 takes numerals of at most {MOST_DIGITS} digits")
            return self.z3.IntVal(token)
        if token == "(":
            inside = self.formula(names)
            self.take(")")
            return inside
        if token in ("True", "False"):
            return self.z3.BoolVal(token == "True")
        if token not in names:
            raise Refused(f"z3 does not know `{token}`")
        return names[token]

    # ---- tokens

    def nested(self, read: Any, names: Mapping[str, Any]) -> Any:
        self.depth += 1
        if self.depth > DEEPEST:
            raise Refused(f"a statement is nested at most {DEEPEST} deep")
        found = read(names)
        self.depth -= 1
        return found

    def next(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self, wanted: str | None = None) -> str:
        token = self.next()
        if not token or (wanted and token != wanted):
            raise Refused(f"`{wanted or 'something'}` is missing before `{token or 'the end'}`")
        self.at += 1
        return token

    def number(self, term: Any) -> Any:
        if not self.z3.is_int(term):
            raise Refused("a number is wanted where a statement stands")
        return term

    def truth(self, term: Any) -> Any:
        if not self.z3.is_bool(term):
            raise Refused("a statement is wanted where a number stands")
        return term
