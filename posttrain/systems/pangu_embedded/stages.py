"""Distil, reinforce, fuse: on a checkpoint and data of the user's own, each on the model of the one before."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import posttrain as pt
from posttrain.cli.plan.workload import longest_row
from posttrain.sampler.scorer import is_address
from posttrain.systems.pangu_embedded import recipe
from posttrain.systems.pangu_embedded.distillation import (
    ByComplexity,
    complexity,
    distil_once,
    first_right,
    iterate,
    shortest_right,
)
from posttrain.systems.pangu_embedded.dual import fast_enough, fusion_set, in_mode
from posttrain.systems.pangu_embedded.mars import Router, Scaling, answers, with_auxiliaries
from posttrain.systems.pangu_embedded.repair import Repaired

MAIN = "main"  # the source of `data`
CANDIDATES = 4  # answers of a teacher to a task
SHARE = 0.33  # of the tasks that the teacher can answer, taught in an iteration
ANSWERS = "answers.json"


@dataclass(frozen=True)
class TeacherOptions:
    """Whose answers are learned."""

    teacher: str | None = None
    """A chat server (http://...), a Hub id or a folder; the model itself if not given."""
    repair: bool = False
    """Break loops in the replies of a teacher that runs in this process, the model itself included."""

    def __post_init__(self):
        if self.repair and self.teacher and is_address(self.teacher):
            raise ValueError("`repair=True`: the replies of a server cannot be cut and continued here; leave it out")

    def sampler(self, model: pt.ModelOptions, policy: pt.TextPolicy, player: pt.Sampler) -> pt.Sampler:
        """The teacher; without one the policy, which `player` plays where nothing is to be repaired."""
        if not self.teacher:
            return Repaired(policy) if self.repair else player
        found = model.player(self.teacher)
        return Repaired(found) if self.repair and isinstance(found, pt.TextPolicy) else found


# ---- reinforcement: tasks and rewards of several sources


def reinforce(
    task: pt.TaskOptions,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    run: pt.Run = pt.Run("runs/pangu-embedded", steps=200, tasks=64),
    also: str = "",
    kl: float = 0.0,
    samples: int = 8,
    curriculum: bool = False,
    held_out: tuple[str, ...] = (),
) -> pt.Session:
    """MARS on your checkpoint: each source's rewards on a scale of its own, flat groups left out of the loss.

    Every reply earns 0.1 for an answer behind closed thinking, and loses 0.2 times its share of repeated 8-grams.

    also        more sources, as name=file=grade,...; a grade is one of those of `grade`, or a reward model (folder, Hub
                id or address of posttrain serve)
    kl          weight of the divergence from the model it starts from
    samples     samples of a task
    curriculum  draw tasks around medium complexity, measured first
    held_out    data of tasks that are only evaluated, by `grade`: FILE, or NAME=FILE
    """
    policy = model.policy()
    tasks, router = sources(task, also)
    tests = {name: of_source(MAIN, some) for name, some in task.tests(held_out).items()}
    reference = policy.frozen_copy() if kl else None
    paid = with_auxiliaries(router, answers)
    made = replace(recipe(paid, kl=kl, reference=reference, samples=samples), evaluation=router.on_scales({}))
    drawn: Any = tasks
    if curriculum and not run.dry_run:
        pt.ranks.run_on_primary(lambda: pt.Directory(Path(run.out)).check(run), "for the run's directory")
        pt.distribute(policy, made)
        bounded = router.on_scales({name: how for name, how in router.scaling.items() if how == "sigmoid"})
        with scale.playing(policy, run.out, tasks) as player:
            drawn = ByComplexity(tasks, complexity(player, tasks, bounded, seed=run.seed), run.seed)
    return scale.train(policy, drawn, made, run, held_out=tests)


def source_of(task: pt.Task) -> str:
    return task.key.partition(":")[0]


def of_source(name: str, tasks: Sequence[pt.Task]) -> list[pt.Task]:
    return [replace(one, key=f"{name}:{one.key}") for one in tasks]


def sources(task: pt.TaskOptions, also: str, window: int = 256) -> tuple[list[pt.Task], Router]:
    """The tasks of `task.data` and of every `name=file=grade` in `also`, and the router of their rewards.

    Raises ValueError for one that is not of this form.
    """
    tasks = of_source(MAIN, task.tasks())
    rewards: dict[str, pt.Reward] = {MAIN: task.reward()}
    scaling: dict[str, Scaling] = {MAIN: "zscore"}
    for entry in filter(None, also.split(",")):
        name, *rest = (part.strip() for part in entry.split("=", 2))
        if len(rest) != 2 or not name:
            raise ValueError(f"`also={entry}`: a source is written name=file=grade")
        file, grade = rest
        rewards[name], scaling[name] = grader(grade)
        tasks += of_source(name, task.tasks(file))
    return tasks, Router(rewards, source_of, scaling, window)


def grader(grade: str) -> tuple[pt.Reward, Scaling]:
    """A grade by name, a function of a file, or a reward model, whose scores have no bounds.

    Of a reward model: its folder, its Hub id, or the address of a server.
    """
    if is_address(grade):
        return pt.reward_of(grade), "sigmoid"
    if ":" in grade:
        return pt.grade.reward_file(grade), "zscore"
    if grade in pt.grade.GRADES:
        return pt.grade.GRADES[grade], "zscore"
    if "/" not in grade and not Path(grade).is_dir():
        pt.check_choice(grade, pt.grade.GRADES, "also")
    return pt.reward_of(grade), "sigmoid"


# ---- distillation


def distil(
    task: pt.TaskOptions,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    teaching: TeacherOptions,
    run: pt.Run = pt.Run("runs/pangu-distilled", steps=200, tasks=64),
    iterations: int = 3,
    merge: float = 0.7,
    held_out: tuple[str, ...] = (),
) -> Path:
    """The teacher's shortest right answers to what the student half knows, measured anew in every iteration.

    Each iteration is a supervised run of `steps` in a folder of its own in OUT; the model is in OUT/model.

    iterations  how many
    merge       lambda, the share of the change of an iteration's last two checkpoints that is kept; 0 keeps the last
    held_out    data of tasks that are only evaluated, in every iteration: FILE, or NAME=FILE
    """
    pt.at_least(1, iterations=iterations)
    policy, tasks, tests, verify = model.policy(), task.tasks(), task.tests(held_out), task.reward()
    policy.check([*tasks, *itertools.chain(*tests.values())])
    if run.dry_run:
        plan(policy, tasks[: share_of(tasks)], run)
    pt.distribute(policy)
    out = Path(run.out)
    settings = {"seed": run.seed, **run.settings}
    pt.prepare_folder(out, "distillation", [ANSWERS], settings, resume=run.resume, overwrite=run.overwrite)
    replies = known_answers(run)
    if not replies:
        own = not teaching.teacher and not teaching.repair
        with scale.playing(policy, out, tasks) if own else nullcontext(policy) as player:
            teacher = teaching.sampler(model, policy, player)
            replies = shortest_right(teacher, tasks, verify, CANDIDATES, pt.mix(run.seed, "teacher"))
        write_answers(run, replies)
    if not replies:
        raise ValueError(f"not one of {len(tasks)} tasks was answered right by the teacher in {CANDIDATES} attempts")
    known = {one.key: one for one in tasks if one.key in replies}

    def measure(number: int) -> Mapping[str, float]:
        with scale.playing(policy, out, list(known.values())) as player:
            return complexity(player, list(known.values()), verify, seed=pt.mix(run.seed, "complexity", number))

    def teach(keys: Sequence[str], number: int) -> None:
        rows = [pt.Demonstration((*known[key].prompt, pt.assistant(replies[key]))) for key in keys]
        distil_once(policy, rows, run, number, merge, held_out=tests, measure=grade_of(policy, verify, run))

    iterate(measure, teach, list(replies), count=iterations, each=share_of(replies), seed=run.seed)
    pt.Directory(out).export(policy)
    return out


def share_of(items: Sequence[Any] | Mapping[str, Any]) -> int:
    return max(int(SHARE * len(items)), 1)


# ---- fusion


def fuse(
    task: pt.TaskOptions,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    teaching: TeacherOptions,
    run: pt.Run = pt.Run("runs/pangu-fused", steps=200, tasks=64),
    held_out: tuple[str, ...] = (),
) -> pt.Session:
    """Fast, slow and automatic mode in one model: a supervised run on answers of the model itself.

    Slow answers are those of the teacher, if there is one.

    held_out  data of tasks that are only evaluated, in automatic mode: FILE, or NAME=FILE
    """
    tests = {name: in_mode(some, "auto") for name, some in task.tests(held_out).items()}
    policy, tasks, verify = model.policy(), task.tasks(), task.reward()
    fast_tasks, slow_tasks = in_mode(tasks, "fast"), in_mode(tasks, "slow")
    if run.dry_run:
        return plan(policy, [*fast_tasks, *slow_tasks, *in_mode(tasks, "auto")], run)
    pt.ranks.run_on_primary(lambda: pt.Directory(Path(run.out)).check(run), "for the run's directory")
    pt.distribute(policy)
    found = known_answers(run)
    if not found:
        with scale.playing(policy, run.out, fast_tasks) as player:
            teacher = teaching.sampler(model, policy, player)
            found = {
                "easy": fast_enough(player, fast_tasks, verify, seed=pt.mix(run.seed, "labels")),
                "fast": first_right(player, fast_tasks, verify, CANDIDATES, pt.mix(run.seed, "fast")),
                "slow": shortest_right(teacher, slow_tasks, verify, CANDIDATES, pt.mix(run.seed, "slow")),
            }
    demonstrations = fusion_set(tasks, found["easy"], found["fast"], found["slow"])
    if not demonstrations:
        raise ValueError(f"neither a fast nor a slow answer to any of {len(tasks)} tasks was right: nothing to fuse")
    settings = {**run.settings, "easy": sum(found["easy"]), "tasks_labelled": len(tasks)}
    options = {"held_out": tests, "measure": grade_of(policy, verify, run)}
    kept = replace(run, settings=settings)
    return pt.sft(policy, demonstrations, kept, **options, on_start=lambda _: write_answers(run, found))


def grade_of(policy: pt.TextPolicy, verify: pt.Reward, run: pt.Run) -> Callable[[Sequence[pt.Task]], pt.Metrics]:
    """What a supervised run measures of held-out tasks: the grade of the policy's own answers, and their length."""

    def measure(tasks: Sequence[pt.Task]) -> pt.Metrics:
        seed = pt.mix(run.seed, "held out")
        found = pt.evaluate({"policy": policy}, tasks, verify, seed=seed, temperature=run.eval_temperature)
        return {"reward": found.reward, "length": found.length}

    return measure


# ---- what is sampled before a supervised run


def plan(policy: pt.TextPolicy, tasks: Sequence[pt.Task], run: pt.Run) -> pt.Session:
    """A dry run with replies as long as they may be, since nobody is asked for them. Raises `DryRun`."""
    prompts = [policy.chat.prompt(one.prompt)[0] for one in tasks]
    room = [min(policy.sampling.max_new, policy.context - len(ids)) for ids in prompts]
    rows = [longest_row(policy, *one, i) for i, one in enumerate(zip(tasks, prompts, room, strict=True))]
    return pt.Session(run, policy, rows, kind="sft")


def known_answers(run: pt.Run) -> dict[str, Any]:
    """What a run that is resumed has been answered; nothing for another one."""
    file = Path(run.out) / ANSWERS
    return pt.ranks.run_on_primary(
        lambda: pt.read_json(file) if run.resume and file.is_file() else {}, "for the answers so far"
    )


def write_answers(run: pt.Run, found: Mapping[str, Any]) -> None:
    pt.ranks.run_on_primary(lambda: pt.write_json(Path(run.out) / ANSWERS, found), "for the answers")


# ---- laptop


def laptop(
    adaptive: bool = True, run: pt.Run = pt.Run("runs/pangu-embedded", steps=40, tasks=48, lr=1e-3)
) -> pt.Session:
    """Three sources of tasks with rewards on three scales; held out: each of them.

    adaptive  each source's rewards are brought to its own scale
    """
    from posttrain.lab.world.sources import GRADES, EvenSource, Sources, kind_of
    from posttrain.lab.world.words import base
    from posttrain.systems.pangu_embedded.lab.router import ADAPTIVE, PARTLY

    world = Sources(run.seed)
    router = Router({kind: pt.each(grade) for kind, grade in GRADES.items()}, kind_of, ADAPTIVE if adaptive else {})
    made = replace(recipe(router), evaluation=router.on_scales({}))
    source = EvenSource(world.tasks(), run.seed)
    return pt.train(base(world, run.seed, PARTLY), source, made, run, held_out=world.tasks(held_out=True))


STAGES = {"laptop": laptop, "reinforce": reinforce, "distil": distil, "fuse": fuse}
