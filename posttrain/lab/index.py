"""The index tables of docs/systems.md and docs/papers.md, made from docstrings by `posttrain list --write docs`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from posttrain.systems import HERE, System

PACKAGE = HERE.parent
CITATION = re.compile(r"arXiv:(?P<paper>\d{4}\.\d{5})(?:, (?P<place>(?:Eq|Sec|Fig|App|Theorem)[^);:]*))?")
SENTENCE = re.compile(r"(?<=\.)(?<!Dr\.) (?=[A-Z`\[(])")
START, END = "<!-- made by `posttrain list --write docs` -->", "<!-- end -->"
Definition = ast.Module | ast.FunctionDef | ast.ClassDef


@dataclass(frozen=True, slots=True, order=True)
class Citation:
    """Where the code names a paper."""

    paper: str  # 2402.03300
    file: str  # from the folder that holds the package: posttrain/loss.py
    name: str  # of the function or class; empty for a whole module
    place: str  # in the paper; empty if the docstring names none
    said: str  # the docstring's sentence


def citations(package: Path = PACKAGE) -> list[Citation]:
    """Every paper that a docstring of the package names, in the order of the papers."""
    found = {one for path in package.rglob("*.py") for one in citations_in(path, package.parent)}
    return sorted(found)


def citations_in(path: Path, root: Path) -> Iterator[Citation]:
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, Definition):
            name = "" if isinstance(node, ast.Module) else node.name
            for said in SENTENCE.split(" ".join((ast.get_docstring(node) or "").split())):
                for match in CITATION.finditer(said):
                    place = (match["place"] or "").rstrip(".")
                    yield Citation(match["paper"], str(path.relative_to(root)), name, place, said)


def systems_table(chosen: Sequence[System]) -> str:
    """A line for each system: its page, what it is, and its parts."""
    lines = ["| system | what it is | parts |", "|---|---|---|"]
    for one in chosen:
        parts = ", ".join(f"`{part.partition('.')[2]}`" for part in one.part_names)
        lines.append(f"| [{one.name}](systems/{one.name}.md) | {one.first_line.rstrip('.')} | {parts} |")
    return "\n".join(lines)


def papers_table(found: Sequence[Citation]) -> str:
    """A line for each citation: the paper once, the place in it, the code, and what the docstring says."""
    lines, last = ["| paper | place | code | what it says |", "|---|---|---|---|"], ""
    for one in found:
        paper = "" if one.paper == last else f"[{one.paper}](https://arxiv.org/abs/{one.paper})"
        code = f"`{one.name}` in [{one.file}](../{one.file})" if one.name else f"[{one.file}](../{one.file})"
        said = one.said.replace("|", "\\|")
        lines.append(f"| {paper} | {one.place} | {code} | {said} |")
        last = one.paper
    return "\n".join(lines)


def with_table(page: str, table: str) -> str:
    """The page with this table between its two marks. Raises ValueError when they are missing."""
    before, start, rest = page.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError(f"the page has no place for a table: a line {START}, and below it {END}")
    return f"{before}{START}\n\n{table}\n\n{END}{after}"


def write_index(docs: Path, chosen: Sequence[System]) -> None:
    """Write both tables again. Raises ValueError when a page has no place for one."""
    for name, table in (("systems.md", systems_table(chosen)), ("papers.md", papers_table(citations()))):
        page = docs / name
        page.write_text(with_table(page.read_text(), table))
