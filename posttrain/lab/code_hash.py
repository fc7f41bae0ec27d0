"""A hash of the code that a system's arms run: kept values are used for as long as it stays the same.

It follows names from `ARMS` through the system's own modules and the worlds that they import. Code that no arm reaches
(`CLAIMS`, `PARTS`, stages, options) does not count, nor does anything that cannot change results: imports, annotations,
docstrings, comments, the order of definitions and the files that hold them. The rest of the library does not count
either, nor do files other than Python's.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from pathlib import Path
from typing import TypeAlias

SOURCE = Path(__file__).parent.parent.parent  # the folder that holds the package `posttrain`
ROOT = "ARMS"
Reference: TypeAlias = tuple[str, str | None]  # a module and a name in it; None: everything in it
FUNCTIONS_AND_CLASSES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def code_hash(file: Path) -> str:
    """16 hex digits; `file` is the module of the system, or the `__init__.py` of its folder."""
    place = file.absolute().parent if file.name == "__init__.py" else file.absolute().with_suffix("")
    source = SOURCE if place.is_relative_to(SOURCE / "posttrain") else place.parent
    return hash_of(".".join(place.relative_to(source).parts), source)


def hash_of(system: str, source: Path) -> str:
    """`source` is the folder from which the module `system` is imported."""
    return hashlib.sha256("\n".join(sorted(reached_code(system, source))).encode()).hexdigest()[:16]


def reached_code(system: str, source: Path = SOURCE) -> list[str]:
    """Every top-level statement that the system's `ARMS` reach, stripped by `Bare`."""
    library = Library(source, system)
    waiting: list[Reference] = [(name, ROOT) for name in library.own_modules()]
    seen: set[Reference] = set()
    code: dict[int, str] = {}
    while waiting:
        reference = waiting.pop()
        if reference in seen:
            continue
        seen.add(reference)
        module, name = library.module(reference[0]), reference[1]
        for part in module.parts(name):
            code[id(part)] = ast.unparse(part)
            waiting += module.references(part)
        if name in module.imports:
            waiting.append(module.imports[name])
    return list(code.values())


class Library:
    """The modules that count: those of one system, and those in a package `world`."""

    def __init__(self, source: Path, system: str):
        self.source, self.system = source, system
        self.modules: dict[str, Module] = {}

    def own_modules(self) -> list[str]:
        folder = self.source.joinpath(*self.system.split("."))
        files = folder.rglob("*.py") if folder.is_dir() else [folder.with_suffix(".py")]
        names = [".".join(path.relative_to(self.source).with_suffix("").parts) for path in files]
        return [name.removesuffix(".__init__") for name in names]

    def counts(self, name: str) -> bool:
        own = name == self.system or name.startswith(f"{self.system}.")
        return (own or "world" in name.split(".")[:-1]) and self.path(name).is_file()

    def path(self, name: str) -> Path:
        home = self.source if name.partition(".")[0] != "posttrain" or (self.source / "posttrain").is_dir() else SOURCE
        path = home.joinpath(*name.split("."))
        return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")

    def module(self, name: str) -> Module:
        if name not in self.modules:
            self.modules[name] = Module(self, name, self.path(name))
        return self.modules[name]


class Module:
    """One file: its imports from modules that count, and its top-level statements by the names that they bind."""

    def __init__(self, library: Library, name: str, path: Path):
        tree = ast.parse(path.read_text())
        self.name = name
        self.package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        self.imports = self.imported_names(tree, library)
        self.body: list[ast.stmt] = Bare().visit(tree).body
        self.binding: dict[str, list[ast.stmt]] = {}
        self.unbound: list[ast.stmt] = []
        for part in self.body:
            names = bound_names(part)
            for bound in names:
                self.binding.setdefault(bound, []).append(part)
            self.unbound += [] if names else [part]

    def imported_names(self, tree: ast.Module, library: Library) -> dict[str | None, Reference]:
        """Local name -> origin of every import from a module that counts, at the top or inside a function."""
        found: dict[str | None, Reference] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found |= {a.asname: (a.name, None) for a in node.names if a.asname and library.counts(a.name)}
            if not isinstance(node, ast.ImportFrom):
                continue
            origin = importlib.util.resolve_name("." * node.level + (node.module or ""), self.package)
            for alias in node.names:
                if library.counts(f"{origin}.{alias.name}"):
                    found[alias.asname or alias.name] = (f"{origin}.{alias.name}", None)
                elif library.counts(origin):
                    found[alias.asname or alias.name] = (origin, alias.name)
        return found

    def parts(self, name: str | None) -> list[ast.stmt]:
        """The statements that bind `name`, with those that bind nothing and just run; all statements if None."""
        if name is None:
            return self.body
        return self.binding[name] + self.unbound if name in self.binding else []

    def references(self, part: ast.stmt) -> list[Reference]:
        """What the statement's names may refer to; of `module.name` that one name, not the whole module."""
        found: list[Reference] = []
        modules: set[ast.AST] = set()
        for node in ast.walk(part):  # an attribute comes before the name that it is an attribute of
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                origin = self.imports.get(node.value.id)
                if origin and origin[1] is None:
                    modules.add(node.value)
                    found.append((origin[0], node.attr))
            elif isinstance(node, ast.Name) and node not in modules:
                found.append((self.name, node.id))
        return found


def bound_names(part: ast.stmt) -> set[str]:
    if isinstance(part, FUNCTIONS_AND_CLASSES):
        return {part.name}
    nodes = list(ast.walk(part))
    names = {node.name for node in nodes if isinstance(node, FUNCTIONS_AND_CLASSES)}
    return names | {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


class Bare(ast.NodeTransformer):
    """Removes imports, docstrings and annotations, but keeps the names of a class's fields: they are its arguments."""

    def visit_Import(self, node: ast.Import) -> None:
        return None

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        return None

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        return None if isinstance(node.value, ast.Constant) else self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.AST | None:
        self.generic_visit(node)
        return node if node.body or node.orelse else None  # imports for types alone

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        for field in node.body:
            if isinstance(field, ast.AnnAssign):
                field.annotation = ast.Constant(None)
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        self.generic_visit(node)
        if isinstance(node.annotation, ast.Constant) and node.annotation.value is None:
            return node  # a field
        if node.value is None:
            return None
        return ast.copy_location(ast.Assign([node.target], node.value), node)
