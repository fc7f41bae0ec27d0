"""What a reply to a question about a table says: its answer, its form, and whether it is right.

    <think>...</think> <answer>
    ```json
    {"answer": ["12", "Oslo"]}
    ```
    </answer>

Three kinds of tasks want three kinds of answers: a list of strings (TQA), "entailed" or "refuted" (TFV), a sentence
(FF-TQA).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Literal

Kind = Literal["TQA", "TFV", "FF-TQA"]
KINDS: tuple[Kind, ...] = ("TQA", "TFV", "FF-TQA")
VERDICTS = ("entailed", "refuted")
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
WHOLE = re.compile(r"\s*<think>.*?</think>\s*<answer>(.*?)</answer>\s*", re.DOTALL)
FENCE = re.compile(r"```json\s*(.*?)```", re.DOTALL)
UNBRACED = re.compile(r'"answer"\s*:\s*')
NUMBER = re.compile(r"[-+]?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d{1,3})?")
MOST_ITEMS, MOST_STARTS = 100, 100  # of a short answer; places in a reply where an answer may begin
NEAR = 0.01  # between numbers that count as equal


# ---- form


def strict_format(text: str, kind: Kind) -> float:
    """1 for a block of thought and a block of answer, with its JSON of the kind's type in it, and nothing else."""
    return float(cumulative_format(text, kind) == 1.0)


def cumulative_format(text: str, kind: Kind) -> float:
    """For base models, in [0, 1]: 0.3 the two blocks, 0.2 each tag once, 0.3 fenced JSON, 0.2 of the kind's type.

    It stops at the first that is missing.
    """
    whole = WHOLE.fullmatch(text)
    if not whole:
        return 0.0
    if any(text.count(tag) != 1 for tag in TAGS):
        return 0.3
    fence = FENCE.search(whole[1])
    if not fence:
        return 0.5
    return 1.0 if is_typed(braced(fence[1].strip()), kind) else 0.8


def is_typed(answer: Any, kind: Kind) -> bool:
    """Whether an answer is of the type that its kind asks for; numbers in a list are none."""
    if kind == "TQA":
        return isinstance(answer, list) and all(isinstance(item, str) for item in answer)
    return isinstance(answer, str) and (kind == "FF-TQA" or answer in VERDICTS)


# ---- the answer


def stated(text: str) -> Any:
    """The answer of a reply, wherever it stands: in the answer block before all of the text, fenced before bare.

    None where there is none.
    """
    _, _, behind = text.partition("<answer>")
    block, closed, _ = behind.partition("</answer>")
    blocks = [block, text] if closed else [text]
    for block in blocks:
        for fenced in islice(FENCE.finditer(block), MOST_STARTS):
            if (found := braced(fenced[1].strip())) is not None:
                return found
        for found in objects(block):
            if found is not None:
                return found
    return None


def braced(text: str) -> Any:
    """The value of `answer` in a text that is a JSON object; None for anything else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value.get("answer") if isinstance(value, dict) else None


def objects(text: str) -> Iterator[Any]:
    """The values of `answer` of the JSON objects in a text, one behind another."""
    decoder, start = json.JSONDecoder(), 0
    for match in islice(UNBRACED.finditer(text), MOST_STARTS):
        brace = text.rfind("{", start, match.start())
        if brace < 0 or text[brace + 1 : match.start()].strip():
            continue
        try:
            value, start = decoder.raw_decode(text, brace)
        except (ValueError, RecursionError):
            continue
        yield value.get("answer")


# ---- right or wrong


def items_of(answer: Any) -> list[float | str] | None:
    """The items of a short answer, numbers as numbers; None where it is none: empty, nested, or more than 100 items."""
    listed = answer if isinstance(answer, list) else [answer]
    scalar = all(isinstance(item, str | int | float) and not isinstance(item, bool) for item in listed)
    return [number_or_text(item) for item in listed] if scalar and 0 < len(listed) <= MOST_ITEMS else None


def number_or_text(item: str | float) -> float | str:
    if not isinstance(item, str):
        try:
            return float(item)
        except OverflowError:  # an integer of hundreds of digits
            return str(item)
    plain = item.strip()
    return float(plain.replace(",", "")) if NUMBER.fullmatch(plain) else item


def same_items(given: Sequence[float | str], wanted: Sequence[float | str]) -> bool:
    """As many, and each given item meets one that is wanted and not taken: numbers within 0.01, texts by letters."""
    left = list(wanted)
    for item in given:
        match = next((i for i, other in enumerate(left) if is_same(item, other)), None)
        if match is None:
            return False
        del left[match]
    return not left


def is_same(a: float | str, b: float | str) -> bool:
    if isinstance(a, str) or isinstance(b, str):
        return a == b
    return abs(a - b) < NEAR


# ---- the looser scorer of the evaluation


def loosely_stated(text: str) -> Any:
    """As `stated`, or behind an `"answer":` without braces."""
    found = stated(text)
    if found is not None:
        return found
    for match in islice(UNBRACED.finditer(text), MOST_STARTS):
        try:
            return json.JSONDecoder().raw_decode(text, match.end())[0]
        except (ValueError, RecursionError):
            continue
    return None


def loose_item(item: float | str) -> float | str:
    """Lower case; `12 %` is 0.12, and `const_7` is 7."""
    if not isinstance(item, str):
        return item
    plain = item.strip().lower().removeprefix("const_")
    if plain.endswith("%") and isinstance(share := number_or_text(plain[:-1]), float):
        return share / 100
    found = number_or_text(plain)
    return found if isinstance(found, float) else " ".join(plain.split())


def loosely_same(answer: Any, wanted: Sequence[str]) -> bool:
    given = items_of(answer)
    return given is not None and same_items([*map(loose_item, given)], [loose_item(item) for item in wanted])
