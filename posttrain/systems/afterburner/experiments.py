"""The arms of the claims: a base model, and what SFT, DPO and GRPO make of it, all iterated over held-out functions."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from posttrain.core import Invalid, Message, Task
from posttrain.data import Demonstration, Pair
from posttrain.episode import assistant, rollout, user
from posttrain.lab.world.kata import Kata, Katas, measured, reply
from posttrain.lab.world.kata_programs import FAMILIES
from posttrain.lab.world.words import Size, base
from posttrain.policy.text import TextPolicy
from posttrain.preference import dpo, prefer
from posttrain.run.session import Session
from posttrain.run.settings import Run
from posttrain.sandbox import sandbox
from posttrain.seeding import mix
from posttrain.step import train_in_memory
from posttrain.supervised import sft
from posttrain.systems.afterburner.iterate import Best, Rewrite, courses, curve, iterate
from posttrain.systems.afterburner.measuring import METRICS, Bench, Metric, Performance
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
    """The dialogue about katas, or one that leaves out the feedback, or the code."""

    world: Katas
    feedback: bool = True
    original: bool = True

    def prompt(self, task: Task[Rewrite], best: Best) -> tuple[Message, ...]:
        kata, code, told = task.truth.exercise, best.code, best.performance
        assert isinstance(kata, Kata)
        shown = measured(told.passed, told.seconds, told.kib) if code and self.feedback else None
        return (user(self.world.asked(kata, task.truth.metric, code if self.original else None, shown)),)

    def code(self, text: str) -> str | None:
        """Between the last solution tags, as far as it is a template's words."""
        _, opened, rest = text.rpartition("<solution>")
        inside, closed, _ = rest.partition("</solution>")
        words = inside.split()
        known = len(words) == 4 and any(words[0] in family.ways for family in FAMILIES.values())
        return " ".join(words) if opened and closed and known else None


def bench_of() -> Bench:
    """Code of katas is not there to win, so that calls may be timed three times in one process."""
    return Bench(sandbox(), wall_s=10.0, repeats=1, laps=3, at_once=4)


def asked(world: Katas, kata: Kata, metric: Metric, original: str | None = None, number: int = 0) -> Task[Rewrite]:
    key = f"{kata.family}-{kata.size}-{kata.edge}-{metric}-{number}"
    return Task(key, (user(world.asked(kata, metric, original)),), Rewrite(kata, metric, original))


def unseen(world: Katas, limit: int | None = None) -> list[Task[Rewrite]]:
    """Held-out functions, so many of them, from nothing, by each metric."""
    return [asked(world, kata, metric) for kata in world.katas(held_out=True)[:limit] for metric in METRICS]


def rewritings(world: Katas) -> list[Task[Rewrite]]:
    """For GRPO: each function and metric with random solutions by people, passing or failing, as originals."""
    return [
        asked(world, kata, metric, original, number)
        for kata in world.katas()
        for metric in METRICS
        for number, original in enumerate(originals(world, kata, metric))
    ]


def originals(world: Katas, kata: Kata, metric: Metric) -> list[str]:
    draw = random.Random(mix(world.seed, "originals", kata.family, kata.size, kata.edge, metric))
    return draw.choices(world.people(kata, PEOPLE), k=ORIGINALS)


def passed(world: Katas, bench: Bench, katas: Sequence[Kata]) -> dict[Kata, list[tuple[str, Performance]]]:
    """People's solutions of each function that pass, measured in one batch. Raises ValueError if the sandbox fails."""
    trials = [(kata, code) for kata in katas for code in world.people(kata, PEOPLE)]
    out: dict[Kata, list[tuple[str, Performance]]] = {kata: [] for kata in katas}
    for (kata, code), found in zip(trials, bench(trials), strict=True):
        if isinstance(found, Invalid):
            raise ValueError(found.reason)
        if found.passed:
            out[kata].append((code, found))
    return out


def ranked(solutions: Iterable[tuple[str, Performance]], metric: Metric) -> list[tuple[str, Performance]]:
    """Best first."""
    return sorted(solutions, key=lambda one: one[1].of(metric))


