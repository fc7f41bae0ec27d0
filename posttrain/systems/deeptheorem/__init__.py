"""DeepTheorem: prove or disprove, rewarded by the verdict, made informative by variants (arXiv:2505.23754).

GRPO on natural-language theorems. Only the verdict is paid, and it could be guessed; but every theorem comes with a
statement that is true and one that is false, and counts as decided when all of its statements are.

    verdict     the reward, and what it refuses to read
    statements  theorems from files, and how many are decided; the floors of constant answers
    process     a judge's four marks of a proof
    pipeline    theorems with variants from questions of your own
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from posttrain.cli.options import ModelOptions, RunOptions, hashed, naming
from posttrain.lab.world.theorems import Theorems
from posttrain.recipe import Part
from posttrain.reward import each
from posttrain.run.session import Session
from posttrain.step import train
from posttrain.supervised import sft
from posttrain.systems.deeptheorem.experiments import ARMS, CLAIMS, SHOWN, examined, read_much, recipe
from posttrain.systems.deeptheorem.stages import (
    Building,
    build,
    decided_first,
    decided_last,
    evaluated,
    first,
    last,
    templated,
)
from posttrain.systems.deeptheorem.statements import divided, proofs, statements, together
from posttrain.systems.deeptheorem.verdict import guarded, right

__all__ = ["ARMS", "CLAIMS", "PARTS", "SHOWN", "full", "laptop", "recipe"]

Stage = Literal["train", "sft", "evaluate", "construct"]

PARTS: Mapping[str, Part] = {
    "guarded": lambda plain, tiny: replace(plain, reward=guarded(plain.reward)),
}


def laptop(
    variants: bool = True,
    run: RunOptions = RunOptions("runs/deeptheorem", steps=60, tasks=16, lr=3e-4),
) -> Session:
    """Theorems about sums, some of which hold and some of which do not.

    variants  train on contradictory variants too (--no-variants: on statements that hold only)
    """
    world, policy = Theorems(run.seed), read_much(run.seed)
    made, tests = recipe(each(right), samples=16), world.held_out()
    begun = first(lambda session: examined(policy, world, run.seed))
    described = run.run(variants=variants)
    session = train(policy, world.training(variants), made, described, held_out=tests, begun=begun)
    return last(session, examined(policy, world, run.seed))


def full(
    data: str,
    model: ModelOptions,
    building: Building,
    run: RunOptions = RunOptions("runs/deeptheorem", steps=1000, tasks=128, warmup=50),
    stage: Stage = "train",
    held_out: str | None = None,
    keep_out: int = 0,
    limit: int | None = None,
    split: str = "train",
    samples: int = 64,
    proof: str = "proof",
    judge: str | None = None,
) -> Session | None:
    """Train a base model on theorems with variants, decide a test file by theorem, or construct such theorems.

    Published: --max-new 8192 to train, 16000 to evaluate. Without --template the system's own is taken: plain text that
    ends inside an open <think> tag.

    data       train, sft: Jiahao004/DeepTheorem, or a file with its columns; evaluate: the same, or rows of
               problem_name, prompt, answer; construct: questions of your own
    stage      what to do; sft is the baseline, supervised on a column of proofs
    held_out   train, sft: a test file whose theorems are decided, greedily, before and after
    keep_out   train, sft: how many theorems of --data are kept out of training, and decided too
    limit      use only the first so many theorems, each with all its statements
    split      split of a Hugging Face dataset
    samples    train: samples of a statement
    proof      sft: column of the proofs
    judge      evaluate: who marks the proofs: a chat server (http://...), a Hub id or a folder
    """
    refuse(stage, {"held_out": held_out, "keep_out": keep_out, "judge": judge, **vars(building)})
    if stage == "construct":
        if building.writer is None:
            raise ValueError("--stage construct needs --writer: a chat server (http://...), a Hub id or a folder")
        build(data, model.player(building.writer, "--writer"), building, model, run, limit, split)
        return None
    tasks, kept = divided(statements(data, limit, split), keep_out, run.seed)
    if stage == "evaluate":
        policy, marker = templated(model), model.player(judge, "--judge") if judge else None
        policy.check(tasks)
        chosen = {"data": data, **hashed(data), "limit": limit, "split": split, "seed": run.seed, "judge": judge}
        evaluated(policy, marker, tasks, {**chosen, **vars(model)}, run)
        return None
    with naming("--data", "--held-out"):
        tests = together(kept, statements(held_out, None, "test") if held_out else [])
    policy = templated(model)
    described = {"stage": stage, "data": data, **hashed(data), "keep_out": keep_out, "held_out": held_out}
    described["held_out_sha256"] = hashed(held_out)["data_sha256"] if held_out else None
    made = run.run(**described, limit=limit, proof=proof, **vars(model))
    policy.check([*tasks, *tests])
    begun = first(lambda session: decided_first(session, tests))
    if stage == "sft":
        session = sft(policy, proofs(data, proof, {task.truth.theorem for task in tasks}, split), made, begun)
    else:
        session = train(policy, tasks, recipe(each(right), samples), made, held_out=tests, begun=begun)
    return last(session, decided_last(session, tests))


TAKEN: Mapping[str, tuple[Stage, ...]] = {
    **dict.fromkeys(("held_out", "keep_out"), ("train", "sft")),
    "judge": ("evaluate",),
    **dict.fromkeys(("writer", "against", "encoder"), ("construct",)),
}


def refuse(stage: Stage, given: Mapping[str, object]) -> None:
    """Raises ValueError for an option of another stage."""
    for name, stages in TAKEN.items():
        if given[name] and stage not in stages:
            raise ValueError(f"--{name.replace('_', '-')} is an option of --stage {' and '.join(stages)}")
