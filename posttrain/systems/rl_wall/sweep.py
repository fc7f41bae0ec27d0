"""Temperature sweeps: precision and coverage at every temperature, before a run and after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import posttrain as pt
from posttrain.systems.rl_wall.tree import write_trees

TEMPERATURES = (0.2, 0.6, 1.0, 1.4)


@dataclass(frozen=True, slots=True)
class Sweep:
    """Samples of every task at several temperatures."""

    found: Mapping[float, pt.Evaluation]

    def precision(self, temperature: float) -> float:
        """Mean solve probability: pass@1 at a temperature."""
        return self.found[temperature].reward

    @property
    def coverage(self) -> float:
        """Share of tasks solved at least once, at the temperature where it is largest. It grows with the samples."""
        return max(pt.measure.coverage(found.values) for found in self.found.values())

    @property
    def dependence(self) -> float:
        """How much precision is lost from the lowest to the highest temperature; distilled: little."""
        return self.precision(min(self.found)) - self.precision(max(self.found))

    @property
    def measures(self) -> dict[str, float]:
        return {**{f"pass@1 at {t:g}": self.precision(t) for t in self.found}, "coverage": self.coverage}


def sweep_temperatures(
    policy: pt.Sampler,
    tasks: Sequence[pt.Task],
    reward: pt.Reward,
    *,
    temperatures: Sequence[float] = TEMPERATURES,
    samples: int = 64,
    seed: int = 0,
) -> Sweep:
    """Sample every task at every temperature (the paper's are 0.001 to 2, with 64 samples)."""
    players = {"policy": policy}
    return Sweep(
        {t: pt.evaluate(players, tasks, reward, samples=samples, seed=seed, temperature=t) for t in temperatures}
    )


def verification(found: pt.Evaluation) -> float:
    """Verify, without a judge: the chance that the model finds a right answer of its own likelier than a wrong one.

    By the log-probability per token of each sample; NaN when all are right, or all wrong.
    """
    likely = [float(rollout.turns[-1].reply.logp.mean()) for rollout in found.rollouts]
    return pt.measure.auc(likely, [value >= pt.measure.RIGHT for values in found.values for value in values])


@dataclass(frozen=True)
class Sweeps:
    """The sweeps of a run before and after it, kept in OUT/sweeps.json, with the trees of the one after it."""

    out: Path
    tests: Mapping[str, Sequence[pt.Task]]  # sets by name; one alone has no name
    reward: pt.Reward
    samples: int

    @property
    def file(self) -> Path:
        return self.out / "sweeps.json"

    def before(self, session: pt.Session) -> None:
        """Sweep as a run starts. Once it has taken a step, what was found then stays."""
        if session.step == 0:
            session.synchronise_engine()
            self.record("before", self.sweep(session.engine or session.policy))

    def after(self, player: pt.Sampler, tokenizer: Any) -> None:
        """Sweep the trained model, and print both."""
        sweeps = self.sweep(player)
        self.record("after", sweeps)
        if pt.ranks.is_primary():
            for name, sweep in sweeps.items():
                write_trees(sweep.found[1.0], tokenizer, self.out / "trees" / name)
            self.show()

    def sweep(self, player: pt.Sampler) -> dict[str, Sweep]:
        return {
            name: sweep_temperatures(player, tasks, self.reward, samples=self.samples)
            for name, tasks in self.tests.items()
        }

    def record(self, when: str, sweeps: Mapping[str, Sweep]) -> None:
        if pt.ranks.is_primary():
            kept = pt.read_json(self.file) if when == "after" and self.file.is_file() else {"samples": self.samples}
            found = {
                f"{name}/{key}" if name else key: value
                for name, sweep in sweeps.items()
                for key, value in sweep.measures.items()
            }
            pt.write_json(self.file, {**kept, when: found})

    def show(self) -> None:
        kept = pt.read_json(self.file)
        print(f"{'pass@1 at':>12}" + "".join(f"{t:>8g}" for t in TEMPERATURES) + f"{'coverage':>10}")
        for name in self.tests:
            place = f"{name}/" if name else ""
            for when in [when for when in ("before", "after") if when in kept]:
                found = {key.removeprefix(place): value for key, value in kept[when].items() if key.startswith(place)}
                row = "".join(f"{found[f'pass@1 at {t:g}']:8.3f}" for t in TEMPERATURES)
                print(f"{when:>12}{row}{found['coverage']:10.3f}{f'  {name}' if name else ''}")
