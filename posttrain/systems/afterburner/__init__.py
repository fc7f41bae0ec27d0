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

from posttrain.cli.options import ModelOptions, RunOptions, hashed, naming
from posttrain.lab.world.kata import Katas
from posttrain.lab.world.words import base
from posttrain.preference import dpo, prefer
from posttrain.recipe import Part
from posttrain.reward import each, weighted
from posttrain.run.session import Session
from posttrain.sandbox import sandbox
from posttrain.step import train
from posttrain.supervised import sft
from posttrain.systems.afterburner.claims import ARMS, CLAIMS, SHOWN
from posttrain.systems.afterburner.evaluating import IterationOptions, evaluate, reported
from posttrain.systems.afterburner.experiments import SAMPLES, InWords, bench_of, iterated, rewritings, taught, unseen
from posttrain.systems.afterburner.measuring import MeasuringOptions
from posttrain.systems.afterburner.reward import formed, recipe
from posttrain.systems.afterburner.stages import Stage, TeachingOptions, demonstrations, pairs
from posttrain.systems.afterburner.venus import InMarkdown, executable, problems
from posttrain.systems.afterburner.venus import rewritings as rewritings_of

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
    teaching: TeachingOptions,
    measuring: MeasuringOptions,
    iterating: IterationOptions,
    run: RunOptions = RunOptions("runs/afterburner", steps=100, tasks=32, lr=1e-6),
    stage: Stage = "grpo",
    held_out: str | None = None,
    limit: int | None = None,
    split: str = "train",
    feedback: bool = True,
    original: bool = True,
) -> Session | None:
    """Your checkpoint on problems with tests and people's solutions, such as Elfsong/Venus_Python.

    As published: sft or grpo, then evaluate; --max-new 8192 --temperature 1.

    data      JSONL or Parquet file, or dataset; columns as in Venus (docs/systems/afterburner.md)
    stage     sft, dpo, grpo, or evaluate: iterate greedily, and write OUT/iterations.json
    held_out  grpo: problems whose PASS@1 after one round is followed
    limit     use only the first so many problems
    split     of a dataset
    feedback  whether the policy is told how the code before performed
    original  whether it is shown the code before
    """
    for options in (teaching, measuring, iterating):
        options.check()
    found = problems(data, limit, split)
    with naming("--data", "--held-out"):
        kept_back = problems(held_out, split="test") if held_out else []
    dialogue = InMarkdown(feedback, original)
    described = {"stage": stage, "data": data, **hashed(data), "limit": limit, "split": split, "held_out": held_out}
    described |= {"feedback": feedback, "original": original}
    settings = run.run(**described, **vars(teaching), **vars(measuring), **vars(iterating), **vars(model))
    if stage == "sft":
        return sft(model.policy(), demonstrations(found, teaching.best), settings)
    if stage == "dpo":
        preferred = pairs(found, teaching.pairs_each, teaching.least, run.seed)
        policy = model.policy()
        return prefer(policy, preferred, dpo(teaching.beta), settings, reference=policy.frozen())
    with sandbox() as box:
        bench = measuring.bench(box)
        executable([*found, *kept_back], bench.execute)
        policy = model.policy()
        if stage == "grpo":
            made = recipe(bench, dialogue, teaching.weights(), teaching.samples)
            tasks, tests = (rewritings_of(some, dialogue, run.seed) for some in (found, kept_back))
            return train(policy, tasks, made, settings, held_out=tests)
        print(reported(evaluate(policy, found, bench, dialogue, iterating, settings), Path(run.out)))
    return None
