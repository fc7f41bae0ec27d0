"""RL-Wall on a laptop: walks, learnt from few problems or many, with a spurious cue or without."""

from __future__ import annotations

import statistics

import posttrain as pt
from posttrain.lab.world.navigation import Navigation, is_right
from posttrain.lab.world.words import Size
from posttrain.systems.rl_wall import recipe
from posttrain.systems.rl_wall.sweep import sweep_temperatures, verification

TINY = Size(hidden=48, layers=2, steps=1500)


def measures(lab: pt.Lab) -> pt.Measures:
    tests = lab.world.problems(lab.budget.items(96), "test")
    sweep = sweep_temperatures(lab.policy, tests, pt.each(is_right), samples=32, seed=lab.seed)
    hot = sweep.found[1.4]
    samples = {t: sweep.found[t].rollouts for t in (0.2, 1.4)}
    return {
        **sweep.measures,
        "temperature dependence": sweep.dependence,
        **{f"plan at {t:g}": statistics.fmean(map(lab.world.plan_is_right, found)) for t, found in samples.items()},
        **{
            f"execute at {t:g}": statistics.fmean(map(lab.world.execution_is_right, found))
            for t, found in samples.items()
        },
        "verify": verification(hot) if 0 < hot.reward < 1 else 0.5,
        "within reach": 1 - lab.world.out_of_reach(tests),
    }


def arm(problems: int, beta: float, steps: int = 0) -> pt.Arm:
    """Trained on so many problems; 0: the base model. A large `beta` leaves no spurious cue in the demonstrations."""
    return pt.trial(
        lambda seed: Navigation(seed, beta=beta),
        (lambda lab: recipe(pt.each(is_right), lab.policy, epochs=2)) if problems else None,
        measures,
        steps=steps,
        per_step=16,
        lr=5e-4,
        max_norm=0.2,
        size=TINY,
        tasks=lambda lab: lab.world.problems(problems, "train"),
    )


ARMS = {
    "base": arm(0, 0.3),
    "128 problems": arm(128, 0.3, 100),
    "128 problems, 200 steps": arm(128, 0.3, 200),
    "2000 problems": arm(2000, 0.3, 200),
    "base, no cue": arm(0, 100.0),
    "128 problems, no cue": arm(128, 100.0, 100),
}
CLAIMS = pt.claims("""
    GRPO makes accuracy less dependent on temperature
        paper: temperature distillation; here by what is lost from 0.2 to 1.4
        temperature dependence: 128 problems < base
    GRPO raises precision
        paper: pass@1 from 0.48 to 0.60, the largest over temperatures (released notebooks); here at 1.4
        pass@1 at 1.4: 128 problems > base
    GRPO does not raise coverage
        paper: the coverage wall; its own runs gain 0.05 and 0.13 of pass@128, so here a rise of at most 0.13
        coverage: base > 128 problems - 0.13
    more problems break the coverage wall
        paper: the wall falls with more problems; here by at least 0.05
        coverage: 2000 problems > base + 0.05
    more problems raise coverage at equal steps
        ours: 2,000 problems against 128, both for 200 steps
        coverage in [0, 1]: 2000 problems > 128 problems, 200 steps
    fewer spurious cues break the coverage wall
        paper: the wall falls with less spurious correlation; here by at least 0.05
        coverage: 128 problems, no cue > base, no cue + 0.05
    GRPO makes execution robust to temperature
        paper: GRPO mainly strengthens Execute; here at 1.4
        execute at 1.4: 128 problems > base
    GRPO improves execution
        ours: at a temperature of 0.2, where sharpening alone gains little
        execute at 0.2: 128 problems > base
    GRPO does not improve the plan
        paper: GRPO does not learn to plan; here a rise of at most 0.03
        plan at 0.2 in [0, 1]: base > 128 problems - 0.03
""")
HEADLINE = pt.Headline(
    "GRPO does not raise coverage",
    "coverage rises from 0.84 to 0.93, within the 0.13 by which it rises in the authors' own runs",
)
SMOKE = pt.Smoke(
    """
    laptop
    laptop --no-spurious
    train --data {questions} --held-out {questions} --max-new 6 --samples 2
    judge --data {questions} --max-new 6 --samples 2
    judge --data {questions} --max-new 6 --judge {checkpoint}
    """,
    {"stages.TESTS": 8, "stages.SAMPLES": 2},
)
