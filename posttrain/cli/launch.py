"""Where a call runs: in this process, on every rank that torchrun started, or on a Ray cluster."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from posttrain.cli.bridge import Call, parameter_types
from posttrain.cli.options import ModelOptions, TaskOptions
from posttrain.cli.scale import ScaleOptions

ONE_PROCESS = "it trains or samples nothing large enough to distribute"
DISTRIBUTING = ("--sampler", "--cluster", "--learners", "--samplers", "--staleness")
Parse = Callable[[Sequence[str]], Call]


def one_process(reason: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Mark a stage that runs in one process, and say why: `@one_process("a gate is too small to shard")`."""

    def mark(stage: Callable[..., Any]) -> Callable[..., Any]:
        stage.one_process = reason  # type: ignore[attr-defined]
        return stage

    return mark


def refuse_distribution(function: Callable[..., Any], words: Sequence[str]) -> None:
    """Raises ValueError where a stage of one process is started on several, or told to sample elsewhere."""
    if ScaleOptions in parameter_types(function).values():
        return
    reason = getattr(function, "one_process", ONE_PROCESS)
    for word in words:
        if word.partition("=")[0] in DISTRIBUTING:
            raise ValueError(f"{word.partition('=')[0]}: this runs in one process, since {reason}; leave it out")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(f"this runs in one process, since {reason}: start it without torchrun")


def launch(parse: Parse, words: Sequence[str]) -> None:
    """Run the call that the words ask for, wherever they say, and show what came of it."""
    call = parse(words)  # before torch is imported: help answers at once
    from posttrain.run.session import DryRun

    scale, model, task = call.group(ScaleOptions), call.group(ModelOptions), call.group(TaskOptions)
    if task is not None and "env" not in call.arguments and task.project and task.project.env:
        raise ValueError(f"`data={task.data}`: the project has an environment, and this plays one of its own")
    if scale is not None:
        scale.check(model.model if model else None)
    try:
        if scale is not None and scale.cluster and not call.options.get("dry_run"):
            from posttrain.scale.cluster import run_on_cluster

            there = partial(program, parse, tuple(words), os.getcwd())
            show(run_on_cluster(scale.cluster, there, scale.players(), scale.learners, scale.gpus))
            return
        from posttrain.ranks import is_primary, process_group, world

        with process_group(model.device if model else None), contextlib.ExitStack() as stack:
            if world() > 1:
                from posttrain.policy.abilities import agree_on_slowdown

                agree_on_slowdown()
            if not is_primary():
                stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
            show(call.run())
    except DryRun as planned:
        from posttrain.cli.plan import plan_of

        for session in planned.sessions:
            plan_of(session, one_process=hasattr(call.function, "one_process")).show()


def program(parse: Parse, words: Sequence[str], folder: str) -> Any:
    """The same call in a process of a cluster, from the folder where the command was given."""
    if Path(folder).is_dir():
        os.chdir(folder)
        sys.path[:0] = [folder]
    return parse(words).run()


def show(result: Any) -> None:
    """Write the report of a finished run, and say where things are."""
    from posttrain.ranks import is_primary
    from posttrain.run.session import Session

    path = result.directory.path if isinstance(result, Session) else result
    if not isinstance(path, Path) or not is_primary():
        return
    if (path / "metrics.jsonl").is_file():
        from posttrain.cli.report import write_report

        for phase in path.glob("*/run.json"):  # of a curriculum
            write_report(phase.parent)
        print(f"model:  {path / 'model'}{saved_dtype(path / 'model')}\nreport: {write_report(path)}", file=sys.stderr)
    else:
        print(f"written to {path}", file=sys.stderr)


def saved_dtype(model: Path) -> str:
    """In brackets, the dtype that a checkpoint's configuration names; empty for a model of another kind."""
    config = model / "config.json"
    kind = json.loads(config.read_text()).get("dtype") if config.is_file() else None
    return f" ({kind}, like the original checkpoint)" if kind else ""
