"""The structured answer: the numbers of two arms as YAML, read by a rule of our own.

    intervention:            intervention:
      events: 12               mean: 50.6
      group_size: 101          standard_deviation: x
    comparator:                group_size: 30
      events: 20             comparator: ...
      group_size: 99

A value is a number, or unknown (`x`, empty, `not reported`). YAML's own rules are not asked: they make 10 of `012`, 90
of `1:30`, false of `no`, and text of `1e3`.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Literal, TypeAlias

from posttrain.chat import without_thinking
from posttrain.grade.quantities import quantity
from posttrain.grade.structured import fence

Kind = Literal["dichotomous", "continuous"]
Arm = Literal["intervention", "comparator"]
Record: TypeAlias = Mapping[str, float | None]  # by `intervention_events` and the like; None unknown, NaN not readable

ARMS: tuple[Arm, ...] = ("intervention", "comparator")
FIELDS: Mapping[Kind, tuple[str, ...]] = {
    "dichotomous": ("events", "group_size"),
    "continuous": ("mean", "standard_deviation", "group_size"),
}
COUNTS = ("events", "group_size")
MAGNITUDES = "k mn bn tn thousand thousands million millions billion billions trillion trillions hundred dozen"
WORDS = "x ? - – — ~ . null none nan .nan na n/a n.a. nr unknown missing unclear"
NOT = "reported available applicable given stated known provided specified"
UNKNOWN = frozenset(("", *WORDS.split(), *(f"not {word}" for word in NOT.split())))
NEAR = 1e-3  # between numbers that are no counts
LARGEST = 1e12  # of a number, so that whatever is computed from it is finite
MOST_CHARACTERS, MOST_WIDTH, MOST_DEPTH = 1_000, 40, 4  # of a record, a number, and mappings inside one another
MOST_BLOCKS = 5  # fenced blocks that are looked at, from the end
EXTRA = "reading YAML needs the extra: pip install 'posttrain[text]'"

FENCE = fence("ya?ml")
ARM_LINE = re.compile(r"(?:intervention|comparator)[ \t]*:", re.IGNORECASE)
GROUPED = re.compile(r"(?<=\d)_(?=\d)")
MAGNITUDE = re.compile(rf"\d(?:\s*(?i:{MAGNITUDES.replace(' ', '|')})|[MB])\b")
DIVIDED = re.compile(r"\d\s*/\s*\d")


def names(kind: Kind) -> tuple[str, ...]:
    """The fields of a record, arm by arm."""
    return tuple(f"{arm}_{field}" for arm in ARMS for field in FIELDS[kind])


# ---- one number


def number_of(value: Any, name: str, *, whole: bool = True) -> float | None:
    """A value as the number of the field `name`: None where it says that it is unknown, NaN where it is neither.

    A count is a whole number, not negative, and no percentage; in other fields `12 %` is 12. A fraction such as `12/40`
    and a number with a magnitude (`1.2 million`) are none of any field. Units and separators (`1,200`, `1_200`,
    `3.1 kg`) are read; beyond 1e12 nothing is.

    whole  counts are whole numbers; of published ones some are estimates
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return math.nan
    if isinstance(value, str) and " ".join(value.lower().split()) in UNKNOWN:
        return None
    exact = exact_of(value, name)
    if exact is None or abs(exact) > LARGEST:
        return math.nan
    if name.endswith(COUNTS) and (exact < 0 or (whole and exact.denominator > 1)):
        return math.nan
    return float(exact)


def exact_of(value: float | str, name: str) -> Fraction | None:
    if not isinstance(value, str):
        return None if value in (math.inf, -math.inf) else Fraction(value)
    text = GROUPED.sub("", value.strip())
    found = None if len(text) > MOST_WIDTH or DIVIDED.search(text) else quantity(text)
    if found is None or MAGNITUDE.search(text):
        return None
    if name.endswith(COUNTS) and (found.percent or found.unit == "$"):
        return None
    return found.hundredfold().value


def same(given: float | None, wanted: float | None, name: str) -> bool:
    """Unknown matches unknown and nothing else; counts exactly, other numbers within 0.001."""
    if given is None or wanted is None:
        return given is wanted
    return given == wanted if name.endswith(COUNTS) else abs(given - wanted) < NEAR


# ---- a record in a reply


def record_of(text: str, kind: Kind) -> Record:
    """The fields that a reply gives: of its last fenced block that has some, else of all of it behind its thinking.

    Fields that are missing are left out. Raises ValueError, and nothing else, where there is no record.
    """
    said = without_thinking(text).strip()
    pieces = [*reversed(FENCE.findall(said)[-MOST_BLOCKS:]), said, arm_lines(said)]
    reason = "the reply holds no record"
    for piece in pieces:
        try:
            record = fields_of(yaml_mapping(piece), kind)
        except ValueError as error:
            reason = str(error)
            continue
        if record:
            return record
    raise ValueError(reason)


def arm_lines(text: str) -> str:
    """The lines that begin with the name of an arm, and those indented below them: a record in the middle of prose."""
    kept: list[str] = []
    inside = False
    for line in text.splitlines():
        inside = bool(ARM_LINE.match(line)) or (inside and (not line.strip() or line[0] in " \t"))
        kept += [line] if inside else []
    return "\n".join(kept)


def fields_of(found: Mapping[str, Any], kind: Kind) -> Record:
    """The fields of both arms; keys without regard to case, blanks for underscores."""
    record: dict[str, float | None] = {}
    for arm in ARMS:
        given = plain_keys(found).get(arm)
        own = plain_keys(given) if isinstance(given, dict) else {}
        for field in FIELDS[kind]:
            if field in own:
                record[f"{arm}_{field}"] = number_of(own[field], field)
    return record


def plain_keys(found: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(key).strip().lower().replace(" ", "_").replace("-", "_"): value for key, value in found.items()}


def is_whole(record: Record, kind: Kind) -> bool:
    """Every field is there, with a number or as unknown."""
    return all(name in record and not is_unreadable(record[name]) for name in names(kind))


def is_unreadable(value: float | None) -> bool:
    return value is not None and math.isnan(value)


def yaml_mapping(text: str) -> dict[Any, Any]:
    """A YAML mapping whose scalars are text. Aliases, deep nesting and length are refused.

    Raises ValueError for all that is none, and for a missing package.
    """
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"a record of {len(text)} characters; {MOST_CHARACTERS} are read")
    yaml, loader = text_loader()
    try:
        found = yaml.load(text, loader)
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the last two of escapes such as "\\UFFFFFFFF"
        raise ValueError(f"no YAML: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(found, dict):
        raise ValueError("the YAML is no mapping")
    return found


@functools.cache
def text_loader() -> tuple[Any, Any]:
    """PyYAML, and its loader that leaves scalars as text, made to refuse what grows."""
    try:
        import yaml
    except ImportError as error:
        raise ValueError(EXTRA) from error

    class TextLoader(yaml.BaseLoader):
        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("an alias")
            self.depth += 1
            if self.depth > MOST_DEPTH:
                raise yaml.YAMLError("mappings inside one another, deeper than a record has them")
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

    return yaml, TextLoader


def yaml_text(record: Record, kind: Kind) -> str:
    """A record as a reply writes it; unknown is `x`."""
    lines = []
    for arm in ARMS:
        lines.append(f"{arm}:")
        for field in FIELDS[kind]:
            value = record.get(f"{arm}_{field}")
            lines.append(f"  {field}: {'x' if value is None else plain_number(value)}")
    return "\n".join(lines)


def plain_number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)
