"""Whether two answers are the same mathematics: math-verify, behind what it gets wrong.

Imported by the grader's child process alone, which knows nothing of posttrain.

    numbers      compared exactly: 1/2^99 is not 1/2^98, 1e-05 is a number and Euler's constant is not in it
    rounding     a decimal is as good as the number that it rounds, from six significant digits on
    units        12 cm, 12\\text{ cm} and 12 are the same; 12 cm and 12 m are not
    intervals    [0, 1) is not [0, 1]; 0 < x < 1 is (0, 1)
    expressions  where the truth is a plain number, a sum or product that was left to the reader is no answer
"""

from __future__ import annotations

import re
import unicodedata

from math_verify import parse, verify
from quantities import SCIENTIFIC, UNIT, quantity  # type: ignore[import-not-found]  # beside this file
from sympy import Expr, Float

UNFINISHED = re.compile(r"[\d)}%]\s*(?:[+*×·÷−]|-|\\times|\\cdot|\\div|\\pm)\s*[\d(\\{]")
NAME = r"\\?[a-zA-Z]\w{0,2}"
RELATION = re.compile(r"[=<>≤≥]|\\in\b|\\[lg]eq?\b|\\[lg]t\b")


def verdict(gold: str, answer: str) -> str:
    """right, wrong, or unreadable: the gold answer."""
    truth, said = plain(gold), plain(answer)
    if not truth:
        return "unreadable"
    if not said:
        return "wrong"
    found = compare(truth, said)
    if found is not None:
        return "right" if found else "wrong"
    read, other = read_math(truth), read_math(said)
    if not read:
        return "wrong" if re.search(r"[^\W\d_]", truth) else "unreadable"
    exact = exactly_equal(read, other)
    if exact is None:
        exact = bool(other) and verify(read, other, timeout_seconds=None)
    return "right" if exact else "wrong"


def compare(truth: str, said: str) -> bool | None:
    """What needs no algebra; None where it does."""
    if canonical(truth) == canonical(said):
        return True
    if re.search(r"\d\s*:\s*\d", truth + " " + said):
        return False  # times and ratios are as they are written
    bare = without_name(truth, said)
    if bare != (truth, said):
        return verdict(*bare) == "right"
    if (a := interval(truth)) and (b := interval(said)):
        ends = zip(a[1:3], b[1:3], strict=True)
        return (a[0], a[3]) == (b[0], b[3]) and all(verdict(*pair) == "right" for pair in ends)
    number, other = quantity(truth), quantity(said)
    if number is None:
        return None
    if other is None:
        return False if UNFINISHED.search(said) and not SCIENTIFIC.fullmatch(said) else None
    return number.equals(other)


def without_name(truth: str, said: str) -> tuple[str, str]:
    """Both answers without `x =` and `x \\in`, where only one of them, or each, names what it is the value of."""
    named = re.compile(rf"{NAME}\s*(?:=|\\in\b)\s*(.+)")
    matches = named.fullmatch(truth), named.fullmatch(said)
    values = [match[1].strip() if match else text for match, text in zip(matches, (truth, said), strict=True)]
    if not any(matches) or any(RELATION.search(text) and not interval(text) for text in values):
        return truth, said
    if matches[0] and matches[1] and truth.split()[0][0] != said.split()[0][0]:
        return truth, said  # x = 5 is not y = 5
    return values[0], values[1]


def exactly_equal(a: list, b: list) -> bool | None:
    """Of two rational numbers, factorials and powers in them too; None for anything else."""
    pair = [one[0] for one in (a, b) if one and isinstance(one[0], Expr)]
    if len(pair) < 2 or any(one.free_symbols or one.has(Float) for one in pair):
        return None
    left, right = (one.doit() for one in pair)
    return left == right if left.is_Rational and right.is_Rational else None


# ---- intervals


