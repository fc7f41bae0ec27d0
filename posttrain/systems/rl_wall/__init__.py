"""RL-Wall: Plan, Execute, Verify, and the coverage wall (arXiv:2505.22756).

Solving is to plan, to execute and to verify. GRPO mainly makes execution robust: accuracy stops depending on the
temperature (temperature distillation), and the problems that are solved at all stay the same (the coverage wall). In a
tiny world of walks both can be seen, and what breaks the wall: more problems to learn from, or fewer spurious cues.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from posttrain.advantage import normalised
from posttrain.cli.options import ModelOptions, RunOptions, TaskOptions
from posttrain.core import Reward, Score, Task
from posttrain.evaluation import Evaluation, evaluate
from posttrain.kl import k3, kl_to_reference
from posttrain.lab.claim import SHARE, Claim
from posttrain.lab.world.navigation import Navigation, right
from posttrain.lab.world.words import Size, base
from posttrain.loss import clipped, entropy_bonus, token_mean, total
from posttrain.measure import RIGHT, auc, coverage
from posttrain.policy.text import TextPolicy
from posttrain.recipe import Part, Recipe
from posttrain.reward import each
from posttrain.run.directory import write_json
from posttrain.run.session import Session
from posttrain.step import train, train_in_memory
from posttrain.systems.rl_wall.judge import assessed, shares
from posttrain.systems.rl_wall.tree import write_trees

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


def swept(
    policy: TextPolicy,
    tasks: Sequence[Task],
    reward: Reward,
    *,
    temperatures: Sequence[float] = TEMPERATURES,
    samples: int = 64,
    seed: int = 0,
) -> Sweep:
    """Sample every task at every temperature (the paper's are 0.001 to 2, with 64 samples)."""
    plain, found = policy.sampling, {}
    for temperature in temperatures:
        policy.sampling = replace(plain, temperature=temperature)
        found[temperature] = evaluate({"policy": policy}, tasks, reward, samples=samples, seed=seed)
    policy.sampling = plain
    return Sweep(found)


def verifies(found: Evaluation) -> float:
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
        reference=policy.frozen(),
    )


PARTS: Mapping[str, Part] = {}


# ---- at two scales

TINY = Size(hidden=48, layers=2, steps=1500)


def laptop(
    problems: int = 128,
    spurious: bool = True,
    run: RunOptions = RunOptions("runs/rl-wall", steps=100, tasks=16, lr=5e-4, max_norm=0.2),
) -> Session:
    """Walks: sweep the base model, train on so many problems, sweep again; solution trees of a few problems.

    problems  that it is trained on
    spurious  contexts depend on the action, a cue that is none (--no-spurious: they do not)
    """
    world = Navigation(run.seed, beta=0.3 if spurious else 100.0)
    policy = base(world, run.seed, TINY)
    tests = world.problems(96, "test")
    made = recipe(each(right), policy, epochs=2)
    described = {"problems": problems, "spurious": spurious}
    return measured(policy, world.problems(problems, "train"), tests, made, run, 32, described)


def full(
    task: TaskOptions,
    model: ModelOptions,
    held_out: str,
    run: RunOptions = RunOptions("runs/rl-wall", steps=200, tasks=32, lr=1e-6),
    samples: int = 64,
    judge: str | None = None,
) -> Session:
    """Your checkpoint on MATH, swept on a held-out file (MATH-500) before and after, 64 samples a problem.

    held_out  data of the problems of both sweeps
    samples   of each of them, at every temperature
    judge     a checkpoint, or `self`, that is asked of plans, executions and answers of the trained model's samples
    """
    policy = model.policy()
    made = recipe(task.reward(), policy, epochs=1)
    tests = task.held_out(held_out)
    session = measured(policy, task.tasks(), tests, made, run, samples, {**task.describe(), **vars(model)})
    if judge:
        asked = policy if judge == "self" else replace(model, model=judge, lora=0).policy()
        found = evaluate({"policy": policy}, tests, made.reward)
        pairs = [
            (rollout, score.value >= RIGHT)
            for group, scores in zip(found.groups, found.scores, strict=True)
            for rollout, score in zip(group, scores, strict=True)
            if isinstance(score, Score)
        ]
        rollouts, right_ones = [rollout for rollout, _ in pairs], [truth for _, truth in pairs]
        for name, value in shares(assessed(asked, rollouts), right_ones).items():
            print(f"{name:>12} {value:.3f}")
    return session


