"""Afterburner on a laptop: a base model, what SFT, DPO and GRPO make of it, all iterated over held-out functions."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import posttrain as pt
from posttrain.lab.world.kata import Kata, Katas, performance_words, reply
from posttrain.lab.world.kata_programs import FAMILIES
from posttrain.lab.world.words import Size, base
from posttrain.sandbox import sandbox
from posttrain.systems.afterburner.iterate import Best, Rewrite, courses, curve, iterate
from posttrain.systems.afterburner.measurement import METRICS, Bench, Metric, Performance
from posttrain.systems.afterburner.reward import recipe

PEOPLE = 40  # solutions of each function by people
BEST = 8  # of them, for SFT; the paper takes 24
PAIRS = 12  # of each function and metric, for DPO; the paper takes 48
ORIGINALS = 4  # solutions to start from, of each function and metric, for GRPO
ROUNDS = (0, 1, 2, 8)  # iterations that are reported; 0 is the first answer, which has nothing to start from
GRPO_STEPS, PER_STEP, SAMPLES, RATE = 200, 16, 16, 1e-3
TAUGHT_STEPS, TAUGHT_ROWS, SFT_RATE, DPO_RATE, BETA = 100, 32, 1e-3, 1e-4, 0.5


@dataclass(frozen=True)
class InWords:
    """The dialogue about katas; without the feedback, or without the code before, as in the ablations."""

    world: Katas
    feedback: bool = True
    original: bool = True

    def prompt(self, task: pt.Task[Rewrite], best: Best) -> tuple[pt.Message, ...]:
        kata, code, told = task.truth.exercise, best.code, best.performance
        assert isinstance(kata, Kata)
        shown = performance_words(told.passed, told.seconds, told.kib) if code and self.feedback else None
        return (pt.user(self.world.question(kata, task.truth.metric, code if self.original else None, shown)),)

    def code(self, text: str) -> str | None:
        """What stands between the last solution tags, if it is the four words of a template."""
        _, opened, rest = text.rpartition("<solution>")
        inside, closed, _ = rest.partition("</solution>")
        words = inside.split()
        known = len(words) == 4 and any(words[0] in family.ways for family in FAMILIES.values())
        return " ".join(words) if opened and closed and known else None


def open_bench() -> Bench:
    """A bench in a sandbox of its own. Code of katas does not try to win, so calls are timed three times a process."""
    return Bench(sandbox(), wall_s=10.0, repeats=1, laps=3, at_once=4)


def task_of(world: Katas, kata: Kata, metric: Metric, original: str | None = None, number: int = 0) -> pt.Task[Rewrite]:
    key = f"{kata.family}-{kata.size}-{kata.edge}-{metric}-{number}"
    return pt.Task(key, (pt.user(world.question(kata, metric, original)),), Rewrite(kata, metric, original))


def held_out_tasks(world: Katas, limit: int | None = None) -> list[pt.Task[Rewrite]]:
    """Held-out functions, the first `limit` of them, from nothing, by each metric."""
    return [task_of(world, kata, metric) for kata in world.katas(held_out=True)[:limit] for metric in METRICS]


def rewritings(world: Katas) -> list[pt.Task[Rewrite]]:
    """For GRPO: each function and metric with random solutions by people, passing or failing, as originals."""
    return [
        task_of(world, kata, metric, original, number)
        for kata in world.katas()
        for metric in METRICS
        for number, original in enumerate(originals(world, kata, metric))
    ]


def originals(world: Katas, kata: Kata, metric: Metric) -> list[str]:
    draw = random.Random(pt.mix(world.seed, "originals", kata.family, kata.size, kata.edge, metric))
    return draw.choices(world.people_code(kata, PEOPLE), k=ORIGINALS)


def passed_solutions(world: Katas, bench: Bench, katas: Sequence[Kata]) -> dict[Kata, list[tuple[str, Performance]]]:
    """People's solutions of each function that pass, measured in one batch. Raises ValueError if the sandbox fails."""
    trials = [(kata, code) for kata in katas for code in world.people_code(kata, PEOPLE)]
    out: dict[Kata, list[tuple[str, Performance]]] = {kata: [] for kata in katas}
    for (kata, code), found in zip(trials, bench(trials), strict=True):
        if isinstance(found, pt.Invalid):
            raise ValueError(found.reason)
        if found.passed:
            out[kata].append((code, found))
    return out


