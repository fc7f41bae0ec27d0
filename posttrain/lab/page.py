"""The page of claims: docs/claims.md."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from posttrain.lab.claim import Claim
from posttrain.lab.headline import Headline, headline_table

DOCS = Path(__file__).parent.parent.parent / "docs"


def claims_page(
    tables: Mapping[str, str],
    first_lines: Mapping[str, str],
    minutes: Mapping[str, float],
    seeds: int,
    before: str = "",
    headlines: Mapping[str, tuple[Headline, Sequence[Claim]]] = MappingProxyType({}),
) -> str:
    """docs/claims.md: the papers' first claims, then every system's table, with what it is and the CPU minutes.

    before     the page so far: its sections on other systems stay
    headlines  with the claims of their systems, for the table at the top
    """
    sections = sections_of(before)
    for name, table in tables.items():
        page = DOCS / "systems" / f"{name}.md"
        link = f" [About it](systems/{page.name})." if page.is_file() else ""
        sections[name] = f"{first_lines[name]}{link} {minutes[name]:.1f} CPU minutes.\n\n{table}"
    spent = sum(map(minutes_of, sections.values()))
    lines = [
        "# Claims",
        "",
        f"What the papers claim, measured here at laptop scale over {seeds} seeds. Made by",
        "",
        f"```sh\nposttrain claims {' '.join(sorted(sections))} --seeds {seeds} --write docs/claims.md\n```",
        "",
        f"in {spent:.0f} CPU minutes; each system's part may be made again by itself. Intervals are 95 %: of an arm by "
        "bootstrap, of a paired difference by Student's t. *Holds* means that the difference's interval lies above "
        "zero (or above what the measure's column allows), *reversed* below, *not separated* neither. *Detectable* is "
        "how far above zero (or above what the column allows) the true difference has to lie for these seeds to show "
        "it four times out of five. *Not testable here* means that both arms are at the ceiling or the floor of the "
        "measure, where they cannot differ. Controls are ours. Every seed's value is in [claims.json](claims.json).",
        "",
        *([headline_table(sections, headlines), ""] if headlines else []),
    ]
    return "\n".join(lines) + "\n" + "\n".join(f"## {name}\n\n{sections[name]}\n" for name in sorted(sections))


def sections_of(page: str) -> dict[str, str]:
    """The text of every system's section of docs/claims.md."""
    known = re.findall(r"^## ([\w./-]+)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    return {name: text.strip() for name, text in known}


def minutes_of(section: str) -> float:
    """The CPU minutes that a section says it cost."""
    return sum(map(float, re.findall(r" ([\d.]+) CPU minutes\.\n", section)))
