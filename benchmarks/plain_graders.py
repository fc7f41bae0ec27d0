"""math-verify as it is, for `posttrain grade --against`: what docs/rewards.md compares our grader with."""

from __future__ import annotations


def math_verify(reply: str, answer: str) -> float:
    """As TRL's accuracy reward calls it: every expression of the reply is a candidate, a thought one too."""
    from math_verify import parse, verify

    gold = str(answer)
    return float(verify(parse(gold if "$" in gold or "boxed" in gold else f"${gold}$"), parse(reply)))
