"""Numbers as people write them, read exactly: 1,200; 3/4; 1 1/2; 5 %; 3 x 10^8; 2^-99; $18; 12 cm."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from fractions import Fraction

UNITS = {
    "m": "m meter meters metre metres", "cm": "cm centimeter centimeters centimetre centimetres",
    "mm": "mm millimeter millimeters millimetre millimetres", "km": "km kilometer kilometers kilometre kilometres",
    "g": "g gram grams", "kg": "kg kilogram kilograms", "s": "s sec second seconds", "min": "min minute minutes",
    "h": "h hr hour hours", "in": "inch inches", "ft": "ft foot feet", "l": "l liter liters litre litres",
    "ml": "ml milliliter milliliters", "$": "$ dollar dollars usd", "¢": "cent cents", "°": "degree degrees °",
}  # fmt: skip
UNIT = {word: name for name, words in UNITS.items() for word in words.split()}
ROUNDED = 6  # from so many significant digits on, a decimal may be a rounding
LARGEST = 5_000  # digits of an exact number
SCIENTIFIC = re.compile(r"([-+]?[\d.]+)\s*(?:\\times|\\cdot|[*×·])\s*10\s*\^\s*\{?\s*([-+]?\d+)\s*\}?")
WORDS = re.compile(
    r"(?<=[\d}!)])\s*(°|\^\{?\\circ\}?|[^\W\d_]+(?:[\s/]+[^\W\d_]+)*(?:\s*\^\s*\{?[23]\}?)?)\.?$"
)  # behind a number: its unit, or what is counted


@dataclass(frozen=True, slots=True)
class Quantity:
    """An exact number. `digits`: the significant digits of a decimal, which may be a rounding."""

    value: Fraction
    digits: int | None = None
    unit: str = ""
    percent: bool = False  # it was written as one; the value is the share

    def equals(self, other: Quantity) -> bool:
        """The same number in the same unit, where both have one; 50 % is also 50, as graders of GSM8K have it."""
        if self.unit and other.unit and self.unit != other.unit:
            return False
        if self.percent != other.percent and self.hundredfold().rounds(other.hundredfold()):
            return True
        return self.rounds(other)

    def hundredfold(self) -> Quantity:
        return replace(self, value=self.value * 100) if self.percent else self

    def rounds(self, other: Quantity) -> bool:
        return self.value == other.value or rounds(self, other) or rounds(other, self)


def rounds(decimal: Quantity, exact: Quantity) -> bool:
    """Whether a decimal is a rounding of the other number, to six significant digits at least."""
    if decimal.digits is None or decimal.digits < ROUNDED or not exact.value:
        return False
    close = abs(decimal.value - exact.value) <= abs(exact.value) * Fraction(1, 2 * 10 ** (ROUNDED - 1))
    return close and (exact.digits is None or exact.digits >= ROUNDED)


def quantity(text: str) -> Quantity | None:
    """None for anything but a number with what stands around it."""
    text, unit, percent = text.strip(), "", False
    if match := re.match(r"([-−]?)\s*(?:\\?\$|US\$|€|£)\s*", text):
        unit = "$" if "$" in match[0] else match[0].strip(" -−")
        text = match[1] + text[match.end() :]
    if match := re.search(r"\s*(?:\\?%|\bpercent)$", text):
        text, percent = text[: match.start()], True
    elif not unit and (match := WORDS.search(text)) and not re.fullmatch(r"[eE]", match[1]):
        text, unit = text[: match.start()], unit_of(match[1])
    found = exact_number(text.strip())
    if found is None:
        return None
    return replace(found, value=found.value / 100 if percent else found.value, unit=unit, percent=percent)


def unit_of(words: str) -> str:
    """The unit that words name; empty for what is counted."""
    plain = words.strip().lower().replace("\\circ", "°").strip("^{}").replace(" ", "")
    return UNIT.get(
        plain, plain if re.search(r"[/^]", plain) else UNIT.get(re.split(r"\W", words.strip().lower())[0], "")
    )


def exact_number(text: str) -> Quantity | None:
    """An integer, a decimal, a fraction, a mixed or a scientific number, a power of integers."""
    text = re.sub(r"(?<=\d)(?:,|\\,|\\!|\{,\}|[ ](?=\d{3}\b))(?=\d{3})", "", text.replace("−", "-")).strip()
    text = re.sub(r"^\+\s*", "", text)
    number = r"-?\d+(?:\.\d+)?"
    if match := SCIENTIFIC.fullmatch(text) or re.fullmatch(r"([-+]?(?:\d+\.?\d*|\.\d+))[eE]([-+]?\d+)", text):
        return decimal_number(match[1], int(match[2]))
    if re.fullmatch(r"-?\s?(?:\d+\.?\d*|\.\d+)", text):
        return decimal_number(text.replace(" ", ""), 0)
    above_below = rf"\{{?\s*({number})\s*\}}?\s*\{{?\s*({number})\s*\}}?"
    if match := re.fullmatch(rf"(-?)\s*(\d+)?\s*\\[dt]?frac\s*{above_below}", text):
        return mixed_number(*match.groups())
    if match := re.fullmatch(rf"(-?)(?:(\d+)\s+)?\s*({number})\s*/\s*({number})", text):
        return mixed_number(*match.groups())
    if match := re.fullmatch(r"(-?)\(?(\d+)\)?\s*\^\s*\{?\s*(-?\d+)\s*\}?", text):
        base, power = int(match[2]), int(match[3])
        if abs(power) * len(match[2]) > LARGEST or (base == 0 and power < 0):
            return None
        return Quantity(Fraction(base) ** power * (-1 if match[1] else 1))
    return None


def decimal_number(digits: str, power: int) -> Quantity | None:
    if abs(power) + len(digits) > LARGEST:
        return None
    try:
        value = Fraction(Decimal(digits)) * Fraction(10) ** power
    except InvalidOperation:
        return None
    significant = len(digits.lstrip("+-").lstrip("0.").replace(".", ""))
    return Quantity(value, significant if "." in digits or power < 0 else None)


def mixed_number(sign: str, whole: str | None, above: str, below: str) -> Quantity | None:
    if Fraction(below) == 0:
        return None
    value = Fraction(int(whole or 0)) + Fraction(above) / Fraction(below)
    return Quantity(-value if sign else value)
