"""Published systems, one module (or folder) each; they never import one another. The folder is the list of them.

A system's module holds its idea, its `recipe` and `PARTS`. `STAGES`, what `posttrain run` runs, are in the module or in
its `stages`; `ARMS`, `CLAIMS` and `SMOKE`, what `posttrain claims` runs, in the module or in its `lab`, which is
imported only for them. A system may also be a file of the user's own, or come with an installed package (entry point
`posttrain.systems`).
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from posttrain.user_code import module_of

HERE = Path(__file__).parent


@dataclass(frozen=True)
class System:
    """A system by its name, as users write it: `rl-wall`, or `./my_paper.py`."""

    name: str
    file: Path  # of its module
    load: Callable[[], ModuleType]

    def find(self, name: str, room: str) -> Any:
        """What the system calls `name`: in its module, or in the module `room` of its folder; None if it has none."""
        module = self.load()
        if not hasattr(module, name) and hasattr(module, "__path__"):
            inner = f"{module.__name__}.{room}"
            module = importlib.import_module(inner) if importlib.util.find_spec(inner) else module
        return getattr(module, name, None)

    @property
    def stages(self) -> Mapping[str, Callable[..., Any]]:
        """What can be run, by name: `laptop` first, then what `full` scale means, then the rest in their order."""
        return self.find("STAGES", "stages") or {}

    @property
    def parts(self) -> Mapping[str, Any]:
        return self.find("PARTS", "parts") or {}

    @property
    def arms(self) -> Mapping[str, Any]:
        return self.find("ARMS", "lab") or {}

    @property
    def claims(self) -> tuple[Any, ...]:
        return self.find("CLAIMS", "lab") or ()

    @property
    def headline(self) -> Any:
        """The claim that its paper makes above all (`posttrain.lab.headline.Headline`); None if it names none."""
        return self.find("HEADLINE", "lab")

    @property
    def smoke(self) -> Any:
        """How the system is tried in seconds (`posttrain.lab.trial.Smoke`); None if it does not say."""
        return self.find("SMOKE", "lab")

    @property
    def scorer(self) -> Any:
        """Its model that scores for others (`posttrain.serve.scorer.Kind`), which `posttrain serve` can serve."""
        return self.find("SCORER", "serving")

    @property
    def picture(self) -> str | None:
        """The measure of its picture, if it names one."""
        return self.find("PICTURE", "lab")

    @property
    def first_line(self) -> str:
        """The first line of its docstring, read without importing it."""
        return (ast.get_docstring(self.tree) or "").partition("\n")[0]

    @property
    def part_names(self) -> list[str]:
        """`system.part` of every part, read without importing the system."""
        found: list[str] = []
        for node in self.tree.body:
            if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == "PARTS":
                keys = getattr(node.value, "keys", [])
                found += [f"{self.name.replace('-', '_')}.{key.value}" for key in keys if isinstance(key, ast.Constant)]
        return found

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.file.read_text())


def names() -> list[str]:
    """The systems that come with posttrain, as modules are named."""
    return sorted(module.name for module in pkgutil.iter_modules([str(HERE)]))


def installed() -> dict[str, EntryPoint]:
    """The systems of other packages, by name."""
    return {entry.name.replace("_", "-"): entry for entry in entry_points(group="posttrain.systems")}


def system(name: str, argument: str = "system") -> System:
    """The system of a name: one of ours, one of an installed package, or a file of the user's own.

    Raises ValueError that suggests the nearest name.
    """
    if name.endswith(".py"):
        path = Path(name)
        if not path.is_file():
            raise ValueError(f"`{argument}={name}`: there is no such file")
        return System(name, path, lambda: module_of(path, f"`{argument}={name}`"))
    own, dashed = name.replace("-", "_"), name.replace("_", "-")
    if own in names():
        file = HERE / f"{own}.py"
        file = file if file.is_file() else HERE / own / "__init__.py"
        return System(dashed, file, lambda: importlib.import_module(f"posttrain.systems.{own}"))
    if dashed in installed():
        entry = installed()[dashed]
        spec = importlib.util.find_spec(entry.module)
        if spec is None or spec.origin is None:
            raise ValueError(f"`{argument}={name}`: its package names the module {entry.module}, which is not there")
        return System(dashed, Path(spec.origin), lambda: importlib.import_module(entry.module))
    known = [*(one.replace("_", "-") for one in names()), *installed()]
    near = difflib.get_close_matches(dashed, known, n=1)
    hint = f", did you mean {near[0]}?" if near else ""
    raise ValueError(
        f"`{argument}={name}`: unknown{hint}; the systems are {', '.join(known)}, or a file of your own: ./my_paper.py"
    )


def every() -> list[System]:
    """All systems that are here, those of installed packages too."""
    return [system(name) for name in [*names(), *installed()]]
