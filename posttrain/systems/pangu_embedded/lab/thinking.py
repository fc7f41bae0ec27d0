"""Fast, slow and automatic thinking in one model, on chains of operations."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterator, Sequence

import posttrain as pt
from posttrain.lab.world.chains import Chains, Mode, Problem, answers_at_once, is_right
from posttrain.lab.world.words import Size, base
from posttrain.systems.pangu_embedded.dual import fast_enough

BOTH = Size(hidden=48, layers=2, steps=300, rows=96, rate=3e-3)  # supervised on both manual modes
LABELLED, STEPS, RATE, TESTED = 4000, 300, 2e-3, 1000
Label = Callable[[pt.TextPolicy, Chains, Sequence[Problem], int], list[bool]]


def by_fast_answers(samples: int, least: int) -> Label:
    """A problem is easy where the model's own fast answers are right so often."""

    def label(policy: pt.TextPolicy, world: Chains, problems: Sequence[Problem], seed: int) -> list[bool]:
        fast = [world.task(problem, "fast") for problem in problems]
        return fast_enough(policy, fast, pt.each(is_right), samples, least, pt.mix(seed, "labels"))

    return label


def at_random(policy: pt.TextPolicy, world: Chains, problems: Sequence[Problem], seed: int) -> list[bool]:
    """As many easy ones as by four fast answers, anywhere: what the labels know, and not their share."""
    easy = by_fast_answers(4, 3)(policy, world, problems, seed)
    random.Random(pt.mix(seed, "shuffled")).shuffle(easy)
    return easy


def arm(label: Label) -> pt.Arm:
    def run(seed: int, budget: pt.Budget) -> pt.Measures:
        world = Chains(seed)
        policy = base(world, seed, budget.size(BOTH))
        draw = random.Random(pt.mix(seed, "labelled"))
        problems = [world.draw_problem(draw) for _ in range(budget.items(LABELLED))]
        easy = label(policy, world, problems, seed)
        rows = fusion_rows(world, list(zip(problems, easy, strict=True)), seed)
        pt.tiny.warm_start(policy, rows, budget.steps(STEPS), BOTH.rows, RATE)
        found = measures(policy, world, seed, budget.items(TESTED))
        return found | {"labelled fast": statistics.fmean(easy)}

    return run


def fusion_rows(world: Chains, labelled: Sequence[tuple[Problem, bool]], seed: int) -> Iterator[pt.Demonstration]:
    """Half automatic prompts, answered as their labels say, and half manual ones, so that these stay as they are."""
    draw = random.Random(pt.mix(seed, "fusion"))
    while True:
        if draw.random() < 0.5:
            problem, easy = draw.choice(labelled)
            yield world.demonstration_of(problem, "auto", world.reply(problem, slow=not easy))
        else:
            yield world.demonstration(draw)


def measures(policy: pt.TextPolicy, world: Chains, seed: int, problems: int) -> dict[str, float]:
    drawn = [world.draw_problem(random.Random(pt.mix(seed, "test", i)), held_out=True) for i in range(problems)]
    out: dict[str, float] = {}
    for mode in ("fast", "slow", "auto"):
        found = evaluation_in(mode, policy, world, drawn, seed)
        out |= {mode: found.reward, f"{mode} tokens": found.length}
        if mode == "auto":
            out["chosen fast"] = statistics.fmean(answers_at_once(group[0]) for group in found.groups)
    out["auto over fast"] = out["auto"] - out["fast"]
    return out


def evaluation_in(
    mode: Mode, policy: pt.TextPolicy, world: Chains, problems: Sequence[Problem], seed: int
) -> pt.Evaluation:
    tasks = [world.task(problem, mode) for problem in problems]
    return pt.evaluate({"policy": policy}, tasks, pt.each(is_right), seed=pt.mix(seed, "answers"))


ARMS = {
    "labels of 4": arm(by_fast_answers(4, 3)),
    "labels of 1": arm(by_fast_answers(1, 1)),
    "labels at random": arm(at_random),
}
CLAIMS = pt.claims("""
    automatic mode keeps the accuracy of slow mode
        paper: adaptive mode keeps accuracy with shorter chains; here within 3 points of slow mode
        auto in [0, 1]: labels of 4 > slow: labels of 4 - 0.03
    automatic mode takes fewer tokens than slow mode
        paper: about half the tokens on CMMLU (v1.1)
        auto tokens: labels of 4 < slow tokens: labels of 4
    automatic mode is far more accurate than fast mode
        paper: by at least 20 points (a condition in the facts)
        auto over fast: labels of 4 > 0.2
    labels from four fast answers beat labels from one
        ours: 3 of 4 must be right, or 1 of 1, which a lucky guess can be
        auto in [0, 1]: labels of 4 > labels of 1
    the labels help by what they know, not by how many say `fast`
        ours: the same labels, given to other problems
        auto: labels of 4 > labels at random
""")
