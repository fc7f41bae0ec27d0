"""What each paper claims above all, and what was seen where it does not hold: the first table of docs/claims.md."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from posttrain.lab.claim import Claim


@dataclass(frozen=True, slots=True)
class Headline:
    """A system's first claim.

    claim  its name among the system's claims
    why    what was seen instead; shown where the verdict is not that it holds
    """

    claim: str
    why: str = ""


def headline_table(sections: Mapping[str, str], headlines: Mapping[str, tuple[Headline, Sequence[Claim]]]) -> str:
    """A line for each system of a page's sections that has a headline among its claims: what the paper says, and the
    verdict here."""
    lines = ["| system | the paper's claim | in its words | here | why not |", "|---|---|---|---|---|"]
    for name in sorted(sections.keys() & headlines.keys()):
        headline, claims = headlines[name]
        [claim] = [one for one in claims if one.name == headline.claim]
        verdict, difference = verdict_in(sections[name], headline.claim)
        why = "" if verdict == "holds" else headline.why
        said = f"ours: {claim.says}" if claim.control else claim.says
        lines.append(f"| [{name}](#{name}) | {claim.name} | {said} | **{verdict}**, {difference} | {why} |")
    return "\n".join(lines)


def verdict_in(section: str, claim: str) -> tuple[str, str]:
    """The verdict on a claim in a system's section, and the difference. Raises ValueError when it is not there."""
    found = re.search(rf"^\| (?:\*control:\* )?{re.escape(claim)} \|(.*)$", section, re.MULTILINE)
    if not found:
        raise ValueError(f"the page has no row on the claim {claim!r}")
    cells = [cell.strip() for cell in found[1].split("|")]
    return cells[5].strip("*"), cells[3].partition(" ")[0]
