"""The page of claims: docs/claims.md."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent.parent.parent / "docs"


def claims_page(
    tables: Mapping[str, str],
    first_lines: Mapping[str, str],
    values: Mapping[str, Mapping[str, Mapping[int, Any]]],
    seeds: int,
    before: str = "",
) -> str:
    """docs/claims.md: every system's table, with the command and what it cost.

    first_lines  what each system is
    before       the page so far: its sections on other systems stay
    """
    known = re.findall(r"^## ([\w./-]+)\n(.*?)(?=^## |\Z)", before, re.MULTILINE | re.DOTALL)
    sections = {name: text.strip() for name, text in known}
    for name, table in tables.items():
        minutes = sum(value["cpu_s"] for by_seed in values[name].values() for value in by_seed.values()) / 60
        page = DOCS / "systems" / f"{name}.md"
        link = f" [About it](systems/{page.name})." if page.is_file() else ""
        sections[name] = f"{first_lines[name]}{link} {minutes:.1f} CPU minutes.\n\n{table}"
    spent = sum(map(float, re.findall(r" ([\d.]+) CPU minutes\.\n", "".join(sections.values()))))
    lines = [
        "# Claims",
        "",
        f"What the papers claim, measured here at laptop scale over {seeds} seeds. Made by",
        "",
        f"```sh\nposttrain claims {' '.join(sorted(sections))} --seeds {seeds} --write docs/claims.md\n```",
        "",
        f"in {spent:.0f} CPU minutes; each system's part may be made again by itself. Intervals are 95 %: of an arm by "
        "bootstrap, of a paired difference by Student's t. *Holds* means that the difference's interval lies above "
        "zero (or above what the measure's column allows), *reversed* below, *not separated* neither. Controls are "
        "ours. Every seed's value is in [claims.json](claims.json).",
        "",
    ]
    return "\n".join(lines) + "\n" + "\n".join(f"## {name}\n\n{sections[name]}\n" for name in sorted(sections))
