"""The commands about published systems: what there is, and whether their claims hold."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

if TYPE_CHECKING:
    from posttrain.lab.claim import Finding
    from posttrain.systems import System


def claims(
    names: Annotated[tuple[str, ...], tyro.conf.Positional] = (),
    seeds: int = 5,
    quick: bool = False,
    workers: int = 0,
    out: str = "runs/claims",
    write: str | None = None,
    rejudge: bool = False,
) -> None:
    """Run systems' claims against their baselines, and print a table with verdicts.

    Arms run in parallel, one process a core; an interrupted run continues where it was.

    names    systems of `posttrain list`, or ./my_paper.py; all of them if none is named
    seeds    seeds of every arm
    quick    one seed at reduced size: a smoke test, whose verdicts mean nothing
    workers  processes at a time; as many as there are cores if 0
    out      where values are kept, a file for each system
    write    also write the tables to this Markdown file, all values to the JSON file beside it, and pictures to
             systems/; what the files hold of other systems stays
    rejudge  run nothing: judge the values in the JSON file beside `write` by today's claims, and write both files again
    """
    from posttrain import systems
    from posttrain.cli.options import at_least
    from posttrain.lab.arms import run_all
    from posttrain.lab.picture import draw

    at_least(1, seeds=seeds)
    chosen = [systems.system(name, "names") for name in names] or systems.every()
    page = Path(write) if write else None
    if rejudge:
        if page is None or not page.with_suffix(".json").is_file():
            raise ValueError("`rejudge=True` needs the page whose JSON file lies beside it: give `write`")
        publish(chosen, *stored_findings(chosen, page), page)
        return
    numbers = range(1 if quick else seeds)
    values = run_all(chosen, numbers, Path(out), quick=quick, workers=workers)
    findings = {one.name: [claim.finding(values[one.name], numbers) for claim in one.claims] for one in chosen}
    minutes = {
        name: sum(value["cpu_s"] for by_seed in found.values() for value in by_seed.values()) / 60
        for name, found in values.items()
    }
    publish(chosen, findings, minutes, page)
    for one in chosen if page else ():
        measure = one.picture or one.claims[0].measure
        draw(Path(page or "").parent / "systems" / f"{Path(one.name).stem}.svg", measure, values[one.name])


def publish(
    chosen: Sequence[System], findings: Mapping[str, list[Finding]], minutes: Mapping[str, float], page: Path | None
) -> None:
    """Print the tables, and write the page and its JSON file."""
    from posttrain import systems
    from posttrain.lab.claim import as_json, as_table
    from posttrain.lab.page import claims_page

    tables = {name: as_table(found) for name, found in findings.items()}
    for one in chosen:
        print(f"\n{one.first_line}\n\n{tables[one.name]}")
    if page:
        before, rows = page.read_text() if page.is_file() else "", page.with_suffix(".json")
        seeds = len(next(iter(findings.values()))[0].seeds)
        first_lines = {one.name: one.first_line for one in chosen}
        headlines = {one.name: (one.headline, one.claims) for one in systems.every() if one.headline}
        page.write_text(claims_page(tables, first_lines, minutes, seeds, before, headlines))
        rows.write_text(as_json(findings, json.loads(rows.read_text()) if rows.is_file() else ()) + "\n")


def stored_findings(chosen: Sequence[System], page: Path) -> tuple[dict[str, list[Finding]], dict[str, float]]:
    """The systems' claims on the values in the JSON file beside `page`, and the CPU minutes that `page` names."""
    from posttrain.lab.claim import stored_finding
    from posttrain.lab.page import minutes_of, sections_of

    rows = json.loads(page.with_suffix(".json").read_text())
    sections = sections_of(page.read_text())
    findings = {one.name: [stored_finding(claim, one.name, rows) for claim in one.claims] for one in chosen}
    return findings, {one.name: minutes_of(sections[one.name]) for one in chosen}


def list_systems(write: str | None = None) -> None:
    """The published systems and the methods in this version.

    write  also make the index tables in systems.md and papers.md of this folder again, from docstrings
    """
    from posttrain import systems
    from posttrain.cli.report import method_lines

    if write:
        from posttrain.lab.index import write_index

        write_index(Path(write), [systems.system(name) for name in systems.names()])
    print("methods")
    for name, first in method_lines():
        print(f"  {name:18} {first}")
    print("systems")
    for one in systems.every():
        print(f"  {one.name:18} {one.first_line}")
    parts = [part for one in systems.every() for part in one.part_names]
    print("parts of systems, for --with and compare\n  " + ", ".join(parts))
