"""Afterburner on a laptop, and on checkpoints and problems of the user's own: grpo, sft, dpo, evaluate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import posttrain as pt
from posttrain.sandbox import sandbox
from posttrain.systems.afterburner.evaluation import IterationOptions, iterations, write_table
from posttrain.systems.afterburner.measurement import MEMORY_MIB, TIME_CAP_S, Bench
from posttrain.systems.afterburner.people import demonstrations, pairs
from posttrain.systems.afterburner.reward import Weights, recipe
from posttrain.systems.afterburner.venus import InMarkdown, Problem, check_evaluators, problems, rewritings


@dataclass(frozen=True)
class ProblemOptions:
    """Problems with tests and people's solutions."""

    data: str
    """JSONL or Parquet file, or a dataset such as Elfsong/Venus_Python; columns in docs/systems/afterburner.md."""
    limit: int | None = None
    """Use only the first so many problems."""
    split: str = "train"
    """Split of a dataset."""

    def problems(self) -> list[Problem]:
        return problems(self.data, self.limit, self.split)

    def tests(self, held_out: Sequence[str]) -> dict[str, list[Problem]]:
        """Those of held-out files, by name."""
        return {name: problems(file, split="test") for name, file in pt.named_files(held_out).items()}


@dataclass(frozen=True)
class MeasuringOptions:
    """How code is executed and timed."""

    wall_s: float = TIME_CAP_S
    """Seconds that the tests of one code may take."""
    memory_mib: int = MEMORY_MIB
    """MiB of address space that they may take; more while their memory is measured."""
    repeats: int = 3
    """Times that code is timed; the least counts."""
    side_by_side: int = 1
    """Codes measured at the same time; more is faster and noisier."""

    def __post_init__(self):
        pt.at_least(1, memory_mib=self.memory_mib, repeats=self.repeats, side_by_side=self.side_by_side)
        if not 0 < self.wall_s < math.inf:
            raise ValueError(f"`wall_s={self.wall_s}`: it must be above 0 and finite")

    def bench(self, found: Sequence[Problem]) -> Bench:
        """A bench in a sandbox that ends with it. Raises ValueError for a problem whose evaluator cannot be executed.

        No `with`: on a cluster, a player's recipe outlives the stage that built it.
        """

        options = {"memory_mib": self.memory_mib, "repeats": self.repeats, "at_once": self.side_by_side}
        bench = Bench(sandbox(), self.wall_s, **options)
        pt.ranks.run_on_primary(lambda: check_evaluators(found, bench.execute), "for the evaluators of the data")
        return bench


def laptop(
    method: Literal["grpo", "sft", "dpo"] = "grpo",
    feedback: bool = True,
    original: bool = True,
    run: pt.Run = pt.Run("runs/afterburner", steps=200, tasks=16, lr=1e-3),
) -> pt.Session:
    """Small functions, really executed: pt.train one round at a time, then iterate over functions that are held out.

    The claims pt.train `method=sft` and `method=dpo` with `steps=100` and `tasks=32`, and dpo with `lr=1e-4`.

    method    what teaches
    feedback  tell the policy how the code before performed
    original  show it the code before
    """
    from posttrain.lab.world.kata import Katas
    from posttrain.lab.world.words import base
    from posttrain.systems.afterburner import lab

    world, bench = Katas(run.seed), lab.open_bench()
    dialogue = lab.InWords(world, feedback, original)
    policy = base(world, run.seed)
    with bench.box:
        if method == "grpo":
            made = recipe(bench, dialogue, samples=lab.SAMPLES)
            session = pt.train(policy, lab.rewritings(world), made, run, held_out=lab.held_out_tasks(world))
        else:
            session = lab.learn_from_people(policy, world, bench, method, run)
        print(write_table(lab.curve_of(policy, world, bench, dialogue, run.seed), Path(run.out)))
    return session


