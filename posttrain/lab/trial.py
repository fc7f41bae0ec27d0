"""A trial: one arm of a claim on one seed. A world, a recipe that trains a tiny model in it, and what is measured.

    ARMS = {
        "grpo": trial(Modes, lambda lab: pt.grpo(each(right)), accuracy, steps=150, per_step=32, lr=1e-3),
        "base": trial(Modes, None, accuracy),
    }

An arm is called with a seed and a `Budget`, and returns its measures. `QUICK` is a budget that only tries the code:
nothing else needs to know how small a smoke test is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, TypeVar

from posttrain.core import Env, Metrics, Reward, Sampler, Task
from posttrain.episode import single_turn
from posttrain.evaluation import Evaluation, evaluate
from posttrain.lab.world import pictures
from posttrain.lab.world.words import Size, base
from posttrain.policy.text import TextPolicy
from posttrain.recipe import Recipe
from posttrain.step import train_in_memory
from posttrain.stream import Source

Measures: TypeAlias = Mapping[str, float]
AnySize = TypeVar("AnySize", Size, pictures.Size)


@dataclass(frozen=True, slots=True)
class Budget:
    """The most that an arm may spend; None: as much as it wants."""

    most_steps: int | None = None  # of reinforcement or of supervised learning
    most_items: int | None = None  # tasks, demonstrations, dialogues: whatever is counted
    most_warm: int | None = None  # steps that make a base model

    def steps(self, wanted: int) -> int:
        return wanted if self.most_steps is None else min(wanted, self.most_steps)

    def items(self, wanted: int) -> int:
        return wanted if self.most_items is None else min(wanted, self.most_items)

    def size(self, wanted: AnySize) -> AnySize:
        """The base model's size, trained for fewer steps."""
        return wanted if self.most_warm is None else replace(wanted, steps=min(wanted.steps, self.most_warm))


FULL = Budget()
QUICK = Budget(most_steps=4, most_items=8, most_warm=40)

Arm: TypeAlias = Callable[[int, Budget], Measures]


@dataclass(slots=True)
class Lab:
    """An arm while it runs: what recipes are made of, and measures are taken from."""

    seed: int
    budget: Budget
    world: Any
    policy: TextPolicy
    others: Mapping[str, Sampler] = field(default_factory=dict)  # players that evaluations ask besides the policy
    history: list[Metrics] = field(default_factory=list)  # one for each step of training
    notes: dict[str, Any] = field(default_factory=dict)  # what an arm's own functions leave for one another

    def evaluate(
        self, tasks: Sequence[Task], reward: Reward, env: Env = single_turn, *, seed: int | None = None, **options: Any
    ) -> Evaluation:
        """Samples of the policy, graded; `options` are those of `posttrain.evaluate` (samples, temperature)."""
        players = {"policy": self.policy, **self.others}
        return evaluate(players, tasks, reward, env, seed=self.seed if seed is None else seed, **options)

    def train(
        self,
        tasks: Sequence[Task] | Source,
        recipe: Recipe,
        *,
        steps: int,
        per_step: int,
        lr: float,
        watch: Callable[[int], Metrics | None] = lambda step: None,
        **options: Any,
    ) -> None:
        """`posttrain.train_in_memory` within the budget; the metrics of its steps are added to `history`."""
        self.history += train_in_memory(
            self.policy,
            tasks,
            recipe,
            steps=self.budget.steps(steps),
            per_step=self.budget.items(per_step),
            lr=lr,
            seed=self.seed,
            watch=watch,
            **options,
        )


def trial(
    world: Callable[[int], Any],
    recipe: Callable[[Lab], Recipe] | None,
    measure: Callable[[Lab], Measures],
    *,
    steps: int = 0,
    per_step: int = 32,
    lr: float = 1e-3,
    size: Size = Size(),
    max_norm: float = 1.0,
    tasks: Callable[[Lab], Sequence[Task] | Source] = lambda lab: lab.world.training_tasks(),
    policy: Callable[[Any, int, Budget], TextPolicy] | None = None,
    watch: Callable[[Lab, int], Metrics | None] = lambda lab, step: None,
) -> Arm:
    """The arm that trains a world's base model by a recipe, and measures it; without a recipe, the base model itself.

    world    of a seed
    recipe   made when the base model is there: of its `Lab`
    tasks    that it is trained on
    policy   another way to make the base model than `posttrain.lab.world.words.base`
    watch    called before each step and after the last, as by `train_in_memory`
    """

    def arm(seed: int, budget: Budget) -> Measures:
        place = world(seed)
        model = policy(place, seed, budget) if policy else base(place, seed, budget.size(size))
        lab = Lab(seed, budget, place, model)
        if recipe is not None:
            made = recipe(lab)
            options: dict[str, Any] = {"max_norm": max_norm, "watch": lambda step: watch(lab, step)}
            lab.train(tasks(lab), made, steps=steps, per_step=per_step, lr=lr, **options)
        return measure(lab)

    return arm


@dataclass(frozen=True)
class Smoke:
    """How a system is tried in seconds: command lines for its stages, and small values for its constants.

    lines      a run each, as one would type it: the stage and its options; {questions} and the like name files of the
               tests. A line that begins with an option continues the one before it.
    constants  by their place in the system, such as "lab.STEPS"
    """

    lines: str
    constants: Mapping[str, Any] = field(default_factory=dict)

    @property
    def runs(self) -> list[tuple[str, str]]:
        """Stage and options of each run."""
        whole = re.sub(r"\s*\n\s*--", " --", self.lines)
        split = [line.strip().partition(" ") for line in whole.splitlines() if line.strip()]
        return [(stage, options) for stage, _, options in split]
