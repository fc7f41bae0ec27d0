"""Numeric evidence on a laptop: reports of three outcomes, and an annotator who misreads three fields in ten."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import posttrain as pt
from posttrain.lab.world.trials import Asked, Counts, Report, Trials
from posttrain.lab.world.words import Size, base, demonstrations
from posttrain.systems.numeric_evidence import recipe
from posttrain.systems.numeric_evidence.effect import NONE, effect
from posttrain.systems.numeric_evidence.measures import Prediction, measures, prediction
from posttrain.systems.numeric_evidence.record import Record, names
from posttrain.systems.numeric_evidence.reward import Density, Truth, reward, stated_conclusion
from posttrain.tiny import warm_start

CLEAN, SILVER = Size(hidden=48, steps=1200, rows=32, rate=5e-3), Size(steps=250, rows=32, rate=1e-3)
WRONG = 0.3
STEPS, PER_STEP, SAMPLES, RATE = 40, 8, 16, 1e-3
CONTINUED, ROWS = 200, 32  # steps of supervised learning in the place of reinforcement
TESTED = 300  # reports
KIND = "dichotomous"


def record_of_counts(counts: Counts) -> Record:
    return dict(zip(names(KIND), map(float, counts), strict=True))


def conclude(counts: Counts) -> str:
    """What the annotator concludes from what they have read; of impossible numbers nothing."""
    found = effect(record_of_counts(counts), KIND)
    return "inconclusive" if found is None else found.conclusion


def world_of(seed: int, wrong: float = WRONG) -> Trials:
    return Trials(conclude, seed, wrong)


def base_model(world: Trials, seed: int, budget: pt.Budget = pt.FULL) -> pt.TextPolicy:
    """It has learnt to copy and to conclude from clean reports, and then from the annotator: SFT on silver."""
    return base(world_of(seed, 0.0), seed, budget.size(CLEAN), (world, budget.size(SILVER)))


def task(report: Report, key: str, asked: Asked = "extract") -> pt.Task[Truth]:
    return pt.Task(key, (pt.user(report.prompt(asked)),), Truth(KIND, record_of_counts(report.counts)))


def tasks(world: Trials, count: int, split: str, asked: Asked = "extract") -> list[pt.Task[Truth]]:
    return [task(report, f"{split}-{i}", asked) for i, report in enumerate(world.reports(count, split))]


def states_right(rollout: pt.Rollout) -> float:
    """1 for the right conclusion, stated by the reply itself."""
    return float(stated_conclusion(rollout.text) == rollout.task.truth.conclusion)


def measures_of(lab: pt.Lab) -> pt.Measures:
    """Of one sample of each held-out report, of greedy replies, and of conclusions that are asked for directly."""
    count = lab.budget.items(TESTED)
    extract, conclude = tasks(lab.world, count, "test"), tasks(lab.world, count, "test", "conclude")
    sampled = measures(predictions(lab, extract))
    greedy = measures(predictions(lab, extract, temperature=0.0))
    direct = measures(predictions(lab, conclude), textual=True)
    directly_greedy = measures(predictions(lab, conclude, temperature=0.0), textual=True)
    return {
        **sampled,
        **{f"{name}, greedy": value for name, value in greedy.items()},
        "F1 directly": direct["F1"],
        "F1 directly, greedy": directly_greedy["F1"],
    }


def predictions(lab: pt.Lab, some: list[pt.Task[Truth]], **options: float) -> list[Prediction]:
    found = lab.evaluate(some, reward(), seed=pt.mix(lab.seed, "test"), **options)
    textual = "conclude" in str(some[0].prompt[0]["content"])
    return [prediction(one.task.key, one.text, one.task.truth, textual) for one in found.rollouts]
