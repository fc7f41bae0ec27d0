"""Published systems, one module (or folder) each; they never import one another. The folder is the list of them."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parent


def names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules([str(HERE)]))


def load(name: str) -> ModuleType:
    return importlib.import_module(f"posttrain.systems.{name}")


def first_line(name: str) -> str:
    """The first line of a system's docstring, read without importing it."""
    return (ast.get_docstring(tree_of(name)) or "").partition("\n")[0]


def tree_of(name: str) -> ast.Module:
    path = HERE / f"{name}.py"
    return ast.parse((path if path.is_file() else HERE / name / "__init__.py").read_text())


def method_lines() -> Iterator[tuple[str, str]]:
    """Named methods with the first line of their docstrings, read without importing torch."""
    tree = ast.parse((HERE.parent / "method.py").read_text())
    for node in tree.body:
        doc = ast.get_docstring(node) if isinstance(node, ast.FunctionDef) else None
        if doc and isinstance(node, ast.FunctionDef) and node.name not in ("needing", "with_kl"):
            yield node.name, doc.partition("\n")[0]


def parts() -> list[str]:
    """`system.part` of every part, read without importing the systems."""
    found = []
    for name in names():
        for node in tree_of(name).body:
            if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == "PARTS":
                keys = getattr(node.value, "keys", [])
                found += [f"{name}.{key.value}" for key in keys if isinstance(key, ast.Constant)]
    return found


def claims_page(tables: Mapping[str, str], minutes: Mapping[str, float], seeds: int, before: str = "") -> str:
    """docs/claims.md: every system's table, with the command and the CPU minutes. Others keep what `before` says."""
    sections = sections_of(before)
    for name, table in tables.items():
        shown = name.replace("_", "-")
        page = HERE.parent.parent / "docs" / "systems" / f"{shown}.md"
        link = f" [About it](systems/{page.name})." if page.is_file() else ""
        sections[shown] = f"{first_line(name)}{link} {minutes[name]:.1f} CPU minutes.\n\n{table}"
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
    ]
    return "\n".join(lines) + "\n" + "\n".join(f"## {name}\n\n{sections[name]}\n" for name in sorted(sections))


def sections_of(page: str) -> dict[str, str]:
    """The text of every system's section of docs/claims.md."""
    known = re.findall(r"^## ([\w-]+)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    return {name: text.strip() for name, text in known}


def minutes_of(section: str) -> float:
    """The CPU minutes that a section says it cost."""
    return sum(map(float, re.findall(r" ([\d.]+) CPU minutes\.\n", section)))
