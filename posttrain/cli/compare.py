"""`posttrain compare`: combinations side by side under one budget, with one report."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from posttrain.options import ModelOptions, RunOptions, TaskOptions, hashed, one_of, own_settings

if TYPE_CHECKING:
    from posttrain.core import Reward
    from posttrain.policy.text import TextPolicy
    from posttrain.recipe import Recipe

WORLDS = {"modes": "Modes", "habits": "Habits"}


@dataclass(frozen=True)
class Compare:
    """Train combinations of methods and parts of systems side by side, under equal budget, and draw their curves.

    Equal are the steps, tasks and samples, and the optimizer's updates: as many as any of the combinations needs.

    posttrain compare grpo "grpo + entropy.kl_cov" "grpo + entropy.kl_cov + diversity.positive" --out runs/comparison
    """

    combinations: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Each a method, then parts of systems (see `posttrain list`)."""
    run_options: RunOptions = RunOptions("runs/comparison", steps=100, tasks=32, lr=1e-3)
    model_options: ModelOptions = ModelOptions()
    world: str = "modes"
    """A tiny world, where no --data is given: modes or habits."""
    data: str | None = None
    """Your own tasks, in place of a world; see `posttrain train --help` for prompt, answer and grade."""
    prompt: str = "prompt"
    answer: str = "answer"
    grade: str = "math"
    held_out: str | None = None
    """Tasks that are only evaluated, with the same columns; a world has its own."""
    samples: int = 8
    """Samples per task, of every combination."""
    seeds: int = 1

    def run(self) -> None:
        from posttrain.report import comparison_table, write_comparison

        if not self.combinations:
            raise ValueError('compare: name at least one combination, such as grpo "grpo + entropy.kl_cov"')
        policy, _, _, reward = self.problem(self.run_options.seed)
        updates = max(self.recipe(name, policy, reward).updates for name in self.combinations)
        paths = {
            name: [self.trained(name, self.run_options.seed + i, updates) for i in range(self.seeds)]
            for name in self.combinations
        }
        page = write_comparison(paths, Path(self.run_options.out))
        print(comparison_table(paths))
        print(f"report: {page}")

    def recipe(self, name: str, policy: TextPolicy, reward: Reward) -> Recipe:
        """The method's recipe with the parts in it."""
        from posttrain import method
        from posttrain.cli.combination import named, with_parts
        from posttrain.core import SMALL_MODEL

        first, *parts = named(name)
        maker = method.METHODS[one_of(first, tuple(method.METHODS), "compare")]
        options: dict[str, Any] = {"max_new": policy.sampling.max_new} if first in ("dr_grpo", "dapo") else {}
        if first == "ppo":
            from posttrain.policy.value import Critic, Gae

            options["advantage"] = Gae(Critic(policy, lr=self.run_options.lr or 3e-4))
        tiny = sum(p.numel() for p in policy.model.parameters()) < SMALL_MODEL
        return with_parts(maker(reward, samples=self.samples, **options), parts, tiny)

    def trained(self, name: str, seed: int, updates: int) -> Path:
        """One combination on one seed, with as many updates as any of them takes; nothing is run twice.

        Raises ValueError when what is there already was made with other settings.
        """
        from posttrain.step import train

        folder = Path(self.run_options.out) / f"{name.replace(' ', '')}-{seed}"
        policy, tasks, held_out, reward = self.problem(seed)
        recipe = replace(self.recipe(name, policy, reward), updates=updates)
        settings = {**own_settings(self), "combination": name, **vars(self.model_options)}
        settings |= hashed(self.data) if self.data else {}
        del settings["seeds"]  # more of them may be added
        going_on = not self.run_options.overwrite and (folder / "run.json").is_file()
        made = replace(self.run_options, out=str(folder), seed=seed, resume=going_on)
        return train(policy, tasks, recipe, made.run(**settings), held_out=held_out).directory.path

    def problem(self, seed: int):
        """Policy, tasks, held-out tasks and reward."""
        if self.data:
            task = TaskOptions(self.data, self.prompt, self.answer, self.grade)
            tests = task.held_out(self.held_out)
            return self.model_options.policy(), task.tasks(), tests, task.reward()
        import importlib

        from posttrain.reward import each
        from posttrain.world.words import base

        module = importlib.import_module(f"posttrain.world.{one_of(self.world, tuple(WORLDS), '--world')}")
        world = getattr(module, WORLDS[self.world])(seed)
        return base(world, seed), world.training(), world.held_out(), each(module.right)
