"""The files of a run: prepared before any work, appended line by line, readable while it goes on."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

from posttrain import ranks
from posttrain.core import Metrics, Policy
from posttrain.run.settings import Output, Run

PACKAGES = ("torch", "transformers", "peft", "diffusers", "numpy", "math-verify", "posttrain")
# What a resumed run may have otherwise: it does not change what is learned.
MAY_CHANGE = {
    *("resume", "overwrite", "steps", "save_every", "keep", "track", "quiet", "dry_run", "out", "micro_tokens"),
    *("eval_every", "eval_temperature", "grace_s", "device", "threads", "reward_timeout", "command", "patience"),
    *("sampler", "sampler_options", "sampler_folder", "cluster", "learners", "samplers", "at_once", "gpus"),
}
LOCK = ".lock"
LEAST_FREE = 64 * 2**20  # bytes
MOST_SETTINGS = 64  # entries of a container in a closure; more is data


class Directory:
    """A run's directory: what is in it, and whether this run may write there."""

    def __init__(self, path: Path):
        self.path = path
        self.checkpoints, self.rollouts, self.model = path / "checkpoints", path / "rollouts", path / "model"
        self.best, self.about_best = path / "best", path / "best.json"
        self.metrics, self.about, self.report = path / "metrics.jsonl", path / "run.json", path / "report.html"

    def check(self, run: Run | Output) -> None:
        """Raises ValueError when another run is in it, or there is none to resume."""
        held = self.about.is_file()
        if held and not (run.resume or run.overwrite):
            raise ValueError(
                f"{self.path} already holds a run, started {read_json(self.about).get('started')}: continue it "
                "with `resume=True`, replace it with `overwrite=True`, or give another `out`"
            )
        if not held and self.path.is_dir() and not self.is_begun():
            if run.resume:
                raise ValueError(f"`resume=True`: {self.path} holds no run.json, so there is no run to continue")
            raise ValueError(f"{self.path} is not empty and holds no run: give another `out`")

    def is_begun(self) -> bool:
        """Whether all that a folder without run.json holds is what a run that was stopped at its very start leaves."""
        left = {self.checkpoints.name, self.rollouts.name, LOCK, self.about.with_suffix(".writing").name}
        entries = [*self.path.iterdir()]
        return all(one.name in left and not (one.is_dir() and any(one.iterdir())) for one in entries)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """While this process works in the directory.

        Raises ValueError naming the process that does so already, OSError when there can be no directory.
        """
        from filelock import FileLock, Timeout

        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(f"{self.path} cannot be written: {error}; give another `out`") from error
        lock, about = FileLock(self.path / LOCK, blocking=False), self.path / LOCK
        try:
            lock.acquire()
        except Timeout:
            raise ValueError(
                f"{self.path} is worked in by {about.read_text().strip() or 'another process'}: wait for it, or give "
                "another `out`"
            ) from None
        try:
            about.write_text(f"process {os.getpid()} on {platform.node()}\n")
            yield
        finally:
            lock.release()

    def prepare(self, settings: Mapping[str, Any], run: Run | Output) -> None:
        """Make the directory and write run.json.

        Raises ValueError when another run is in it, or the resumed one had other settings; OSError when it cannot be
        written or the disk is full.
        """
        described = json_value(settings)
        self.check(run)
        if self.about.is_file():
            if run.resume:
                self.check_same_settings(described)
            else:
                self.clear()
        try:
            self.rollouts.mkdir(parents=True, exist_ok=True)
            self.checkpoints.mkdir(exist_ok=True)
            free = shutil.disk_usage(self.path).free
            if free < LEAST_FREE:
                raise OSError(f"only {free // 2**20} MiB are free")
            write_json(self.about, {**described, **self.origin()})
        except OSError as error:
            raise OSError(f"{self.path} cannot be written: {error}; give another `out`") from error

    def origin(self) -> dict[str, Any]:
        """Where and when the run was started; of a resumed one, also when it was taken up again."""
        now = provenance()
        if not self.about.is_file():
            return now
        before = read_json(self.about)
        first = {key: before[key] for key in now if key in before}
        again = {key: now[key] for key in ("started", "command", "versions", "git")}
        return {**first, "resumed": [*before.get("resumed", []), again]}

    def clear(self) -> None:
        """Delete what a run wrote, and nothing else."""
        for folder in (self.checkpoints, self.rollouts, self.model, self.best):
            shutil.rmtree(folder, ignore_errors=True)
        for file in (self.metrics, self.about, self.report, self.about_best):
            file.unlink(missing_ok=True)

    def check_same_settings(self, described: dict[str, Any]) -> None:
        """Raises ValueError naming the first setting in which a resumed run differs from the one that was started."""
        before, now = flat_settings(read_json(self.about)), flat_settings(described)
        for name, value in now.items():
            if name.startswith("run.") and name.rpartition(".")[2] in MAY_CHANGE:
                continue
            if before.get(name) != value:
                raise ValueError(
                    f"{self.path} was started with {name.rpartition('.')[2]} = {before.get(name)!r}, not {value!r}: "
                    "resume with the same settings, or give another `out`"
                )

    # ---- metrics

    def truncate(self, step: int) -> list[Metrics]:
        """Keep the metrics of the first `step` steps, drop what a killed run wrote beyond its checkpoint."""
        lines = [line for line in read_metrics(self.path) if line["step"] < step]
        if lost := sorted({*range(step)} - {line["step"] for line in lines}):
            kept = self.metrics.with_name("metrics-damaged.jsonl")
            if self.metrics.is_file():
                shutil.copyfile(self.metrics, kept)
            print(
                f"warning: {self.metrics} has no readable line of {len(lost)} of {step} steps, the first of them "
                f"{lost[0]}; the file as it was is {kept}",
                file=sys.stderr,
            )
        scratch = self.metrics.with_suffix(".writing")
        scratch.write_text("".join(json.dumps(line) + "\n" for line in lines))
        os.replace(scratch, self.metrics)
        return lines

    def append_metrics(self, line: Metrics) -> None:
        with self.metrics.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def export(self, policy: Policy, folder: Path | None = None) -> None:
        """Write `model/`, or another folder, in the format that others load; all ranks take part."""
        scratch = self.path / ".writing-model"
        ranks.run_on_primary(lambda: reset_folder(scratch), "for the model's folder")
        policy.save(scratch)
        ranks.run_on_primary(lambda: replace_folder(scratch, folder or self.model), "for the model")