def reinforce(
    source: ProblemOptions,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    measuring: MeasuringOptions,
    dialogue: InMarkdown,
    run: pt.Run = pt.Run("runs/afterburner", steps=100, tasks=32, lr=1e-6),
    samples: int = 32,
    zone: float = 0.1,
    repaired: bool = False,
    held_out: tuple[str, ...] = (),
) -> pt.Session:
    """GRPO on one round of the loop, from somebody's solution of each problem, by how the reply is measured to run.

    Give `max_new=8192` for the published length.

    samples   of each task
    zone      relative gains smaller than this count as none
    repaired  code that passes where the original failed also earns for its efficiency, as in the release
    held_out  problems of the same form, whose PASS@1 after one round is followed: FILE, or NAME=FILE
    """
    pt.at_least(1, samples=samples)
    pt.at_least(0, zone=zone)
    found = source.problems()
    tests = source.tests(held_out)
    bench = measuring.bench([*found, *(one for some in tests.values() for one in some)])
    policy = model.policy()
    made = recipe(bench, dialogue, Weights(zone=zone, repaired=repaired), samples)
    held = {name: rewritings(some, dialogue, run.seed) for name, some in tests.items()}
    return scale.train(policy, rewritings(found, dialogue, run.seed), made, run, held_out=held)


# ---- what people teach


def learn_solutions(
    source: ProblemOptions,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    run: pt.Run = pt.Run("runs/afterburner-sft", steps=100, tasks=32, lr=1e-6),
    best: int = 24,
    held_out: tuple[str, ...] = (),
) -> pt.Session:
    """SFT on people's best solutions, from nothing, in the order of what was recorded of them.

    best      solutions of each problem and metric that are learned
    held_out  problems of the same form, of whose best solutions the loss is only measured: FILE, or NAME=FILE
    """
    scale.refuse_sampler()
    pt.at_least(1, best=best)
    tests = {name: demonstrations(some, best) for name, some in source.tests(held_out).items()}
    return pt.sft(model.policy(), demonstrations(source.problems(), best), run, held_out=tests)


def learn_pairs(
    source: ProblemOptions,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    run: pt.Run = pt.Run("runs/afterburner-dpo", steps=100, tasks=32, lr=1e-6),
    pairs_each: int = 48,
    least: int = 48,
    beta: float = 0.1,
    held_out: tuple[str, ...] = (),
) -> pt.Session:
    """DPO on pairs of people's solutions, from nothing: the one recorded as better is chosen.

    pairs_each  pairs of each problem and metric
    least       solutions that a problem must have
    beta        how close the policy stays to the model it starts from
    held_out    problems of the same form, on whose pairs the accuracy is only measured: FILE, or NAME=FILE
    """
    scale.refuse_sampler()
    pt.at_least(1, pairs_each=pairs_each, least=least)
    preferred = pairs(source.problems(), pairs_each, least, run.seed)
    tests = {name: pairs(some, pairs_each, least, run.seed) for name, some in source.tests(held_out).items()}
    policy = model.policy()
    return pt.prefer(policy, preferred, pt.dpo(beta), run, reference=policy.frozen_copy(), held_out=tests)


# ---- the loop at test time


def evaluate(
    source: ProblemOptions,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    measuring: MeasuringOptions,
    iterating: IterationOptions,
    dialogue: InMarkdown,
    output: pt.Output = pt.Output("runs/afterburner-evaluation"),
) -> Path:
    """Iterate greedily from nothing; write OUT/iterations.json: PASS@1 and BEYOND after each iteration.

    Give `max_new=8192` for the published length.
    """
    found = source.problems()
    bench = measuring.bench(found)
    rows = iterations(model.policy(), found, bench, dialogue, iterating, scale, output)
    if pt.ranks.is_primary():
        print(write_table(rows, Path(output.out)))
    return Path(output.out)


STAGES = {"laptop": laptop, "grpo": reinforce, "sft": learn_solutions, "dpo": learn_pairs, "evaluate": evaluate}