def demonstrations(world: Katas, bench: Bench) -> list[Demonstration]:
    """For SFT: of each function and metric the best solutions by people, from nothing."""
    return [
        Demonstration((user(world.asked(kata, metric)), assistant(reply(code))))
        for kata, solutions in passed(world, bench, world.katas()).items()
        for metric in METRICS
        for code, _ in ranked(solutions, metric)[:BEST]
    ]


def pairs(world: Katas, bench: Bench) -> list[Pair]:
    """For DPO: of each function and metric random pairs of solutions that pass, the better one chosen."""
    draw, out = random.Random(mix(world.seed, "pairs")), list[Pair]()
    for kata, solutions in passed(world, bench, world.katas()).items():
        if len(solutions) < 2:
            continue
        for metric in METRICS:
            for _ in range(PAIRS):
                one, other = ranked(draw.sample(solutions, 2), metric)
                if one[1].of(metric) < other[1].of(metric):
                    out.append(Pair((user(world.asked(kata, metric)),), reply(one[0]), reply(other[0])))
    return out


def taught(policy: TextPolicy, world: Katas, bench: Bench, method: str, run: Run) -> Session:
    if method == "sft":
        return sft(policy, demonstrations(world, bench), run)
    return prefer(policy, pairs(world, bench), dpo(BETA), run, reference=policy.frozen())


def arm(method: str, feedback: bool = True, original: bool = True) -> Callable[[int, bool], dict[str, float]]:
    def run(seed: int, quick: bool) -> dict[str, float]:
        world, bench = Katas(seed), bench_of()
        dialogue = InWords(world, feedback, original)
        policy = base(world, seed, Size(steps=60) if quick else Size())
        with bench.box:
            if method == "grpo":
                made = recipe(bench, dialogue, samples=SAMPLES)
                steps = 2 if quick else GRPO_STEPS
                train_in_memory(policy, rewritings(world), made, steps=steps, per_step=PER_STEP, lr=RATE, seed=seed)
            elif method != "base":
                steps, rate = 2 if quick else TAUGHT_STEPS, {"sft": SFT_RATE, "dpo": DPO_RATE}[method]
                with tempfile.TemporaryDirectory() as out:
                    kept = Run(out, steps, TAUGHT_ROWS, rate, seed=seed, save_every=steps, quiet=True)
                    taught(policy, world, bench, method, kept)
            return measures(policy, world, bench, dialogue, seed, 2 if quick else None)

    return run


def iterated(
    policy: TextPolicy,
    world: Katas,
    bench: Bench,
    dialogue: InWords,
    seed: int,
    temperature: float = 0.0,
    limit: int | None = None,
) -> list[dict[str, float]]:
    """PASS@1 and BEYOND after each iteration over held-out functions."""
    people = passed(world, bench, world.katas(held_out=True)[:limit])
    env = iterate(ROUNDS[-1] + 1, bench, dialogue, temperature)
    played = rollout(env, unseen(world, limit), {"policy": policy}, 1, seed)
    paths = courses(bench, [group[0] for group in played])
    return curve(paths, lambda kata: [found for _, found in people[kata]])


def measures(
    policy: TextPolicy, world: Katas, bench: Bench, dialogue: InWords, seed: int, limit: int | None
) -> dict[str, float]:
    """Of greedy iterations; and of as many samples of the first answer, of which the best is kept."""
    rows = iterated(policy, world, bench, dialogue, seed, limit=limit)
    out = {f"{name} {i}": value for i in ROUNDS for name, value in rows[i].items()}
    for name in ("pass", "beyond time"):
        out[f"{name} rise"] = out[f"{name} {ROUNDS[-1]}"] - out[f"{name} {ROUNDS[0]}"]
        out[f"{name} late rise"] = out[f"{name} {ROUNDS[-1]}"] - out[f"{name} {ROUNDS[2]}"]
    blind = InWords(world, feedback=False, original=False)
    rows = iterated(policy, world, bench, blind, seed, 1.0, limit)
    return out | {f"sampled, {name} {ROUNDS[-1]}": value for name, value in rows[ROUNDS[-1]].items()}
