"""Afterburner: code is rewritten again and again, by how it was measured to run (arXiv:2505.23387).

    iterate     ask for better code, execute it, keep the better of both, ask again: the environment
    measuring   seconds, memory and their product in the sandbox; BEYOND, the rank among people's solutions
    reward      repaired or broken, the relative gain, the form of the reply; and GRPO on it
    venus       problems with tests and people's solutions, for checkpoints of your own

SFT learns the best solutions by people, DPO which of two is better, both without anything to start from. GRPO alone
sees what it is asked at test time: some code, and how it performed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from posttrain.options import ModelOptions, RunOptions, hashed
from posttrain.preference import dpo, prefer
from posttrain.recipe import Part
from posttrain.reward import each, weighted
from posttrain.run import Session
from posttrain.sandbox import sandbox
from posttrain.step import train
from posttrain.supervised import sft
from posttrain.systems.afterburner.claims import ARMS, CLAIMS, SHOWN
from posttrain.systems.afterburner.experiments import SAMPLES, InWords, bench_of, iterated, rewritings, taught, unseen
from posttrain.systems.afterburner.measuring import Bench
from posttrain.systems.afterburner.reward import Weights, formed, recipe
from posttrain.systems.afterburner.stages import Stage, demonstrations, evaluated, pairs, reported
from posttrain.systems.afterburner.venus import InMarkdown, problems
from posttrain.systems.afterburner.venus import rewritings as rewritings_of
from posttrain.world.kata import Katas
from posttrain.world.words import base

__all__ = ["ARMS", "CLAIMS", "PARTS", "SHOWN", "full", "laptop", "recipe"]

PARTS: Mapping[str, Part] = {
    "formed": lambda plain, tiny: replace(
        plain,
        reward=weighted(plain=(1.0, plain.reward), format=(0.2, each(lambda rollout: formed(rollout.text)))),
        evaluation=plain.evaluation or plain.reward,
    ),
}


def laptop(
    method: Literal["grpo", "sft", "dpo"] = "grpo",
    feedback: bool = True,
    original: bool = True,
    run: RunOptions = RunOptions("runs/afterburner", steps=200, tasks=16, lr=1e-3),
) -> Session:
    """Small functions, really executed: trained one round at a time, then iterated over functions that are held out.

    method    what teaches; sft and dpo were run with --steps 100 --tasks 32, dpo with --lr 1e-4
    feedback  whether the policy is told how the code before performed
    original  whether it is shown the code before
    """
    world, bench = Katas(run.seed), bench_of()
    dialogue = InWords(world, feedback, original)
    policy = base(world, run.seed)
    described = run.run(method=method, feedback=feedback, original=original)
    with bench.box:
        if method == "grpo":
            made = recipe(bench, dialogue, samples=SAMPLES)
            session = train(policy, rewritings(world), made, described, held_out=unseen(world))
        else:
            session = taught(policy, world, bench, method, described)
        print(reported(iterated(policy, world, bench, dialogue, run.seed), Path(run.out)))
    return session


def full(
    data: str,
    model: ModelOptions,
    run: RunOptions = RunOptions("runs/afterburner", steps=100, tasks=32, lr=1e-6),
    stage: Stage = "grpo",
    held_out: str | None = None,
    limit: int | None = None,
    split: str = "train",
    samples: int = 32,
    best: int = 24,
    pairs_each: int = 48,
    least: int = 48,
    beta: float = 0.1,
    feedback: bool = True,
    original: bool = True,
    wall_s: float = 90.0,
    repeats: int = 3,
    at_once: int = 1,
    zone: float = 0.1,
    repaired: bool = False,
    rounds: int = 10,
    measured: int = 16,
    people: int = 100,
) -> Session | None:
    """Your checkpoint on problems with tests and people's solutions, such as Elfsong/Venus_Python.

    As published: sft or grpo, then evaluate; --max-new 8192 --temperature 1.

    data        JSONL or Parquet file, or dataset; columns as in Venus (docs/systems/afterburner.md)
    stage       sft, dpo, grpo, or evaluate: iterate greedily, and write OUT/iterations.json
    held_out    grpo: problems whose PASS@1 after one round is followed
    limit       use only the first so many problems
    split       of a dataset
    samples     grpo: samples of a task
    best        sft: solutions of each problem and metric that are learned
    pairs_each  dpo: pairs of each problem and metric
    least       dpo: solutions that a problem must have
    beta        dpo
    feedback    whether the policy is told how the code before performed
    original    whether it is shown the code before
    wall_s      seconds that the tests of one code may take
    repeats     times that code is timed, of which the least counts
    at_once     codes measured side by side; more is faster and noisier
    zone        relative gains smaller than this count as none
    repaired    what passes where the original failed also earns for its efficiency, as in the release
    rounds      evaluate: iterations after the first answer
    measured    evaluate: times that what was said is measured
    people      evaluate: solutions of each problem, at most, that it is compared with
    """
    found = problems(data, limit, split)
    dialogue = InMarkdown(feedback, original)
    policy = model.policy()
    described = {"stage": stage, "data": data, **hashed(data), "limit": limit, "samples": samples, **vars(model)}
    if stage == "sft":
        return sft(policy, demonstrations(found, best), run.run(best=best, **described))
    if stage == "dpo":
        preferred = pairs(found, pairs_each, least, run.seed)
        settings = run.run(pairs_each=pairs_each, least=least, beta=beta, **described)
        return prefer(policy, preferred, dpo(beta), settings, reference=policy.frozen())
    with sandbox() as box:
        bench = Bench(box, wall_s, repeats=repeats, at_once=at_once)
        if stage == "grpo":
            made = recipe(bench, dialogue, Weights(zone=zone, repaired=repaired), samples)
            tests = rewritings_of(problems(held_out, split="test"), dialogue, run.seed) if held_out else []
            tasks = rewritings_of(found, dialogue, run.seed)
            return train(policy, tasks, made, run.run(**described), held_out=tests)
        options = {"rounds": rounds, "measured": measured, "people": people, "seed": run.seed}
        rows = evaluated(policy, found, bench, dialogue, **options)
    print(reported(rows, Path(run.out)))
    return None