def interval(text: str) -> tuple[str, str, str, str] | None:
    """Open or closed, ends, open or closed; of an interval or of an inequality in one variable."""
    text = text.replace("\\left", "").replace("\\right", "").strip()
    text = re.sub(r"\\leq?(?:slant)?\b|≤|<=", "⩽", text)
    text = re.sub(r"\\geq?(?:slant)?\b|≥|>=", "⩾", text)
    text = re.sub(r"\\lt\b", "<", re.sub(r"\\gt\b", ">", text))
    if match := re.fullmatch(r"([\[(\]])\s*([^,;\[\]]+?)\s*[,;]\s*([^,;\[\]]+?)\s*([\])\[])", text):
        opens = {"(": "open", "]": "open", "[": "closed"}[match[1]]
        closes = {")": "open", "[": "open", "]": "closed"}[match[4]]
        return opens, infinite(match[2]), infinite(match[3]), closes
    name = r"\\?[a-zA-Z]"
    kind = {"<": "open", ">": "open", "⩽": "closed", "⩾": "closed"}
    if match := re.fullmatch(rf"(.+?)\s*([<⩽])\s*{name}\s*([<⩽])\s*(.+)", text):
        return kind[match[2]], match[1], match[4], kind[match[3]]
    if match := re.fullmatch(rf"(.+?)\s*([>⩾])\s*{name}\s*([>⩾])\s*(.+)", text):
        return kind[match[3]], match[4], match[1], kind[match[2]]
    if match := re.fullmatch(rf"{name}\s*([<>⩽⩾])\s*([^<>⩽⩾]+)", text):
        if match[1] in "<⩽":
            return "open", "-\\infty", match[2], kind[match[1]]
        return kind[match[1]], match[2], "\\infty", "open"
    return None


def infinite(text: str) -> str:
    """An end of an interval, infinity in one spelling."""
    return re.sub(r"^\+?(-?)\s*(?:\\infty|∞|oo|inf(?:inity)?)$", r"\1\\infty", text.strip())


# ---- reading


def plain(text: str) -> str:
    """Without the dress of LaTeX and Markdown that changes no value."""
    text = unicodedata.normalize("NFKC", text.replace("−", "-").replace("–", "-")).strip()
    text = re.sub(r"^\\\((.*)\\\)$|^\\\[(.*)\\\]$", lambda m: m[1] or m[2], text, flags=re.DOTALL).strip()
    text = re.sub(r"^\$+(?=.*\$$)|(?<!\\)\$+$", "", text).strip() if text.count("$") > 1 else text
    text = re.sub(r"(?<=\d)(?:,|\{,\})?\\[!,](?=\d{3}(?!\d))", "", text)
    text = re.sub(r"\\(?:text|mathrm|mathbf|textbf|mbox|operatorname)\s*\{([^{}]*)\}", r" \1 ", text)
    text = re.sub(r"\\(?:left|right|displaystyle|,|;|!|quad|qquad|ldots)(?![a-zA-Z])", " ", text).replace("~", " ")
    text = re.sub(r"\\[dt]frac", r"\\frac", text)
    text = re.sub(r"^[*_`]+|[*_`]+$", "", text.strip())
    return " ".join(text.split()).strip(" .") if not re.fullmatch(r"\.\d+", text.strip()) else text.strip()


def canonical(text: str) -> str:
    """For the comparison of texts: case and spaces do not count."""
    return re.sub(r"\s+", "", text).casefold().replace("{", "").replace("}", "")


def read_math(text: str) -> list:
    """What math-verify reads in an answer that stands alone, without its unit."""
    unit = re.search(r"(?<=[\w})])\s+([a-zA-Z]+)(?:\s*\^\s*\{?[23]\}?)?$", text)
    if unit and unit[1].lower() in UNIT:
        text = text[: unit.start()]
    text = SCIENTIFIC.sub(r"\1 \\cdot 10^{\2}", text)
    text = re.sub(r"(?<![\\a-zA-Z])(pi|sqrt|sin|cos|tan|log|ln|infty)(?![a-zA-Z])", r"\\\1", text)
    text = re.sub(r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", text)
    text = re.sub(r"(?<=\d)[eE]([-+]?\d+)", r" \\cdot 10^{\1}", text)
    found = parse(f"${text}$", parsing_timeout=None)  # type: ignore[arg-type]  # the kernel kills; no alarms here
    return found or parse(text, parsing_timeout=None)  # type: ignore[arg-type]
