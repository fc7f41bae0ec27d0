"""ReaL on a laptop: small database programs in words, really executed and really analysed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import posttrain as pt
from posttrain.lab.world.queries import Queries, Query, python
from posttrain.lab.world.words import Size, base, demonstrations
from posttrain.sandbox import Memo, Sandbox, sandbox
from posttrain.systems.real import recipe
from posttrain.systems.real.detectors import DETECTORS
from posttrain.systems.real.measures import ATTACK, verdicts
from posttrain.systems.real.problems import Problem
from posttrain.systems.real.reward import Hybrid, evaluation
from posttrain.systems.real.unit_tests import StdinTests

TINY = Size(hidden=64, layers=2, steps=500, rows=32)
STEPS, PER_STEP, SAMPLES, UPDATES = 30, 8, 16, 2
RATE, CRITIC_RATE = 1e-3, 1e-3
TRAINED, HELD_OUT = 240, 48  # questions
CASES = 2  # that a reply is tested with in training


def problem(query: Query, key: str) -> Problem:
    return Problem(key, "safesql", query.prompt, StdinTests(query.construct, query.cases, together=True))


def task(query: Query, key: str, most: int | None = None) -> pt.Task[Problem]:
    made = problem(query, key)
    return pt.Task(key, (pt.user(query.prompt),), made if most is None else made.with_cases(most))


def training_tasks(world: Queries) -> list[pt.Task[Problem]]:
    return [task(one, f"training-{i}", CASES) for i, one in enumerate(world.queries(TRAINED, "training"))]


def held_out_tasks(world: Queries, count: int = HELD_OUT) -> list[pt.Task[Problem]]:
    return [task(one, f"test-{i}") for i, one in enumerate(world.queries(count, "test", held_out=True))]


def reward(box: Sandbox | Memo, detector_weight: float) -> Hybrid:
    return Hybrid(box, {"safesql": {"taint": DETECTORS["taint"]}}, {"safesql": detector_weight}, read=python)


def measures(lab: pt.Lab) -> pt.Measures:
    """Of sampled replies on held-out schemas, with the attack as the detector that nobody was trained on."""
    with sandbox() as box:
        asked = held_out_tasks(lab.world, lab.budget.items(HELD_OUT))
        played = lab.evaluate(asked, evaluation(box, python), samples=4).rollouts
        found = [(one.task.truth, one.text) for one in played]
        rows = verdicts(box, reward(box, 0.5), found, {"taint": DETECTORS["taint"], "mypy": DETECTORS["mypy"]})
    return {
        "function": mean([one["function"] for one in rows]),
        "quality": mean([one["quality"][ATTACK] for one in rows]),
        "func-qual": mean([one["function"] and one["quality"][ATTACK] for one in rows]),
        "taint-free": mean([one["quality"]["taint"] for one in rows]),
        "typed": mean([one["quality"]["mypy"] for one in rows]),
        "gamed": mean([one["quality"]["taint"] and not one["quality"][ATTACK] for one in rows]),
    }


def mean(values: Sequence[bool | None]) -> float:
    known = [float(value) for value in values if value is not None]
    return statistics.fmean(known) if known else 0.0


def arm(detector_weight: float) -> pt.Arm:
    """PPO on the weighted mean of the detector and the tests."""

    def run(seed: int, budget: pt.Budget) -> pt.Measures:
        world = Queries(seed)
        lab = pt.Lab(seed, budget, world, base(world, seed, budget.size(TINY)))
        with sandbox() as box:
            paid = reward(Memo(box), detector_weight)
            made = recipe(paid, lab.policy, samples=SAMPLES, critic_lr=CRITIC_RATE, updates=UPDATES)
            lab.train(training_tasks(world), made, steps=STEPS, per_step=PER_STEP, lr=RATE)
        return measures(lab)

    return run


def continued(seed: int, budget: pt.Budget) -> pt.Measures:
    """More supervised steps on the same programs: as many of them as reinforcement samples."""
    world = Queries(seed)
    lab = pt.Lab(seed, budget, world, base(world, seed, budget.size(TINY)))
    shown = demonstrations(world, pt.mix(seed, "continued"))
    pt.tiny.warm_start(lab.policy, shown, budget.steps(STEPS), PER_STEP * SAMPLES, RATE)
    return measures(lab)


ARMS: Mapping[str, pt.Arm] = {
    "base": pt.trial(Queries, None, measures, size=TINY),
    "SFT continued": continued,
    "tests only": arm(0.0),
    "detector only": arm(1.0),
    "ReaL": arm(0.3),
}
PICTURE = "func-qual"
CLAIMS = pt.claims("""
    ReaL's replies are safe and right more often than those of tests only
        paper: the hybrid reward against unit tests alone, in Func-Qual; Quality here is a real attack
        func-qual in [0, 1]: ReaL > tests only
    ReaL's replies are safe and right more often than those of the detector only
        paper: the hybrid reward against the detector alone, in Func-Qual
        func-qual in [0, 1]: ReaL > detector only
    ReaL's replies are safe and right more often than those of supervised learning
        paper: SafeSQL 0.847 against 0.682 (3B), with supervised learning on as many programs as are sampled
        func-qual in [0, 1]: ReaL > SFT continued
    ReaL's replies are safe and right more often than those of the model it starts from
        paper: SafeSQL 0.847 against 0.271 (3B)
        func-qual in [0, 1]: ReaL > base
    tests alone make programs no safer
        ours: within 0.1 of the model it starts from
        quality in [0, 1]: tests only < base + 0.1
    the detector alone costs function
        ours: what has no query, or another one, is safe
        function in [0, 1]: detector only < base
    ReaL costs no function against tests only
        ours: within 0.05
        function in [0, 1]: ReaL > tests only - 0.05
    the detector is not gamed
        ours: less than 5 % of ReaL's replies are clean to the detector and fall to the attack
        gamed in [0, 1]: ReaL < 0.05
""")
HEADLINE = pt.Headline("ReaL's replies are safe and right more often than those of supervised learning")
SMOKE = pt.Smoke(
    """
    laptop
    train --data {problems_with_tests} --max-new 6 --samples 2 --cases 1 --held-out {problems_with_tests}
    sft --data {problems_with_tests}
    evaluate --data {problems_with_tests} --max-new 6 --detectors taint ruff
    """,
    {"lab.TRAINED": 4, "lab.HELD_OUT": 2, "lab.SAMPLES": 2},
)
