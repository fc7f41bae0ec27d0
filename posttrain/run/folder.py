"""Folders of work that is not a training run: chains of a teacher, theorems under construction, an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain import ranks
from posttrain.run.directory import MAY_CHANGE, flat_settings, json_value, read_json, write_json


def prepare_folder(
    folder: Path,
    kind: str,
    files: Sequence[str],
    settings: Mapping[str, Any],
    *,
    resume: bool = False,
    overwrite: bool = False,
) -> None:
    """Create, resume or reset a folder; `KIND.json` holds the settings. With several ranks the first one does it.

    kind     names the work, in one word
    files    that the work writes; `overwrite` deletes them
    Raises ValueError for a folder that holds other work or anything else, and for a resume with other settings.
    """
    ranks.run_on_primary(lambda: prepare(folder, kind, files, settings, resume, overwrite), f"for the folder {folder}")


def prepare(
    folder: Path, kind: str, files: Sequence[str], settings: Mapping[str, Any], resume: bool, overwrite: bool
) -> None:
    about, now = folder / f"{kind}.json", json_value(settings)
    if not about.is_file():
        if folder.is_dir() and any(folder.iterdir()):
            raise ValueError(f"{folder} is not empty and holds no {kind}.json: give another `out`")
    elif resume:
        before = flat_settings(read_json(about))
        same = {name: value for name, value in flat_settings(now).items() if name.rpartition(".")[2] not in MAY_CHANGE}
        changed = [name for name, value in same.items() if before.get(name) != value]
        if changed:
            raise ValueError(
                f"{folder} was started with {changed[0]} = {before.get(changed[0])!r}, not {same[changed[0]]!r}: "
                "resume with the same settings, or give another `out`"
            )
    elif overwrite:
        for name in files:
            (folder / name).unlink(missing_ok=True)
    else:
        raise ValueError(
            f"{folder} already holds {kind}.json: continue with `resume=True`, replace it with `overwrite=True`, or "
            "give another `out`"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(about, now)
