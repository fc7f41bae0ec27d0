"""`posttrain train`: on this process, on the ranks that torchrun started, or on a cluster."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from posttrain.cli.finish import finish, spread_if_several
from posttrain.options import ModelOptions, PlannedRunOptions, ScaleOptions, TaskOptions, one_of, own_settings

if TYPE_CHECKING:
    from posttrain.core import Loss, Reward, Row, Task
    from posttrain.policy.text import TextPolicy
    from posttrain.recipe import Recipe
    from posttrain.run import Run

METHODS = ("grpo", "dr_grpo", "dapo", "rloo", "reinforce_pp", "ppo", "gspo", "cispo", "expert_iteration")
TRUNCATED = ("train", "mask", "penalise")


@dataclass(frozen=True)
class Train:
    """Train a model by reinforcement on your own data, with a grader or a reward function of your own."""

    task: TaskOptions
    run_options: PlannedRunOptions
    model_options: ModelOptions = ModelOptions()
    scale: ScaleOptions = ScaleOptions()
    method: str = "grpo"
    """grpo, dr_grpo, dapo, rloo, reinforce_pp, ppo, gspo, cispo or expert_iteration."""
    samples: int | None = None
    """Samples per task (the group); the method's own number if not given (grpo 8, dapo 16, rloo 4, ppo 1, ...)."""
    kl: float = 0.0
    """Weight of the divergence from the starting model; 0 loads no reference."""
    entropy: float = 0.0
    """Weight of an entropy bonus."""
    updates: int | None = None
    """Optimizer steps per batch of rollouts; the method's own number if not given."""
    with_: Annotated[str | None, tyro.conf.arg(name="with")] = None
    """Parts of published systems, separated by commas, such as entropy.kl_cov,diversity.positive (see list)."""
    truncated: str = "train"
    """Replies cut off by --max-new: train (as they were graded), mask (not trained), penalise (DAPO's soft penalty)."""
    held_out: str | None = None
    """Data file or dataset of tasks that are only evaluated, with the same columns."""
    held_out_split: str = "test"
    """Its split, if it is a Hugging Face dataset."""

    def run(self) -> None:
        from posttrain.ranks import joined

        one_of(self.method, METHODS, "--method")
        one_of(self.truncated, TRUNCATED, "--truncated")
        self.scale.check(self.model_options.model)
        if self.run_options.eval_every and not self.held_out:
            raise ValueError(f"--eval-every {self.run_options.eval_every} needs tasks to evaluate: give --held-out")
        if self.run_options.dry_run:
            from posttrain.plan import plan

            policy, recipe = self.prepared()
            tasks, _ = self.tasks()
            policy.check(tasks)
            plan(policy, tasks, recipe, self.settled(), self.described()).show()
        elif self.scale.cluster:
            self.train_on_cluster(self.scale.cluster)
        else:
            with joined(self.model_options.device):
                self.train()

    def train(self) -> None:
        """On this process, or on each rank of several."""
        from posttrain.step import train

        tasks, held_out = self.tasks()
        policy, recipe = self.prepared()
        spread_if_several(policy)
        if recipe.reference is not None and not getattr(recipe.reference, "shards", None):
            recipe.reference.model.to(policy.device)  # type: ignore[attr-defined]  (whole on every rank)
        with self.scale.engine(policy, self.run_options.out) as sampler:
            session = train(policy, tasks, recipe, self.settled(), held_out=held_out, sampler=sampler)
        finish(session.directory.path)

    def train_on_cluster(self, address: str) -> None:
        from posttrain.scale.asynchronous import Players
        from posttrain.scale.cluster import Work, train_on_cluster

        scale = self.scale
        players = Players(
            scale.samplers,
            scale.sampler or "policy",
            tuple(scale.engine_options().items()),
            scale.at_once,
            gpus=scale.gpus,
            staleness=scale.staleness,
            rule=scale.stale,  # type: ignore[arg-type]  (checked)
        )
        self.tasks()  # mistakes in data and reward show here, before there is a cluster
        self.task.reward()
        there = self.from_anywhere()
        work = Work(there.prepared, there.tasks, there.settled(), players)
        finish(train_on_cluster(address, work, scale.learners, scale.gpus))

    def from_anywhere(self) -> Train:
        """The same with absolute paths: processes of a cluster have working directories of their own."""
        file, colon, function = self.task.grade.rpartition(":")
        task = replace(self.task, data=absolute(self.task.data), grade=f"{absolute(file)}{colon}{function}")
        model = self.model_options.model
        model = model if model in ("tiny", "smollm2") else absolute(model)
        return replace(
            self,
            task=task,
            held_out=self.held_out and absolute(self.held_out),
            run_options=replace(self.run_options, out=str(Path(self.run_options.out).absolute())),
            model_options=replace(self.model_options, model=model),
        )

    def tasks(self) -> tuple[list[Task], list[Task]]:
        """Those to train on, and those that are held out."""
        held_out = self.task.held_out(self.held_out, self.held_out_split)
        return self.task.tasks(), held_out

    def prepared(self) -> tuple[TextPolicy, Recipe]:
        policy = self.model_options.policy()
        return policy, self.recipe(policy, self.task.reward())

    def settled(self) -> Run:
        return self.run_options.run(**self.described())

    def described(self) -> dict[str, Any]:
        return {**own_settings(self), **self.task.describe(), **vars(self.model_options)}

    def recipe(self, policy: TextPolicy, reward: Reward) -> Recipe:
        """The method's recipe with this command's options in it."""
        from posttrain import method
        from posttrain.loss import entropy_bonus, total
        from posttrain.recipe import finished
        from posttrain.reward import overlong

        options: dict[str, Any] = {} if self.samples is None else {"samples": self.samples}
        if self.method in ("dr_grpo", "dapo"):
            options["max_new"] = self.model_options.max_new
        if self.kl and self.method not in ("grpo", "rloo", "reinforce_pp", "ppo"):
            raise ValueError(f"--kl {self.kl}: the method {self.method} has no divergence term; use grpo, or --kl 0")
        if self.kl:
            options |= {"kl": self.kl, "reference": policy.frozen()}
        if self.method == "ppo":
            from posttrain.policy.value import Critic, Gae

            options["advantage"] = Gae(Critic(policy, lr=(self.run_options.lr or 1e-5)))
        if self.updates is not None:
            options["updates"] = self.updates
        if self.truncated == "penalise" and self.method == "dapo":
            raise ValueError("--truncated penalise: the method dapo does so already")
        if self.truncated == "penalise":
            reward = overlong(reward, self.model_options.max_new, max(self.model_options.max_new // 5, 1))
        recipe = method.METHODS[self.method](reward, **options)
        if self.with_:
            from posttrain.cli.combination import named, with_parts
            from posttrain.core import SMALL_MODEL

            recipe = with_parts(
                recipe, named(self.with_), sum(p.numel() for p in policy.model.parameters()) < SMALL_MODEL
            )
        loss: Loss = total((1.0, recipe.loss), (self.entropy, entropy_bonus)) if self.entropy else recipe.loss
        keep = recipe.keep

        def kept(row: Row) -> bool:
            return keep(row) and finished(row)

        return replace(recipe, loss=loss, keep=kept if self.truncated == "mask" else keep)


def absolute(path: str) -> str:
    """A path that is there, in full; anything else (a Hub id, nothing) as it is."""
    return str(Path(path).absolute()) if path and Path(path).exists() else path