def best_first(solutions: Iterable[tuple[str, Performance]], metric: Metric) -> list[tuple[str, Performance]]:
    return sorted(solutions, key=lambda one: one[1].of(metric))


def demonstrations(world: Katas, bench: Bench) -> list[pt.Demonstration]:
    """For SFT: of each function and metric the best solutions by people, from nothing."""
    return [
        pt.Demonstration((pt.user(world.question(kata, metric)), pt.assistant(reply(code))))
        for kata, solutions in passed_solutions(world, bench, world.katas()).items()
        for metric in METRICS
        for code, _ in best_first(solutions, metric)[:BEST]
    ]


def pairs(world: Katas, bench: Bench) -> list[pt.Pair]:
    """For DPO: of each function and metric random pairs of solutions that pass, the better one chosen."""
    draw, out = random.Random(pt.mix(world.seed, "pairs")), list[pt.Pair]()
    for kata, solutions in passed_solutions(world, bench, world.katas()).items():
        if len(solutions) < 2:
            continue
        for metric in METRICS:
            for _ in range(PAIRS):
                one, other = best_first(draw.sample(solutions, 2), metric)
                if one[1].of(metric) < other[1].of(metric):
                    out.append(pt.Pair((pt.user(world.question(kata, metric)),), reply(one[0]), reply(other[0])))
    return out


def learn_from_people(policy: pt.TextPolicy, world: Katas, bench: Bench, method: str, run: pt.Run) -> pt.Session:
    if method == "sft":
        return pt.sft(policy, demonstrations(world, bench), run)
    return pt.prefer(policy, pairs(world, bench), pt.dpo(BETA), run, reference=policy.frozen_copy())


def curve_of(
    policy: pt.TextPolicy,
    world: Katas,
    bench: Bench,
    dialogue: InWords,
    seed: int,
    temperature: float = 0.0,
    limit: int | None = None,
) -> list[dict[str, float]]:
    """PASS@1 and BEYOND after each iteration over held-out functions, the first `limit` of them."""
    people = passed_solutions(world, bench, world.katas(held_out=True)[:limit])
    env = iterate(ROUNDS[-1] + 1, bench, dialogue, temperature)
    played = pt.rollout(env, held_out_tasks(world, limit), {"policy": policy}, 1, seed)
    paths = courses(bench, [group[0] for group in played])
    return curve(paths, lambda kata: [found for _, found in people[kata]])


def measures(lab: pt.Lab, bench: Bench, dialogue: InWords) -> pt.Measures:
    """Of greedy iterations; and of as many samples of the first answer, of which the best is kept."""
    limit = lab.budget.items(len(held_out_tasks(lab.world))) // len(METRICS)
    rows = curve_of(lab.policy, lab.world, bench, dialogue, lab.seed, limit=limit)
    out = {f"{name} {i}": value for i in ROUNDS for name, value in rows[i].items()}
    for name in ("pass", "beyond time"):
        out[f"{name} rise"] = out[f"{name} {ROUNDS[-1]}"] - out[f"{name} {ROUNDS[0]}"]
        out[f"{name} late rise"] = out[f"{name} {ROUNDS[-1]}"] - out[f"{name} {ROUNDS[2]}"]
    blind = InWords(lab.world, feedback=False, original=False)
    rows = curve_of(lab.policy, lab.world, bench, blind, lab.seed, 1.0, limit)
    return out | {f"sampled, {name} {ROUNDS[-1]}": value for name, value in rows[ROUNDS[-1]].items()}


