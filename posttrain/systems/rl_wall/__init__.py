"""RL-Wall: Plan, Execute, Verify, and the coverage wall (arXiv:2505.22756).

Solving is to plan, to execute and to verify. GRPO mainly makes execution robust: accuracy stops depending on the
temperature (temperature distillation), and the problems that are solved at all stay the same (the coverage wall). In a
tiny world of walks both can be seen, and what breaks the wall: more problems to learn from, or fewer spurious cues.

    judge  plan, execution and answer of any solution, by another model
    tree   the samples of a problem as a tree of their tokens
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from posttrain.advantage import normalised
from posttrain.core import Reward, Sampler, Task
from posttrain.evaluation import Evaluation, evaluate
from posttrain.kl import k3, kl_to_reference
from posttrain.loss import clipped, entropy_bonus, token_mean, total
from posttrain.measure import RIGHT, auc, coverage
from posttrain.policy.text import TextPolicy
from posttrain.recipe import Part, Recipe

TEMPERATURES = (0.2, 0.6, 1.0, 1.4)


@dataclass(frozen=True, slots=True)
class Sweep:
    """Samples of every task at several temperatures."""

    found: Mapping[float, Evaluation]

    def precision(self, temperature: float) -> float:
        """Mean solve probability: pass@1 at a temperature."""
        return self.found[temperature].reward

    @property
    def coverage(self) -> float:
        """Share of tasks solved at least once, at the temperature where it is largest. It grows with the samples."""
        return max(coverage(found.values) for found in self.found.values())

    @property
    def dependence(self) -> float:
        """How much precision is lost from the lowest to the highest temperature; distilled: little."""
        return self.precision(min(self.found)) - self.precision(max(self.found))

    @property
    def measures(self) -> dict[str, float]:
        return {**{f"pass@1 at {t:g}": self.precision(t) for t in self.found}, "coverage": self.coverage}


def sweep_temperatures(
    policy: Sampler,
    tasks: Sequence[Task],
    reward: Reward,
    *,
    temperatures: Sequence[float] = TEMPERATURES,
    samples: int = 64,
    seed: int = 0,
) -> Sweep:
    """Sample every task at every temperature (the paper's are 0.001 to 2, with 64 samples)."""
    players = {"policy": policy}
    return Sweep({t: evaluate(players, tasks, reward, samples=samples, seed=seed, temperature=t) for t in temperatures})


def verification(found: Evaluation) -> float:
    """Verify, without a judge: the chance that the model finds a right answer of its own likelier than a wrong one.

    By the log-probability per token of each sample; NaN when all are right, or all wrong.
    """
    samples = [rollout for group in found.groups for rollout in group]
    likely = [float(rollout.turns[-1].reply.logp.mean()) for rollout in samples]
    return auc(likely, [value >= RIGHT for values in found.values for value in values])


def recipe(reward: Reward, policy: TextPolicy, samples: int = 8, epochs: int = 4) -> Recipe:
    """GRPO as released: clip 0.2, KL 0.001 to the start, entropy 0.001, four epochs."""
    return Recipe(
        reward,
        advantage=normalised,
        loss=total((1.0, clipped()), (0.001, kl_to_reference(k3)), (0.001, entropy_bonus)),
        reduce=token_mean,
        samples=samples,
        epochs=epochs,
        reference=policy.frozen_copy(),
    )


PARTS: Mapping[str, Part] = {
    "epochs": lambda plain, tiny: replace(plain, epochs=2 if tiny else 4),
    "entropy": lambda plain, tiny: replace(plain, loss=total((1.0, plain.loss), (0.001, entropy_bonus))),
}