def reset_folder(folder: Path) -> None:
    """An empty folder, whatever was there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def replace_folder(scratch: Path, final: Path) -> None:
    """Put a folder in the place of another."""
    shutil.rmtree(final, ignore_errors=True)
    os.replace(scratch, final)
    handle = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(handle)  # the rename itself
    finally:
        os.close(handle)


def read_metrics(path: str | Path) -> list[Metrics]:
    """One dictionary per step. A last line that a kill cut short is left out, as is one that is damaged."""
    file = Path(path) / "metrics.jsonl"
    found = []
    for text in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else ():
        with suppress(json.JSONDecodeError):
            found.append(json.loads(text))
    return [line for line in found if isinstance(line, dict) and "step" in line]


def json_value(thing: Any) -> Any:
    """Anything as JSON: dataclasses by their fields, functions by their names and settings, the rest by `repr`."""
    if thing is None or isinstance(thing, bool | int | float | str):
        return thing
    if isinstance(thing, Path):
        return str(thing)
    if isinstance(thing, bytes):
        return f"{len(thing)} bytes"
    if hasattr(thing, "shape"):
        return f"{type(thing).__name__} of {list(thing.shape)}"
    if hasattr(thing, "density"):
        return type(thing).__name__
    if is_dataclass(thing) and not isinstance(thing, type):
        return {f.name: json_value(getattr(thing, f.name)) for f in fields(thing)}
    if isinstance(thing, Mapping):
        return {str(key): json_value(value) for key, value in thing.items()}
    if isinstance(thing, list | tuple | set | frozenset):
        return [json_value(value) for value in thing]
    if callable(thing):
        return function_name(thing)
    text = repr(thing)
    return text if " at 0x" not in text else type(thing).__name__


def function_name(function: Any) -> Any:
    """A function as `module.name`, with the settings that its closure holds; an object by its class and numbers."""
    if not isinstance(function, FunctionType | type):
        kept = {
            key: value
            for key, value in getattr(function, "__dict__", {}).items()
            if isinstance(value, bool | int | float | str)
        }
        return {f"{type(function).__module__}.{type(function).__qualname__}": kept}
    name = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', type(function).__name__)}"
    code, cells = getattr(function, "__code__", None), getattr(function, "__closure__", None)
    if not code or not cells:
        return name.replace(".<locals>", "")
    held = {
        key: closure_setting(cell.cell_contents, function) for key, cell in zip(code.co_freevars, cells, strict=True)
    }
    return {name.replace(".<locals>", ""): held}


def closure_setting(value: Any, holder: Any) -> Any:
    """What a closure holds, as a setting: data in it only by its size, the function itself by its name."""
    if value is holder:
        return getattr(holder, "__qualname__", "itself")
    if isinstance(value, list | tuple | set | Mapping) and len(value) > MOST_SETTINGS:
        return f"{type(value).__name__} of {len(value)}"
    return json_value(value)


def flat_settings(tree: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(tree, Mapping):
        return {path: tree}
    out: dict[str, Any] = {}
    for key, value in tree.items():
        out |= flat_settings(value, f"{path}.{key}" if path else str(key))
    return out


def provenance() -> dict[str, Any]:
    """What else a result may depend on: versions, revision, machine, command."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": sys.argv,
        "versions": versions,
        "python": platform.python_version(),
        "machine": platform.platform(),
        "git": git_revision(),
    }


def git_revision() -> str | None:
    """The revision of the folder the run was started in, with `+changes` if files differ from it."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty=+changes", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def file_hash(path: str | Path) -> str:
    """SHA-256 of a data file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Whole or not at all: the file is written beside, then renamed."""
    scratch = path.with_suffix(".writing")
    scratch.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(scratch, path)


def read_json(path: Path) -> dict[str, Any]:
    """Raises ValueError naming the file when it is not JSON."""
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not readable JSON: {error}") from error
