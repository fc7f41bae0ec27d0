"""`posttrain compare`: combinations side by side under one budget, with one report."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from posttrain.cli.options import ModelOptions, TaskOptions, check_choice
from posttrain.run.settings import Run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from posttrain.core import Env, Reward, Task
    from posttrain.policy.text import TextPolicy
    from posttrain.recipe import Recipe

World = Literal["modes", "habits"]
WORLDS = {"modes": "Modes", "habits": "Habits"}


@dataclass(frozen=True)
class DataOptions:
    """Your own tasks, in place of a tiny world."""

    data: str | None = None
    """JSONL, CSV or Parquet file, a Hugging Face dataset id, or a project (posttrain new)."""
    prompt: str = "prompt"
    """Column of the prompt."""
    answer: str = "answer"
    """Column of the truth."""
    grade: str | None = None
    """math, exact, choice, contains, json, file.py:function, or a weighted sum; the project's reward, or math, if not
    given."""


@dataclass(frozen=True)
class Problem:
    """What the combinations are trained on."""

    policy: TextPolicy
    tasks: Sequence[Task]
    held_out: dict[str, list[Task]]
    reward: Reward
    env: Env


def compare(
    combinations: Annotated[tuple[str, ...], tyro.conf.Positional],
    run: Run = Run("runs/comparison", steps=100, tasks=32, lr=1e-3),
    model: ModelOptions = ModelOptions(),
    own: DataOptions = DataOptions(),
    world: World = "modes",
    held_out: tuple[str, ...] = (),
    samples: int = 8,
    seeds: int = 1,
) -> None:
    """Train combinations of methods and parts of systems side by side, under equal budget, and draw their curves.

    Equal are the steps, tasks and samples, and the optimizer's updates: as many as any of the combinations needs.

    posttrain compare grpo "grpo + entropy.kl_cov" "grpo + entropy.kl_cov + diversity.positive" --out runs/comparison

    combinations  each a method, then parts of systems (see `posttrain list`)
    world         a tiny world, where no `data` is given
    held_out      tasks that are only evaluated, with the same columns; a world has its own
    samples       samples per task, of every combination
    seeds         runs of every combination
    """
    from posttrain.cli.report import comparison_table, write_comparison

    if not combinations:
        raise ValueError('compare: name at least one combination, such as grpo "grpo + entropy.kl_cov"')

    def problem(seed: int) -> Problem:
        if not own.data:
            return tiny_problem(world, seed)
        task = TaskOptions(own.data, own.prompt, own.answer, own.grade)
        return Problem(model.policy(), task.tasks(), task.tests(held_out), task.reward(), task.env(None))

    first = problem(run.seed)
    updates = max(combined(name, first, samples, run.lr).updates for name in combinations)
    paths: dict[str, list[Path]] = {}
    for name in combinations:
        places = [(run.seed + i, Path(run.out) / f"{name.replace(' ', '')}-{run.seed + i}") for i in range(seeds)]
        paths[name] = [train_one(name, problem(seed), updates, samples, run, place, seed) for seed, place in places]
    page = write_comparison(paths, Path(run.out))
    print(comparison_table(paths))
    print(f"report: {page}")


def tiny_problem(world: World, seed: int) -> Problem:
    from posttrain.episode import single_turn
    from posttrain.lab.world.words import base
    from posttrain.reward import each

    module = importlib.import_module(f"posttrain.lab.world.{world}")
    place = getattr(module, WORLDS[world])(seed)
    tests = {"": place.held_out_tasks()}
    return Problem(base(place, seed), place.training_tasks(), tests, each(module.is_right), single_turn)


def combined(name: str, problem: Problem, samples: int, lr: float | None) -> Recipe:
    """The method's recipe with the parts in it."""
    from posttrain.cli.parts import is_tiny, parts_in, with_parts
    from posttrain.method import METHODS

    first, *parts = parts_in(name)
    maker = METHODS[check_choice(first, METHODS, "combinations")]
    options: dict[str, Any] = {}
    if first in ("dr_grpo", "dapo"):
        options["max_new"] = problem.policy.sampling.max_new
    if first == "ppo":
        from posttrain.policy.value import Critic, Gae

        options["advantage"] = Gae(Critic(problem.policy, lr=lr or 3e-4))
    made = replace(maker(problem.reward, samples=samples, **options), env=problem.env)
    return with_parts(made, parts, is_tiny(problem.policy))


def train_one(name: str, problem: Problem, updates: int, samples: int, run: Run, folder: Path, seed: int) -> Path:
    """One combination on one seed; a run that is there already continues, so that nothing is run twice.

    Raises ValueError when what is there was made with other settings.
    """
    from posttrain.step import train

    recipe = replace(combined(name, problem, samples, run.lr), updates=updates)
    resume = not run.overwrite and (folder / "run.json").is_file()
    settings = {key: value for key, value in run.settings.items() if key not in ("seeds", "combinations")}
    made = replace(run, out=folder, seed=seed, resume=resume, settings={**settings, "combination": name})
    return train(problem.policy, problem.tasks, recipe, made, held_out=problem.held_out).directory.path
