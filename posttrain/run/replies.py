"""The graded replies of an evaluation, kept as they come: a killed one resumes from them, `grade` audits them."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from posttrain import ranks
from posttrain.chat import opened_thinking
from posttrain.core import Ask, Env, Invalid, Reply, Reward, Rollout, Sampler, Score, Task, Turn
from posttrain.evaluation import GROUPS_AT_ONCE, Evaluation, graded_batches
from posttrain.run.directory import json_value, write_json
from posttrain.run.folder import prepare_folder
from posttrain.run.lines import Lines
from posttrain.run.progress import progress_bar
from posttrain.run.settings import Output
from posttrain.seeding import mix, seed_everything

REPLIES, MEASURES = "replies.jsonl", "measures.json"


class Replies:
    """The graded replies of an evaluation, a line each, in a file of the folder if there is one.

    Raises ValueError for a folder that holds something else, or an evaluation of other settings.
    """

    def __init__(self, output: Output):
        self.output, self.folder = output, Path(output.out)
        self.lines: Lines | None = None
        if output.out:
            settings = {"seed": output.seed, **output.settings}
            options = {"resume": output.resume, "overwrite": output.overwrite}
            prepare_folder(self.folder, "evaluation", [REPLIES, MEASURES], settings, **options)
            self.lines = ranks.run_on_primary(
                lambda: Lines(self.folder / REPLIES, output.resume), "for the replies that are there"
            )

    def grade(
        self,
        players: Mapping[str, Sampler],
        tasks: Sequence[Task],
        reward: Reward,
        env: Env,
        samples: int,
        greedy: bool = False,
    ) -> Evaluation:
        """The evaluation of all tasks, those among them that are in the file already."""
        known = [line for line in self.lines.found if line["greedy"] == greedy] if self.lines else []
        done = len(known) // samples // GROUPS_AT_ONCE * GROUPS_AT_ONCE  # a batch that a kill cut short is played again
        done = len(tasks) if len(known) == len(tasks) * samples else done
        lines, started, tokens = known[: done * samples], time.monotonic(), 0
        if self.lines and ranks.is_primary() and len(lines) < len(known):
            self.lines.replace([*(line for line in self.lines.found if line["greedy"] != greedy), *lines])
        options: dict[str, Any] = {"temperature": 0.0} if greedy else {}
        with progress_bar("tasks", len(tasks), self.output.quiet or not ranks.is_primary()) as advance:
            advance(done)
            batches = graded_batches(
                players, tasks, reward, env, samples=samples, seed=self.output.seed, first=done, **options
            )
            seed_everything(mix(self.output.seed, done))  # for users' code
            for batch in batches:
                fresh = [
                    recorded_line(one, score, greedy)
                    for group in batch
                    for one, score in zip(group.group, group.scores, strict=True)
                ]
                lines += fresh
                if self.lines and ranks.is_primary():
                    self.lines.add(*fresh)
                tokens += sum(sum(line["tokens"]) for line in fresh)
                done += len(batch)
                seed_everything(mix(self.output.seed, done))
                advance(len(batch), f"{tokens / (time.monotonic() - started):.0f} tokens/s, {memory_gb():.1f} GB")
        return evaluation_of(lines, samples, {task.key: task for task in tasks})

    def write(self, values: Mapping[str, Any]) -> None:
        if ranks.is_primary():
            write_json(self.folder / MEASURES, values)


def recorded_line(rollout: Rollout, score: Score | Invalid, greedy: bool) -> dict[str, Any]:
    line: dict[str, Any] = {"task": rollout.task.key, "truth": json_value(rollout.task.truth), "greedy": greedy}
    line |= {"replies": [recorded_content(turn.reply) for turn in rollout.turns]}
    line |= {"tokens": [len(turn.reply.logp) for turn in rollout.turns]}
    return line | ({"reward": score.value} if isinstance(score, Score) else {"invalid": score.reason})


def recorded_content(reply: Reply) -> Any:
    """What a reply says, behind the thinking that its prompt has opened."""
    said = reply.content
    return opened_thinking(reply) + said if isinstance(said, str) else json_value(said)


def evaluation_of(
    lines: Sequence[Mapping[str, Any]], samples: int, tasks: Mapping[str, Task] | None = None
) -> Evaluation:
    """What lines of replies.jsonl tell, of these tasks by key; without them tasks have a key and their truth as JSON.

    Raises ValueError when not one reply could be graded.
    """
    found = Evaluation()
    for start in range(0, len(lines), samples):
        some = lines[start : start + samples]
        task = tasks[some[0]["task"]] if tasks else Task(some[0]["task"], (), some[0]["truth"])
        found.groups.append(
            [
                Rollout(
                    task,
                    [
                        Turn(Ask(()), Reply(said, torch.zeros(count), None))
                        for said, count in zip(line["replies"], line["tokens"], strict=True)
                    ],
                )
                for line in some
            ]
        )
        found.scores.append([Score(line["reward"]) if "reward" in line else Invalid(line["invalid"]) for line in some])
    found.require_graded()
    return found


def memory_gb() -> float:
    """The most memory so far: of the GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (1e9 if sys.platform == "darwin" else 1e6)
