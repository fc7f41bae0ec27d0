"""Problems: a folder with a script that prints a metric, and a task.json that says what is wanted of it.

    {"description": "Predict the price of a house.", "script": "train.py", "metric": "MAE: ([0-9.]+)",
     "higher": false, "best": 18000, "packages": ["sklearn", "pandas"], "limits": {"wall_s": 600}}

A policy that writes scripts can print any number that it likes. With `scorer` the metric is not read from the script's
output: the script leaves a file, `predictions`, and the scorer is executed afterwards, apart from it, beside that file
and the `hidden` ones, which no script of the policy's ever sees.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from posttrain.sandbox import Limits

TASK = "task.json"
METRIC = r"metric: (\S+)"
MOST_METRIC = 1e100  # beyond it differences and gains are not finite
USUAL = Limits(wall_s=300.0, memory_mib=8192, output_kib=1024, file_mib=256)


@dataclass(frozen=True)
class Problem:
    """What an agent is to improve. `files` are those that its scripts see, by relative path."""

    name: str
    description: str
    best: float  # the best metric that is known, such as people's
    files: Mapping[str, str | bytes] = field(repr=False)
    script: str = "train.py"  # the one whose metric counts
    metric: str = METRIC  # a pattern whose first group is the number; its last match in what is printed counts
    higher: bool = True  # whether a higher metric is a better one
    initial: float | None = None  # the metric of the script as it is; None: executed to be known
    scale: float = 1.0  # a difference of the metric that matters, for a problem whose script is the best known
    packages: tuple[str, ...] = ()  # that scripts may import besides the standard library
    read_only: tuple[str, ...] = ()  # scripts that may not be edited
    limits: Limits = USUAL  # of one execution
    predictions: str = ""  # the file that a scorer judges
    scorer: str = ""  # a script that prints the metric of the predictions
    hidden: Mapping[str, str | bytes] = field(default_factory=dict, repr=False)  # what it needs for that

    def __post_init__(self) -> None:
        if self.script not in self.files:
            raise ValueError(f"there is no script {self.script!r} among {sorted(self.files)}")
        for name, held in ((self.script, self.files[self.script]), (self.scorer, self.hidden.get(self.scorer, ""))):
            if isinstance(held, bytes):
                raise ValueError(f"the script {name!r} is no text")
        if bool(self.scorer) != bool(self.predictions):
            raise ValueError("a scorer needs the name of the file of predictions, and predictions a scorer")
        check_pattern(self.metric)
        for name, value in (("best", self.best), ("initial", self.initial or 0.0), ("scale", self.scale)):
            if not abs(value) <= MOST_METRIC:
                raise ValueError(f"{name}={value}: no metric is that large")
        if not self.scale > 0:
            raise ValueError(f"scale={self.scale}: it must be above 0")
        if self.initial is not None and self.sign * (self.best - self.initial) < 0:
            raise ValueError(f"the best metric {self.best} is worse than the initial one {self.initial}")

    @property
    def sign(self) -> int:
        """1 where a higher metric is better, else -1."""
        return 1 if self.higher else -1

    @property
    def start(self) -> float:
        """The initial metric. Raises ValueError before it is known."""
        if self.initial is None:
            raise ValueError(f"{self.name}: the script has not been executed yet")
        return self.initial

    def metric_in(self, text: str) -> float | None:
        """The last number that the pattern finds; None if there is none, or none that gains can be made of."""
        found = [match[1] for match in re.finditer(self.metric, text)]
        try:
            value = float(found[-1]) if found else math.nan
        except (TypeError, ValueError):
            return None
        return value if abs(value) <= MOST_METRIC else None

    def gain(self, metric: float) -> float:
        """Relative gain over the initial script: beta (m - m_init) / |m_init|, beta = 1 or -1 by the direction.

        In units of `scale` where the initial metric is 0.
        """
        return self.sign * (metric - self.start) / (abs(self.start) or self.scale)

    def metric_of(self, gain: float) -> float:
        """The metric with this relative gain."""
        return self.start + self.sign * gain * (abs(self.start) or self.scale)


def check_pattern(metric: str) -> None:
    """Raises ValueError for a pattern that finds no number."""
    try:
        groups = re.compile(metric).groups
    except re.error as error:
        raise ValueError(f"the pattern of the metric, {metric!r}: {error}") from None
    if groups < 1:
        raise ValueError(f"the pattern of the metric, {metric!r}, has no group for the number")


KINDS: Mapping[str, Any] = {
    **dict.fromkeys(("description", "script", "metric", "predictions", "scorer", "name"), str),
    **dict.fromkeys(("best", "scale", "initial"), (int, float)),
    **dict.fromkeys(("packages", "read_only", "hidden"), list),
    **{"higher": bool, "limits": dict},
}
NEEDED = {one.name for one in fields(Problem) if one.default is MISSING and one.default_factory is MISSING}


def problem_in(folder: str | Path) -> Problem:
    """Raises ValueError naming the file for what is missing, unknown or of another kind."""
    place = Path(folder) / TASK
    try:
        said = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{place}: {error}") from None
    if not isinstance(said, dict):
        raise ValueError(f"{place}: an object is wanted, not {type(said).__name__}")
    for name, value in said.items():
        if name not in KINDS:
            raise ValueError(f"{place}: {name!r} is unknown; known are {', '.join(sorted(KINDS))}")
        if not isinstance(value, KINDS[name]) or (isinstance(value, bool) and KINDS[name] is not bool):
            raise ValueError(f"{place}: {name!r} cannot be {value!r}")
    if missing := sorted(NEEDED - {"name", "files"} - set(said)):
        raise ValueError(f"{place}: {missing[0]!r} is missing")
    try:
        return problem_of(said, files_below(place.parent), place.parent.resolve().name)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{place}: {error}") from None


def problem_of(said: Mapping[str, Any], files: dict[str, str | bytes], name: str) -> Problem:
    hidden = [one for one in (said.get("scorer"), *said.get("hidden", ())) if one]
    if missing := [one for one in hidden if one not in files]:
        raise ValueError(f"there is no file {missing[0]!r} to hide")
    more = {
        **{"name": name, **said},
        "files": {path: held for path, held in files.items() if path not in hidden},
        "hidden": {path: files[path] for path in hidden},
        "limits": Limits(**{**vars_of(USUAL), **said.get("limits", {})}),
        **{key: tuple(map(str, said.get(key, ()))) for key in ("packages", "read_only")},
    }
    return Problem(**more)


def vars_of(limits: Limits) -> dict[str, Any]:
    return {one.name: getattr(limits, one.name) for one in fields(limits)}


def files_below(folder: Path) -> dict[str, str | bytes]:
    """Every file but task.json, by its relative path: text where it is UTF-8.

    Links are not followed. What begins with a dot is left out: a repository's folder holds what `hidden` hides.
    """
    found: dict[str, str | bytes] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        parts = path.relative_to(folder).parts
        if path.is_symlink() or not path.is_file() or name == TASK or any(one.startswith(".") for one in parts):
            continue
        data = path.read_bytes()
        try:
            found[name] = data.decode("utf-8")
        except UnicodeDecodeError:
            found[name] = data
    return found
