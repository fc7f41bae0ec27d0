"""The commands by name, and how a command line becomes a call: a command's options are its function's arguments."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from posttrain.cli.bridge import Call, bind, explained, options_of, parameter_types
from posttrain.cli.compare import compare
from posttrain.cli.evaluation import evaluate
from posttrain.cli.experiments import claims, list_systems
from posttrain.cli.export import export
from posttrain.cli.grading import grade
from posttrain.cli.launch import refuse_distribution
from posttrain.cli.new import new
from posttrain.cli.options import check_choice
from posttrain.cli.serving import schedule, serve
from posttrain.cli.settings_file import with_options_of_files
from posttrain.cli.training import prefer, sft, train
from posttrain.project import is_project
from posttrain.run.settings import Run

if TYPE_CHECKING:
    from posttrain.systems import System

DESCRIPTION = """Reinforcement learning for language models.

  posttrain train --data questions.jsonl --prompt question --answer answer --grade math --model tiny --out runs/first
  posttrain show runs/first
  posttrain run entropy                a published system; `posttrain list` names them all

Every command explains itself: posttrain train --help
A project in one file: posttrain new mytask, then posttrain train mytask.py --out runs/mine
"""
RUN = """usage: posttrain run SYSTEM [--scale laptop|full] [--stage STAGE] [options]

Run a published system, or your own: posttrain run ./my_paper.py. At laptop scale, the default, it trains a tiny model
from scratch, in minutes; at full scale it trains your checkpoint on your data. Every stage explains its options:
posttrain run SYSTEM --stage STAGE --help
"""
FILES = """Options may also stand in a file, one a line (max-new: 32): --config FILE.yaml. --from RUN takes those of an
earlier run. The command line wins."""
SCALES = ("laptop", "full")


def show(path: Annotated[str, tyro.conf.Positional]) -> None:
    """Summarise a run in the terminal and write its report.html.

    path  the run directory
    """
    from posttrain.cli.report import summary, write_report

    summary(Path(path))
    print(f"report: {write_report(Path(path))}")


def doctor(model: str | None = None, template: str | None = None) -> None:
    """What is installed, what is missing for what, threads and devices; or what a model's chat template does.

    model     a Hub id or folder of a checkpoint: show which tokens a demonstration teaches it, with a system message,
              thinking and a tool call, and what its template refuses
    template  another chat template for it: chatml, plain, or a Jinja file
    """
    from posttrain.cli.doctor import examine, examine_template

    if model is not None:
        examine_template(model, template)
    elif template is not None:
        raise ValueError(f"`template={template}` is of a `model`: give one")
    else:
        examine()


def run() -> None:
    """Run a published system, at laptop scale or on your own checkpoint and data: posttrain run SYSTEM --help."""


COMMANDS: dict[str, Callable[..., Any]] = {
    "new": new,
    "train": train,
    "eval": evaluate,
    "grade": grade,
    "sft": sft,
    "prefer": prefer,
    "show": show,
    "export": export,
    "serve": serve,
    "schedule": schedule,
    "claims": claims,
    "run": run,  # its options are those of the stage that is named
    "compare": compare,
    "list": list_systems,
    "doctor": doctor,
}
ON_DATA = ("train", "eval", "sft", "prefer", "compare")  # take a project's file in the place of --data


@dataclass(frozen=True)
class Chosen:
    """The function that a command line names, and the words that are left for its options."""

    function: Callable[..., Any]
    rest: list[str]
    prog: str
    title: str = ""


def parse(words: Sequence[str]) -> Call:
    """The call that a command line asks for. Raises ValueError for an unknown command, system or stage."""
    chosen = choose(words)
    refuse_distribution(chosen.function, chosen.rest)
    note = FILES if Run in parameter_types(chosen.function).values() else ""
    return bind(chosen.function, chosen.rest, chosen.prog, chosen.title, note)


def choose(words: Sequence[str]) -> Chosen:
    if not words or words[0] in ("-h", "--help"):
        lines = [f"  {name:10} {explained(function)[0].partition(chr(10))[0]}" for name, function in COMMANDS.items()]
        print("\n".join(["usage: posttrain COMMAND [options]", "", DESCRIPTION, "commands", *lines]))
        sys.exit(0 if words else 2)
    check_choice(words[0], COMMANDS, "command")
    words = with_project(with_options_of_files(words))
    if words[0] == "run":
        return choose_stage(list(words[1:]))
    return Chosen(COMMANDS[words[0]], list(words[1:]), f"posttrain {words[0]}")


def with_project(words: list[str]) -> list[str]:
    """A project's file behind the command, as the data that it is: `train mytask.py` is `train --data mytask.py`."""
    if words[0] in ON_DATA and len(words) > 1 and is_project(words[1]):
        return [words[0], *words[2:], "--data", words[1]]
    return words


def choose_stage(words: list[str]) -> Chosen:
    """`NAME [--scale laptop|full] [--stage STAGE]` anywhere among the words."""
    from posttrain import systems

    if not words or words[0] in ("-h", "--help"):
        lines = [f"  {one.name:18} {one.first_line}" for one in systems.every()]
        print("\n".join([RUN, "systems", *lines]))
        sys.exit(0 if words else 2)
    found, rest = systems.system(words[0]), words[1:]
    scale = check_choice(take_flag(rest, "--scale") or "laptop", SCALES, "scale")
    name = take_flag(rest, "--stage")
    if not found.stages:
        raise ValueError(f"{found.file} has no STAGES, so there is nothing to run (docs/your-paper.md)")
    stage = stage_of(found, scale, name)
    return Chosen(found.stages[stage], rest, f"posttrain run {words[0]} --stage {stage}", title_of(found, stage))


def take_flag(words: list[str], flag: str) -> str | None:
    """The value of a flag, which is taken out of the words; None if it is not among them."""
    for i, word in enumerate(words):
        name, sign, value = word.partition("=")
        if name == flag:
            value = value if sign else (words[i + 1] if i + 1 < len(words) else "")
            del words[i : i + (1 if sign else 2)]
            return value
    return None


def stage_of(found: System, scale: str, stage: str | None) -> str:
    """The first stage is the laptop experiment, the second is what full scale means unless a stage is named.

    Raises ValueError for one that the system does not have.
    """
    stages = list(found.stages)
    if stage is not None:
        return check_choice(stage, stages, "stage")
    if scale == "full" and len(stages) < 2:
        raise ValueError(f"`scale=full`: {found.name} has the stage {stages[0]} alone")
    return stages[1 if scale == "full" else 0]


def title_of(found: System, stage: str) -> str:
    lines = [f"  {name:12} {explained(one)[0].partition(chr(10))[0]}" for name, one in found.stages.items()]
    return "\n".join([found.first_line, "", "Stages:", *lines, "", f"Stage {stage}."])


def given_options(words: Sequence[str]) -> dict[str, Any]:
    """The options of a command line by their arguments' names, as far as it can be read: for messages about them."""
    try:
        chosen = choose([word for word in words if word not in ("-h", "--help")] or ["list"])
    except ValueError:
        return dict.fromkeys(("scale", "stage"))
    found, name = {**options_of(chosen.function), **dict.fromkeys(("scale", "stage", "command"))}, ""
    for word in chosen.rest:
        if word.startswith("--"):
            name, sign, value = word[2:].partition("=")
            name = "with_" if name == "with" else name.replace("-", "_")
            found[name] = (value,) if sign else ()
        elif name:
            found[name] = (*(found.get(name) or ()), word)
    return found
