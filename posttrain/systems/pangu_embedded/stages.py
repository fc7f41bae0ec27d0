"""The stages on a checkpoint and data of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from posttrain.cli.options import RunOptions, TaskOptions, one_of
from posttrain.core import Invalid, Reward, Sampler, Score, Task
from posttrain.episode import rollout, single_turn
from posttrain.policy.text import TextPolicy
from posttrain.reward import graded
from posttrain.run.session import Session
from posttrain.seeding import mix
from posttrain.supervised import sft
from posttrain.systems.pangu_embedded.distillation import (
    RIGHT,
    complexity,
    iterations,
    medium,
    merged,
    selected,
    shortest_right,
)
from posttrain.systems.pangu_embedded.dual import fast_enough, fused, in_mode
from posttrain.systems.pangu_embedded.mars import Router, Scaling

MAIN = "main"  # the source of --data


class ByComplexity:
    """A source of tasks: epoch after epoch the `share` of them that is drawn around medium complexity."""

    def __init__(self, tasks: Sequence[Task], complexities: Mapping[str, float], seed: int, share: float = 0.5):
        self.tasks, self.seed, self.cursor = list(tasks), seed, 0
        self.weights = [medium(complexities[task.key]) for task in tasks]
        self.count = max(int(share * len(self.tasks)), 1)
        self.epoch, self.order = -1, list[Task]()

    @property
    def items(self) -> list[Task]:
        return self.tasks

    def take(self, count: int) -> list[Task]:
        return [self.next() for _ in range(count)]

    def next(self) -> Task:
        epoch, place = divmod(self.cursor, self.count)
        if epoch != self.epoch:
            self.epoch = epoch
            self.order = selected(self.tasks, self.weights, self.count, mix(self.seed, "epoch", epoch))
        self.cursor += 1
        return self.order[place]

    def state_dict(self) -> dict[str, Any]:
        return {"cursor": self.cursor}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.cursor = state["cursor"]


# ---- reinforcement: tasks and rewards of several sources


def source_of(task: Task) -> str:
    return task.key.partition(":")[0]


def sources(
    task: TaskOptions, also: str, grader: Callable[[str], tuple[Reward, Scaling]], window: int = 256
) -> tuple[list[Task], Router]:
    """The tasks of `--data` and of every `name=file=grade` in `also`, and the router of their rewards.

    Raises ValueError for one that is not of this form.
    """
    tasks = [replace(one, key=f"{MAIN}:{one.key}") for one in task.tasks()]
    rewards: dict[str, Reward] = {MAIN: task.reward()}
    scaling: dict[str, Scaling] = {MAIN: "zscore"}
    for entry in filter(None, also.split(",")):
        name, *rest = (part.strip() for part in entry.split("="))
        if len(rest) != 2 or not name:
            raise ValueError(f"--also {entry}: a source is written name=file=grade")
        file, grade = rest
        rewards[name], scaling[name] = grader(grade)
        tasks += [replace(one, key=f"{name}:{one.key}") for one in task.tasks(file)]
    return tasks, Router(rewards, source_of, scaling, window)


def grader(grade: str) -> tuple[Reward, Scaling]:
    """A grade by name, a function of a file, or a reward model, whose scores have no bounds.

    Of a reward model: its folder, its Hub id, or the address of a server.
    """
    from posttrain import grade as grades
    from posttrain.policy.scoring import reward_of
    from posttrain.sampler.scorer import is_address

    if is_address(grade):
        return reward_of(grade), "sigmoid"
    if ":" in grade:
        return grades.reward_file(grade), "zscore"
    if grade in grades.GRADES:
        return grades.GRADES[grade], "zscore"
    if "/" not in grade and not Path(grade).is_dir():
        one_of(grade, tuple(grades.GRADES), "--also ...=...=")
    return reward_of(grade), "sigmoid"


# ---- distillation


def distil(
    policy: TextPolicy,
    tasks: Sequence[Task],
    teacher: Sampler,
    verify: Reward,
    run: RunOptions,
    described: Mapping[str, Any],
    *,
    count: int = 3,
    candidates: int = 4,
    share: float = 0.33,
    merge: float = 0.7,
    samples: int = 4,
) -> Session:
    """`count` iterations, each a supervised run of `run.steps` in a folder of its own below `run.out`.

    The two last checkpoints of each are merged into what went before. The model is in `run.out`/model.
    """
    pool = shortest_right(teacher, tasks, verify, candidates, mix(run.seed, "teacher"))
    if not pool:
        raise ValueError(f"not one of {len(tasks)} tasks was answered right by the teacher in {candidates} attempts")
    known = [task for task in tasks if task.key in pool]
    sessions: list[Session] = []

    def measure(number: int) -> Mapping[str, float]:
        return complexity(policy, known, verify, samples, mix(run.seed, "complexity", number))

    def teach(keys: Sequence[str], number: int) -> None:
        before = {name: value.clone() for name, value in policy.state_dict().items()}
        out = str(Path(run.out) / f"iteration-{number + 1}")
        saves = max(run.steps // 2, 1)
        again = run.resume and Path(out, "run.json").is_file()
        mine = replace(run, out=out, save_every=saves, keep=2, seed=mix(run.seed, number) % 2**31, resume=again)
        session = sft(policy, [pool[key] for key in keys], mine.run(iteration=number + 1, **described))
        if merge:
            kept = [load_file(folder / "policy.safetensors") for folder in session.checkpoints.complete()]
            policy.load_state_dict(merged(before, kept, merge))
        session.directory.export(policy)
        sessions.append(session)

    each = max(int(share * len(known)), 1)
    iterations(measure, teach, list(pool), count=count, each=each, weight=medium, seed=run.seed)
    policy.save(Path(run.out) / "model")
    return sessions[-1]


# ---- fusion


def fuse(
    policy: TextPolicy,
    tasks: Sequence[Task],
    verify: Reward,
    run: RunOptions,
    described: Mapping[str, Any],
    slow: Sampler | None = None,
    candidates: int = 4,
) -> Session:
    """A supervised run on the fusion set. Labels and fast replies are the model's own, slow ones `slow`'s if given."""
    fast_tasks, slow_tasks = in_mode(tasks, "fast"), in_mode(tasks, "slow")
    easy = fast_enough(policy, fast_tasks, verify, seed=mix(run.seed, "labels"))
    fast = any_right(policy, fast_tasks, verify, candidates, mix(run.seed, "fast"))
    long = shortest_right(slow or policy, slow_tasks, verify, candidates, mix(run.seed, "slow"))
    replies = {key: one.messages[-1]["content"] for key, one in long.items()}
    demonstrations = fused(tasks, easy, fast, replies)
    if not demonstrations:
        raise ValueError(f"neither a fast nor a slow answer to any of {len(tasks)} tasks was right: nothing to fuse")
    return sft(policy, demonstrations, run.run(easy=sum(easy), tasks_labelled=len(tasks), **described))


def any_right(policy: Sampler, tasks: Sequence[Task], verify: Reward, candidates: int, seed: int) -> dict[str, str]:
    """By the task's key, the first right answer."""
    found: dict[str, str] = {}
    for group in rollout(single_turn, tasks, {"policy": policy}, candidates, seed):
        scores: list[Score | Invalid] = graded(verify, group)
        for one, score in zip(group, scores, strict=True):
            if isinstance(score, Score) and score.value >= RIGHT:
                found.setdefault(one.task.key, one.text)
    return found