def arm(method: str, feedback: bool = True, original: bool = True) -> pt.Arm:
    def run(seed: int, budget: pt.Budget) -> pt.Measures:
        world, bench = Katas(seed), open_bench()
        dialogue = InWords(world, feedback, original)
        lab = pt.Lab(seed, budget, world, base(world, seed, budget.size(Size())))
        with bench.box:
            if method == "grpo":
                made = recipe(bench, dialogue, samples=SAMPLES)
                lab.train(rewritings(world), made, steps=GRPO_STEPS, per_step=PER_STEP, lr=RATE)
            elif method != "base":
                steps, rate = budget.steps(TAUGHT_STEPS), {"sft": SFT_RATE, "dpo": DPO_RATE}[method]
                with tempfile.TemporaryDirectory() as out:
                    kept = pt.Run(out, steps, TAUGHT_ROWS, rate, seed=seed, save_every=steps, quiet=True)
                    learn_from_people(lab.policy, world, bench, method, kept)
            return measures(lab, bench, dialogue)

    return run


PICTURE = "pass 8"

ARMS = {
    "base": arm("base"),
    "sft": arm("sft"),
    "dpo": arm("dpo"),
    "grpo": arm("grpo"),
    "grpo, no feedback": arm("grpo", feedback=False),
    "grpo, no code": arm("grpo", original=False),
}
CLAIMS = pt.claims("""
    PASS@1 rises over iterations
        paper: 37.3 to 61.7 over ten test-time iterations on Venus
        pass 8: grpo > pass 0: grpo
    BEYOND-T, of time, rises over iterations
        paper: 31.2 to 45.2 over ten test-time iterations on Venus
        beyond time 8: grpo > beyond time 0: grpo
    BEYOND-M, of memory, rises over iterations
        paper: 25.1 to 48.1 at the last iteration on Venus
        beyond memory 8: grpo > beyond memory 0: grpo
    BEYOND-I, of memory integrated over time, rises over iterations
        paper: 16.2 to 39.0 at the last iteration on Venus
        beyond integral 8: grpo > beyond integral 0: grpo
    after iterating, GRPO's code passes more often than SFT's
        paper: 61.7 against 48.7 at iteration 10
        pass 8: grpo > sft
    after iterating, GRPO's code passes more often than DPO's
        paper: 61.7 against 51.7 at iteration 10
        pass 8: grpo > dpo
    after iterating, GRPO's code is faster than SFT's
        paper: 45.2 against 26.8 at iteration 10
        beyond time 8: grpo > sft
    after iterating, GRPO's code is faster than DPO's
        paper: 45.2 against 30.9 at iteration 10
        beyond time 8: grpo > dpo
    SFT's first answers pass more often than the base model's
        paper: 46.0 against 28.0 at iteration 0
        pass 0: sft > base
    DPO's first answers pass more often than the base model's
        paper: 43.0 against 28.0 at iteration 0
        pass 0: dpo > base
    SFT's first answers pass more often than GRPO's
        paper: 46.0 against 37.3 at iteration 0
        pass 0: sft > grpo
    GRPO gains more from iterating than SFT
        paper: 24.4 against 2.7 points
        pass rise: grpo > sft
    GRPO gains more from iterating than DPO
        paper: 24.4 against 8.7 points
        pass rise: grpo > dpo
    GRPO keeps improving after SFT has saturated
        paper: SFT and DPO rapidly saturate, GRPO continuously optimizes; here from iteration 2 to 8, against SFT
        pass late rise: grpo > sft
    feedback from measurements helps GRPO
        paper: 57.0 against 52.5 without it, at iteration 4
        pass 8: grpo > grpo, no feedback
    seeing the original code helps GRPO
        paper: 57.0 against 54.2 without it, at iteration 4
        pass 8: grpo > grpo, no code
    iterating GRPO passes more often than the best of as many samples of SFT
        ours: nine samples of the first answer, of which the best by the same measurements is kept
        pass 8: grpo > sampled, pass 8: sft
    iterating GRPO gives faster code than the best of as many samples of SFT
        ours: nine samples of the first answer, of which the best by the same measurements is kept
        beyond time 8: grpo > sampled, beyond time 8: sft
    iterating GRPO passes more often than the best of as many samples of GRPO
        ours: nine samples of the first answer, of which the best by the same measurements is kept
        pass 8: grpo > sampled, pass 8: grpo
""")
HEADLINE = pt.Headline("PASS@1 rises over iterations")
# The other stages run in tests/test_afterburner.py.
SMOKE = pt.Smoke(
    """
    laptop
    laptop --method dpo
    laptop --no-feedback
    """,
    {"lab.PEOPLE": 8},
)
