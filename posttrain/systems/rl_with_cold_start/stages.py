"""The stages on a checkpoint and data of the user's own: which options they have, and what each begins from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.cli.options import RunOptions
from posttrain.data import Demonstration
from posttrain.policy.text import TextPolicy
from posttrain.run.session import Session
from posttrain.supervised import sft

STARTED = ("distil", "sft")  # stages whose checkpoints reinforcement starts from
OF_STAGES = {  # options that only some stages have
    "teacher": ("distil",),
    "style": ("distil",),
    "candidates": ("distil",),
    "response": ("sft",),
    "tower": ("distil", "sft"),
    "cold_start": ("rl",),
    "held_out": ("rl",),
}


def check_options(stage: str, given: Mapping[str, Any], usual: Mapping[str, Any]) -> None:
    """Raises ValueError for an option, given unlike its `usual` value, that has no effect in the stage."""
    for name, stages in OF_STAGES.items():
        if stage not in stages and given[name] != usual[name]:
            option = name.replace("_", "-") if usual[name] is not True else f"no-{name.replace('_', '-')}"
            raise ValueError(
                f"--{option} has no effect in --stage {stage}, only in {' and '.join(stages)}: leave it out"
            )


def teacher_name(teacher: str | None) -> str | None:
    """As it stands in settings: of a server the model, since its address may change between a run and its resume."""
    return f"server#{teacher.partition('#')[2]}" if teacher and teacher.startswith("http") else teacher


def aligned(policy: TextPolicy, vision: bool = False) -> None:
    """Leave the vision tower as it is, unless `vision`; what maps its features to tokens is trained (as published)."""
    for name, parameter in policy.model.named_parameters():
        if not vision and "visual." in name and "merger" not in name:
            parameter.requires_grad_(False)


def cold_started(
    policy: TextPolicy, demonstrations: Sequence[Demonstration], run: RunOptions, described: Mapping[str, Any]
) -> Session:
    """Supervised fine-tuning on the chains. Raises ValueError when there are none."""
    if not demonstrations:
        raise ValueError(
            f"--stage {described['stage']}: not one chain of the teacher was right, so there is nothing to learn"
        )
    return sft(policy, demonstrations, run.run(chains=len(demonstrations), **described))


def check_started(model: str) -> None:
    """Raises ValueError for a checkpoint that no cold start has written: RL on it is the paper's RL-only arm."""
    about = Path(model).expanduser().parent / "run.json"
    settings = json.loads(about.read_text()).get("run", {}).get("settings", {}) if about.is_file() else {}
    if settings.get("stage") not in STARTED:
        raise ValueError(
            f"--stage rl --model {model}: this is no checkpoint of --stage distil or sft, so there was no cold start; "
            "give one (RUN/model), or --no-cold-start for reinforcement alone"
        )
