"""Published systems, one module (or folder) each; they never import one another. The folder is the list of them."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parent


def names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules([str(HERE)]))


def load(name: str) -> ModuleType:
    return importlib.import_module(f"posttrain.systems.{name}")


def first_line(name: str) -> str:
    """The first line of a system's docstring, read without importing it."""
    path = HERE / f"{name}.py"
    source = path if path.is_file() else HERE / name / "__init__.py"
    return (ast.get_docstring(ast.parse(source.read_text())) or "").partition("\n")[0]


def method_lines() -> Iterator[tuple[str, str]]:
    """Named methods with the first line of their docstrings, read without importing torch."""
    tree = ast.parse((HERE.parent / "method.py").read_text())
    for node in tree.body:
        doc = ast.get_docstring(node) if isinstance(node, ast.FunctionDef) else None
        if doc and isinstance(node, ast.FunctionDef) and node.name not in ("needing", "with_kl"):
            yield node.name, doc.partition("\n")[0]
