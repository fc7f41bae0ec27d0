"""What a run shows while it goes: a bar and a table of the last numbers in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from posttrain.chat import readable_content
from posttrain.core import Metrics, Score
from posttrain.group import ScoredRollout
from posttrain.run.settings import Run

SHOWN = {
    "reward": "reward {:.3f}",
    "loss": "loss {:.3f}",
    "accuracy": "accuracy {:.3f}",
    "entropy": "entropy {:.3f}",
    "length": "length {:.1f}",
    "groups_flat": "flat {:.0%}",
    "decisions_per_s": "{:.0f} tokens/s",
    "held_out/reward": "held out {:.3f}",
}
SAMPLES = 10  # sample rollouts shown in a run
LINES = 40  # lines printed in a run, where there is no terminal
LINE_S = 10.0  # between lines of other work
PATIENCE = 10  # steps without variance before a warning


class Progress:
    def __init__(self, run: Run, start: int):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self.run, self.began = run, time.monotonic()
        self.console = Console(stderr=True)
        self.live = self.console.is_terminal and not run.quiet
        self.bar = Bar(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=self.console,
            disable=not self.live,
        )
        self.start = start
        self.row = self.bar.add_task("step", total=run.steps, completed=start, numbers="")

    def __enter__(self) -> Progress:
        self.bar.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.bar.__exit__(*error)

    def step(self, line: Metrics, played: Sequence[ScoredRollout] = ()) -> None:
        done = int(line["step"]) + 1
        names = [name for name in SHOWN if name in line and not (name == "loss" and "reward" in line)]
        numbers = "  ".join(SHOWN[name].format(line[name]) for name in names)
        self.bar.update(self.row, completed=done, numbers=numbers)
        every = max(self.run.steps // LINES, 1)
        if not self.live and not self.run.quiet and (done % every == 0 or done in (self.start + 1, self.run.steps)):
            left = (time.monotonic() - self.began) / max(done - self.start, 1) * (self.run.steps - done)
            print(f"step {done}/{self.run.steps}  {numbers}  {left:.0f} s left", file=sys.stderr, flush=True)
        if played and not self.run.quiet and (done - 1) % max(self.run.steps // SAMPLES, 1) == 0:
            self.sample(played[0])

    def sample(self, played: ScoredRollout) -> None:
        """One rollout of the step, as a person would read it."""
        rollout = played.rollout
        asked = readable_content(rollout.task.prompt[-1]["content"]) if rollout.task.prompt else ""
        mark = f"{played.score.value:g}" if isinstance(played.score, Score) else f"invalid: {played.score.reason}"
        self.say(f"  {shorten(asked)}  ->  {shorten(rollout.text)}   [reward {mark}]")

    def say(self, text: str) -> None:
        if self.live:
            self.console.print(text, markup=False, highlight=False)
        elif not self.run.quiet:
            print(text, file=sys.stderr, flush=True)


@contextmanager
def progress_bar(name: str, total: int, quiet: bool = False) -> Iterator[Callable[..., None]]:
    """Progress of work that is no run: a bar in a terminal, elsewhere a line at most every `LINE_S` seconds.

    Entered, it gives what counts: `advance(more=1, note="")`, the note being shown beside the count.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    live = console.is_terminal
    columns = [BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}")]
    with Progress(
        TextColumn("{task.description}"), *columns, console=console, disable=quiet or not live, transient=True
    ) as shown:
        row = shown.add_task(name, total=total, note="")
        done, said = 0, time.monotonic()

        def advance(more: int = 1, note: str = "") -> None:
            nonlocal done, said
            done += more
            shown.update(row, advance=more, note=note)
            if not live and not quiet and more and (done >= total or time.monotonic() - said > LINE_S):
                said = time.monotonic()
                print(f"{name} {done}/{total}  {note}".rstrip(), file=sys.stderr, flush=True)

        yield advance


def shorten(text: Any, width: int = 90) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= width else line[: width - 4] + " ..."


def alarms(history: Sequence[Metrics]) -> Iterator[str]:
    """Warnings about a run that has stopped teaching anything, each once per occurrence."""
    if len(history) < PATIENCE:
        return
    recent = history[-PATIENCE:]
    earlier = history[-PATIENCE - 1] if len(history) > PATIENCE else {}
    idle = [line.get("groups_flat") == 1 and not line.get("credited") for line in recent]
    if all(idle) and not (earlier.get("groups_flat") == 1 and not earlier.get("credited")):
        value = recent[-1].get("reward", 0.0)
        yield (
            f"warning: for {PATIENCE} steps every group has had one reward for all its samples (last {value:g}), so "
            "nothing is learned. If it is 0: look at rollouts/ for what the grader sees; "
            "if it is at its best: the tasks are too easy; else take more samples or a higher temperature"
        )
    cut = [line.get("truncated", 0.0) > 0.5 for line in recent]
    if all(cut) and not earlier.get("truncated", 0.0) > 0.5:
        yield f"warning: for {PATIENCE} steps more than half of the replies were cut off: raise max_new"