def measured(
    policy: TextPolicy,
    tasks: Sequence[Task],
    tests: Sequence[Task],
    made: Recipe,
    run: RunOptions,
    samples: int,
    described: Mapping[str, object],
) -> Session:
    """Sweep, train, sweep; the sweeps are printed, the trees written beside the run."""
    before = swept(policy, tests, made.reward, samples=samples)
    session = train(policy, tasks, made, run.run(**described), held_out=tests)
    after = swept(policy, tests, made.reward, samples=samples)
    print(f"{'temperature':>12}" + "".join(f"{t:>8g}" for t in TEMPERATURES) + f"{'coverage':>10}")
    for name, sweep in (("before", before), ("after", after)):
        print(f"{name:>12}" + "".join(f"{sweep.precision(t):8.3f}" for t in TEMPERATURES) + f"{sweep.coverage:10.3f}")
    sweeps = {
        name: {**{f"pass@1 at {t:g}": sweep.precision(t) for t in sweep.found}, "coverage": sweep.coverage}
        for name, sweep in (("before", before), ("after", after))
    }
    write_json(Path(run.out) / "sweeps.json", {"samples": samples, **sweeps})
    write_trees(after.found[1.0], policy.tokenizer, Path(run.out) / "trees")
    return session


# ---- claims


def arm(problems: int, beta: float, steps: int = 0) -> Callable[[int, bool], dict[str, float]]:
    def run(seed: int, quick: bool) -> dict[str, float]:
        world = Navigation(seed, beta=beta)
        policy = base(world, seed, Size(steps=60) if quick else TINY)
        if problems:
            made = recipe(each(right), policy, epochs=2)
            train_in_memory(
                policy,
                world.problems(problems, "train"),
                made,
                steps=4 if quick else steps,
                per_step=16,
                lr=5e-4,
                max_norm=0.2,
                seed=seed,
            )
        tests = world.problems(12 if quick else 96, "test")
        sweep = swept(policy, tests, each(right), samples=32, seed=seed)
        hot = sweep.found[1.4]
        samples = {t: [rollout for group in sweep.found[t].groups for rollout in group] for t in (0.2, 1.4)}
        return {
            **{f"pass@1 at {t:g}": sweep.precision(t) for t in TEMPERATURES},
            "coverage": sweep.coverage,
            "temperature dependence": sweep.dependence,
            **{f"plan at {t:g}": statistics.fmean(map(world.planned, found)) for t, found in samples.items()},
            **{f"execute at {t:g}": statistics.fmean(map(world.executed, found)) for t, found in samples.items()},
            "verify": verifies(hot) if 0 < hot.reward < 1 else 0.5,
            "within reach": 1 - world.out_of_reach(tests),
        }

    return run


ARMS = {
    "base": arm(0, 0.3),
    "128 problems": arm(128, 0.3, 100),
    "128 problems, 200 steps": arm(128, 0.3, 200),
    "2000 problems": arm(2000, 0.3, 200),
    "base, no cue": arm(0, 100.0),
    "128 problems, no cue": arm(128, 100.0, 100),
}
CLAIMS = (
    Claim(
        "GRPO makes accuracy less dependent on temperature",
        "temperature distillation; here by what is lost from 0.2 to 1.4",
        "temperature dependence",
        "128 problems",
        "base",
        larger=False,
    ),
    Claim(
        "GRPO raises precision",
        "pass@1 from 0.48 to 0.60, the largest over temperatures (released notebooks); here at 1.4",
        "pass@1 at 1.4",
        "128 problems",
        "base",
    ),
    Claim(
        "GRPO does not raise coverage",
        "the coverage wall; here a rise of at most 0.03",
        "coverage",
        "base",
        "128 problems",
        margin=0.03,
    ),
    Claim(
        "more problems break the coverage wall",
        "the wall falls with more problems; here by at least 0.05",
        "coverage",
        "2000 problems",
        "base",
        margin=-0.05,
    ),
    Claim(
        "more problems raise coverage at equal steps",
        "2,000 problems against 128, both for 200 steps",
        "coverage",
        "2000 problems",
        "128 problems, 200 steps",
        control=True,
        bounds=SHARE,
    ),
    Claim(
        "fewer spurious cues break the coverage wall",
        "the wall falls with less spurious correlation; here by at least 0.05",
        "coverage",
        "128 problems, no cue",
        "base, no cue",
        margin=-0.05,
    ),
    Claim(
        "GRPO makes execution robust to temperature",
        "GRPO mainly strengthens Execute; here at 1.4",
        "execute at 1.4",
        "128 problems",
        "base",
    ),
    Claim(
        "GRPO improves execution",
        "at a temperature of 0.2, where sharpening alone gains little",
        "execute at 0.2",
        "128 problems",
        "base",
        control=True,
    ),
    Claim(
        "GRPO does not improve the plan",
        "GRPO does not learn to plan; here a rise of at most 0.03",
        "plan at 0.2",
        "base",
        "128 problems",
        margin=0.03,
        bounds=SHARE,
    ),
)
