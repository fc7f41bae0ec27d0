"""`posttrain export`: any checkpoint of a run as a model that others load, with a card that says where it is from."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

if TYPE_CHECKING:
    from posttrain.core import Metrics

SHOWN = ("reward", "held_out/", "loss", "accuracy", "entropy", "length")  # measures of the card, by how they begin


def export(
    path: Annotated[str, tyro.conf.Positional],
    out: str,
    step: int | None = None,
    model: str | None = None,
) -> None:
    """Write a checkpoint of a run as a Hugging Face model, with a model card.

    path   the run directory
    out    folder of the model; it must be empty
    step   of the checkpoint (a folder in RUN/checkpoints); the newest if not given
    model  that the run was started with, where the run was started from Python and run.json does not say
    """
    from posttrain.cli.options import ModelOptions
    from posttrain.run.checkpoint import Checkpoints, load_weights
    from posttrain.run.directory import Directory, read_json

    run, folder = Directory(Path(path)), Path(out)
    if not run.about.is_file():
        raise ValueError(f"`path={path}`: it holds no run.json, so it is no run")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"`out={out}`: it is not empty")
    about = read_json(run.about)
    if about.get("kind") not in ("train", "sft", "prefer"):
        raise ValueError(f"`path={path}`: a run of kind {about.get('kind')} trains no language model")
    there = {int(one.name): one for one in Checkpoints(run.checkpoints, 1).complete()}
    if not there or (step is not None and step not in there):
        raise ValueError(f"`step={step}`: the checkpoints are of steps {', '.join(map(str, there)) or 'none'}")
    options = about["run"]["settings"]
    known = {one.name: options[one.name] for one in fields(ModelOptions) if one.name in options}
    if model is not None:
        known["model"] = model
    if "model" not in known:
        raise ValueError(f"`path={path}`: its run.json does not say which model was trained; give `model`")
    policy = ModelOptions(**{**known, "device": "cpu"}).policy()
    done = load_weights(there[max(there) if step is None else step], policy)
    policy.save(folder)
    (folder / "README.md").write_text(card(about, run.path, known["model"], done), encoding="utf-8")
    print(f"{folder}: the model after step {done}, with its card README.md", file=sys.stderr)


def card(about: Mapping[str, Any], path: Path, model: str, step: int) -> str:
    """A model card: what was trained on what, by which command, and what was measured."""
    from posttrain.run.directory import read_metrics

    options, versions = about["run"]["settings"], about.get("versions", {})
    data = options.get("data")
    head = ["---", "library_name: transformers", "tags: [posttrain]", f"base_model: {model}", "---", ""]
    lines = [*head, f"# {path.name}", "", f"{model} after step {step} of a `{about['kind']}` run of posttrain."]
    if data:
        lines += ["", f"Data: `{data}`, SHA-256 `{options.get('data_sha256', 'unknown')}`."]
    if words := about["run"].get("command"):
        lines += ["", "```sh", "posttrain " + " ".join(map(str, words)), "```"]
    lines += ["", *table([line for line in read_metrics(path) if line["step"] < max(step, 1)])]
    lines += ["", "Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()) + "."]
    lines += ["", "Not measured: anything that the table does not name, safety and other languages among it."]
    return "\n".join(lines) + "\n"


def table(history: list[Metrics]) -> list[str]:
    """Rows of a Markdown table: each measure at its first and its last step."""
    rows = ["| measure | first | last | at step |", "|---|---|---|---|"]
    for name in dict.fromkeys(name for line in history for name in line if name.startswith(SHOWN)):
        found = [(line["step"], line[name]) for line in history if name in line]
        rows.append(f"| {name} | {found[0][1]:.4g} | {found[-1][1]:.4g} | {found[-1][0]:g} |")
    return rows
