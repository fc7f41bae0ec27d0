"""Pictures: of a system's result, every arm's values as an SVG that stands in its page; and tensors as PNG."""

from __future__ import annotations

import html
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.measure import interval

if TYPE_CHECKING:
    pass

WIDTH, LEFT, RIGHT, ROW, TOP, BOTTOM = 760, 220, 70, 26, 44, 34
COLOUR, PALE, GREY = "#1f5f8b", "#9db4c8", "#6b7c8c"


def dots(measure: str, arms: Mapping[str, Sequence[float]]) -> str:
    """An SVG: of every arm its seeds as dots, their mean and its 95 % interval. Only finite values count."""
    known = {name: [v for v in values if math.isfinite(v)] for name, values in arms.items()}
    known = {name: values for name, values in known.items() if values}
    every = [value for values in known.values() for value in values]
    low, high = min([*every, 0.0]), max(every) or 1.0
    height = TOP + ROW * len(known) + BOTTOM

    def x(value: float) -> float:
        return LEFT + (value - low) / (high - low or 1.0) * (WIDTH - LEFT - RIGHT)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif" '
        f'font-size="13"><rect width="100%" height="100%" fill="white"/>',
        f'<text x="{LEFT}" y="22" font-weight="bold" fill="#1c2833">{html.escape(measure)}</text>',
    ]
    for tick in ticks(low, high):
        parts.append(
            f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{TOP - 8}" y2="{height - BOTTOM}" stroke="#e4eaf0"/>'
        )
        parts.append(
            f'<text x="{x(tick):.1f}" y="{height - BOTTOM + 18}" text-anchor="middle" fill="{GREY}">{tick:g}</text>'
        )
    for i, (name, values) in enumerate(known.items()):
        y, mean = TOP + ROW * (i + 0.5), statistics.fmean(values)
        left, right = interval(values)
        parts.append(f'<text x="{LEFT - 10}" y="{y + 4:.1f}" text-anchor="end">{html.escape(name)}</text>')
        parts += [f'<circle cx="{x(v):.1f}" cy="{y:.1f}" r="3.5" fill="{PALE}" fill-opacity="0.8"/>' for v in values]
        if math.isfinite(left):
            parts.append(
                f'<line x1="{x(left):.1f}" x2="{x(right):.1f}" y1="{y:.1f}" y2="{y:.1f}" '
                f'stroke="{COLOUR}" stroke-width="2"/>'
            )
        parts.append(f'<circle cx="{x(mean):.1f}" cy="{y:.1f}" r="5" fill="{COLOUR}"/>')
        parts.append(f'<text x="{WIDTH - RIGHT + 14}" y="{y + 4:.1f}" fill="{COLOUR}">{mean:.3g}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def ticks(low: float, high: float) -> list[float]:
    """About five round numbers between two others."""
    step = 10 ** math.floor(math.log10((high - low or 1.0) / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= 6)
    first = math.ceil(low / step)
    return [round(k * step, 10) for k in range(first, math.floor(high / step) + 1)]


def draw(path: Path, measure: str, values: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> None:
    """Write the picture of a measure, in every arm that has it: arm, seed, {"measures"}."""
    arms = {
        arm: [value["measures"][measure] for value in by_seed.values() if measure in value["measures"]]
        for arm, by_seed in values.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dots(measure, {arm: found for arm, found in arms.items() if found}))
