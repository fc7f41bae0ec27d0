"""The commands about published systems: what there is, and whether their claims hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import tyro


def claims(
    names: Annotated[tuple[str, ...], tyro.conf.Positional] = (),
    seeds: int = 5,
    quick: bool = False,
    workers: int = 0,
    out: str = "runs/claims",
    write: str | None = None,
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
    """
    from posttrain import systems
    from posttrain.cli.options import at_least
    from posttrain.lab.arms import run_all
    from posttrain.lab.claim import as_json, as_table
    from posttrain.lab.page import claims_page
    from posttrain.lab.picture import draw

    at_least(1, seeds=seeds)
    chosen = [systems.system(name, "names") for name in names] or systems.every()
    numbers = range(1 if quick else seeds)
    values = run_all(chosen, numbers, Path(out), quick=quick, workers=workers)
    findings = {one.name: [claim.judged(values[one.name], numbers) for claim in one.claims] for one in chosen}
    tables = {name: as_table(found) for name, found in findings.items()}
    for one in chosen:
        print(f"\n{one.first_line}\n\n{tables[one.name]}")
    if write:
        path = Path(write)
        page, rows = path.read_text() if path.is_file() else "", path.with_suffix(".json")
        first_lines = {one.name: one.first_line for one in chosen}
        path.write_text(claims_page(tables, first_lines, values, len(numbers), page))
        rows.write_text(as_json(findings, json.loads(rows.read_text()) if rows.is_file() else ()) + "\n")
        for one in chosen:
            measure = one.picture or one.claims[0].measure
            draw(path.parent / "systems" / f"{Path(one.name).stem}.svg", measure, values[one.name])


def list_systems() -> None:
    """The published systems and the methods in this version."""
    from posttrain import systems
    from posttrain.cli.report import method_lines

    print("methods")
    for name, first in method_lines():
        print(f"  {name:18} {first}")
    print("systems")
    for one in systems.every():
        print(f"  {one.name:18} {one.first_line}")
    parts = [part for one in systems.every() for part in one.part_names]
    print("parts of systems, for --with and compare\n  " + ", ".join(parts))
