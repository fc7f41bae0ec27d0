"""What a player makes of each task, as lines of JSON: written as soon as they are known, so a kill loses nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from posttrain import ranks
from posttrain.core import Env, Failure, Group, Invalid, Rollout, Sampler, ShardedSampler, Task
from posttrain.episode import rollout, single_turn
from posttrain.evaluation import GROUPS_AT_ONCE
from posttrain.grade.stated import whole_reply
from posttrain.run.lines import Lines, whole_lines
from posttrain.run.progress import progress_bar

MOST_FAILED = 0.1  # share of tasks that nobody may have answered


def collect(
    player: Sampler,
    tasks: Sequence[Task],
    line: Callable[[Group], Mapping[str, Any] | Invalid],
    path: Path,
    *,
    env: Env = single_turn,
    samples: int = 1,
    seed: int = 0,
    name: str = "questions",
    quiet: bool = False,
    others: Mapping[str, Sampler] | None = None,
) -> list[Mapping[str, Any]]:
    """The lines of all tasks, in their order, each with the task's key as `id`; several ranks play a share each.

    line    what is kept of a task's rollouts; Invalid where there is no answer: it is asked for again on a resume
    path    of the file that holds the lines; no task is asked that it knows
    name    of the tasks, for the progress bar
    others  players that the environment asks besides
    Raises ValueError, with the first reason, when more than a tenth of the tasks could not be answered; what was
    answered stays in the file.
    """
    file = Lines(path) if ranks.is_primary() else None
    known = {one["id"]: one for one in ranks.run_on_primary(lambda: list(whole_lines(path)), f"for {path.name}")}
    failures: list[str] = []

    def keep(key: str, found: Mapping[str, Any] | Invalid) -> None:
        if isinstance(found, Invalid):
            failures.append(found.reason)
            return
        known[key] = {"id": key, **found}
        if file:
            file.add(known[key])

    left = [number for number, task in enumerate(tasks) if task.key not in known]
    at_once = len(left) if ranks.world() == 1 else GROUPS_AT_ONCE * ranks.world()
    with (
        progress_bar(name, len(tasks), quiet or not ranks.is_primary()) as step,
        player.gather_parameters() if isinstance(player, ShardedSampler) else nullcontext(),
    ):
        step(len(tasks) - len(left))
        for start in range(0, len(left), max(at_once, 1)):
            mine, done = ranks.share(left[start : start + at_once]), dict[int, Mapping[str, Any] | Invalid]()

            def ended(i: int, group: Group, mine: Sequence[int] = mine, done: Any = done) -> None:
                done[mine[i]] = line(group)
                if ranks.is_primary():
                    keep(group[0].task.key, done[mine[i]])
                step()

            rollout(env, [tasks[n] for n in mine], {"policy": player, **(others or {})}, samples, seed, ended, mine)
            for number, found in ranks.merge_shares(list(done.items()), f"for {path.name}"):
                if not (ranks.is_primary() and number in done):
                    keep(tasks[number].key, found)
    check_failures(failures, len(tasks), name)
    return [known[task.key] for task in tasks if task.key in known]


def first_kept(group: Group, keep: Callable[[Rollout], bool]) -> dict[str, Any] | Invalid:
    """A line of what a teacher said: `prompt`, the first reply that is kept as `response`, and all `replies`.

    None in the place of the response where no reply is kept; Invalid where there was none at all.
    """
    answered = [one for one in group if not isinstance(one.facts, Failure)]
    if not answered:
        return Invalid(group[0].facts.reason)
    kept = next(filter(keep, answered), None)
    response = None if kept is None else whole_reply(kept)
    return {"prompt": list(group[0].task.prompt), "response": response, "replies": [*map(whole_reply, answered)]}


def kept_lines(lines: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Those of `first_kept` that have a response, as supervised learning reads them."""
    return [
        {name: value for name, value in line.items() if name != "replies"}
        for line in lines
        if line["response"] is not None
    ]


def check_failures(failures: Sequence[str], tasks: int, name: str) -> None:
    """Raises ValueError when more than a tenth of the tasks failed; fewer are a warning."""
    if not failures:
        return
    counted = f"{len(failures)} of {tasks} {name} could not be answered; the first because: {failures[0]}"
    if len(failures) > MOST_FAILED * tasks:
        raise ValueError(f"{counted}\nwhat was answered is kept: `resume=True` asks for the rest")
    if ranks.is_primary():
        print(f"warning: {counted}", file=sys.stderr)
