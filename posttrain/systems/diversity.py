"""Diversity-aware policy optimisation, R1-zero-Div, and Potential@k (arXiv:2505.23433).

GRPO with a term that keeps the policy wide on right samples only. The entropy of the policy is estimated on the sampled
tokens, -rho log pi, whose gradient is -(1 + log pi) grad pi: it raises every token below 1/e, which is what one wants
of a right sample's tokens and not of a wrong one's.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from posttrain.advantage import normalised
from posttrain.cli.options import ModelOptions, RunOptions, TaskOptions
from posttrain.core import Batch, Density, Group, Loss, Metrics, Reward
from posttrain.evaluation import Evaluation, evaluate
from posttrain.kl import k3, kl_to_reference
from posttrain.lab.claim import SHARE, Claim
from posttrain.lab.world.modes import Modes, distinct_right, right
from posttrain.lab.world.words import Size, base
from posttrain.loss import clipped, entropy_bonus, log_ratio, sequence_mean, total
from posttrain.measure import RIGHT, mean_pass_at_k, potential_at_k
from posttrain.policy.text import TextPolicy
from posttrain.recipe import Part, Recipe
from posttrain.reward import each, weighted
from posttrain.run.session import Session
from posttrain.step import train, train_in_memory

Method = Literal["positive", "all", "grpo", "entropy_bonus"]


def diversity(right_only: bool = True, part: str | None = None) -> Loss:
    """-J_Div: rho log pi, whose gradient runs through the ratio and through the log-probability.

    On policy the ratio is one, and its gradient is the whole effect. `part` names the reward's part that says whether
    a sample is right; None reads the whole reward. `right_only=False` is the paper's ablation on all samples.
    """

    def loss(batch: Batch, now: Density) -> tuple[Tensor, Metrics]:
        counts = batch.earned(part) >= RIGHT if right_only else torch.ones_like(now.logp, dtype=torch.bool)
        cost = log_ratio(batch, now).exp() * now.logp * counts
        return cost, {"diversity": -cost.mean().item(), "right_share": counts.float().mean().item()}

    return loss


# ---- the measures: how different the solutions are, and how much there is to gain

MACROS = re.compile(r"\\[,;:!]|\\q?quad\b")  # that only make space
COMPARED = re.compile(r"[<>!]=")  # no equation
SPACING = re.compile(r"\s+|\.$")


def equations(text: str) -> list[str]:
    """The equations of a solution, without spaces and spacing macros; chains a = b = c count each step."""
    found: list[str] = []
    for line in re.split(r"[$\n;]|,(?!\d)|\. ", MACROS.sub(" ", text)):
        if COMPARED.search(line):
            continue
        sides = [SPACING.sub("", side) for side in line.split("=")]
        found += [f"{a}={b}" for a, b in pairwise(sides) if a and b]
    return found


def distinct_equations(texts: Sequence[Sequence[str]]) -> float:
    """Div-Equ: per question, distinct equations over all equations of its samples; the mean over questions.

    texts [P][G]. Questions without any equation are left out. Raises ValueError when none has one.
    """
    shares = []
    for samples in texts:
        found = [equation for text in samples for equation in equations(text)]
        if found:
            shares.append(len(set(found)) / len(found))
    if not shares:
        raise ValueError("none of the samples holds an equation: Div-Equ is for solutions that calculate")
    return statistics.fmean(shares)


def distinct_share(groups: Sequence[Group]) -> float:
    """Distinct replies over all replies, per question: the same measure where a reply is one solution."""
    return statistics.fmean(len({rollout.text for rollout in group}) / len(group) for group in groups)


def potential(greedy: Evaluation, sampled: Evaluation, k: int) -> dict[str, float]:
    """Potential@k as the text defines it, and pass@k - pass@1, which Appendix B describes."""
    first = [values[0] for values in greedy.values]
    return {
        "potential": potential_at_k(first, sampled.values, k),
        "gain to pass@k": mean_pass_at_k(sampled.values, k) - statistics.fmean(value >= RIGHT for value in first),
    }


# ---- the method

PAPER, TINY = 0.01, 0.5  # lambda: in a tiny world all rewards saturate, and a hundredth cannot be seen
SYSTEM = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant first thinks about the "
    "reasoning process and then gives the answer. The Assistant should 1) identify the core concepts and formulas, "
    "2) break the solution into logical numbered steps, and 3) verify it by another method or by substitution. "
    "The final answer stands in \\boxed{}."
)


def recipe(
    reward: Reward, method: Method = "positive", weight: float = PAPER, *, part: str | None = None, samples: int = 6
) -> Recipe:
    """GRPO with a mean per sequence and the diversity term; `entropy_bonus` is the plain entropy at the same weight."""
    terms: dict[str, list[tuple[float, Loss]]] = {
        "grpo": [],
        "positive": [(weight, diversity(True, part))],
        "all": [(weight, diversity(False))],
        "entropy_bonus": [(weight, entropy_bonus)],
    }
    loss = total((1.0, clipped()), *terms[method])
    return Recipe(reward, advantage=normalised, loss=loss, reduce=sequence_mean, samples=samples)


PARTS: Mapping[str, Part] = {
    "positive": lambda plain, tiny: replace(
        plain, loss=total((1.0, plain.loss), (TINY if tiny else PAPER, diversity()))
    ),
    "all": lambda plain, tiny: replace(
        plain, loss=total((1.0, plain.loss), (TINY if tiny else PAPER, diversity(False)))
    ),
}


# ---- at two scales

EVEN = (0.40, 0.35, 0.25)  # prior of the modes, all of which are right here


def laptop(
    method: Method = "positive",
    weight: float = TINY,
    run: RunOptions = RunOptions("runs/diversity", steps=150, tasks=32, lr=5e-4),
) -> Session:
    """Solution modes, all of them right: how many does the policy keep?

    method  diversity of right samples only (positive, as published) or of all; or what it is compared with
    weight  lambda of the diversity term, or of the entropy bonus
    """
    world = Modes(run.seed, EVEN, noise=0.4, hard=False)
    made = recipe(each(right), method, weight, samples=8)
    settings = {"method": method, "weight": weight}
    return train(base(world, run.seed), world.training(), made, run.run(**settings), held_out=world.held_out())


def full(
    task: TaskOptions,
    model: ModelOptions,
    run: RunOptions = RunOptions("runs/diversity", steps=230, tasks=64, lr=3e-6, schedule="cosine"),
    method: Method = "positive",
    weight: float = PAPER,
    kl: float = 1e-4,
) -> Session:
    """GSM8K as published: 6 samples, lambda 0.01, KL 1e-4; accuracy 1 and format 0.1 are ours.

    Give --temperature 0.9 --max-new 756 too. `--system` is `posttrain.systems.diversity.SYSTEM` if not given.

    method  diversity of right samples only (positive, as published) or of all; or what it is compared with
    weight  lambda of the diversity term, or of the entropy bonus
    kl      weight of the divergence from the model it starts from; 0 keeps no reference
    """
    task = replace(task, system=task.system or SYSTEM)
    policy: TextPolicy = model.policy()
    graded = weighted(accuracy=(1.0, task.reward()), format=(0.1, each(lambda rollout: "\\boxed{" in rollout.text)))
    made = recipe(graded, method, weight, part="accuracy")
    if kl:
        made = replace(made, loss=total((1.0, made.loss), (kl, kl_to_reference(k3))), reference=policy.frozen())
    described = {"method": method, "weight": weight, "kl": kl, **task.describe(), **vars(model)}
    return train(policy, task.tasks(), made, run.run(**described))


# ---- claims

SAMPLES = 16


def world_of(seed: int) -> Modes:
    return Modes(seed, EVEN, noise=0.4, hard=False)


def size(quick: bool, steps: int = 600) -> Size:
    return Size(steps=60 if quick else steps)


def greedy(policy: TextPolicy, world: Modes, seed: int) -> Evaluation:
    policy.sampling = replace(policy.sampling, temperature=0.0)
    found = evaluate({"policy": policy}, world.everything(), each(right), seed=seed)
    policy.sampling = replace(policy.sampling, temperature=1.0)
    return found


def measured(policy: TextPolicy, world: Modes, seed: int) -> dict[str, float]:
    sampled = evaluate({"policy": policy}, world.everything(), each(right), samples=SAMPLES, seed=seed)
    first = greedy(policy, world, seed)
    return {
        "greedy accuracy": first.reward,
        "sampled accuracy": sampled.reward,
        "distinct right": statistics.fmean(map(distinct_right, sampled.groups)),
        "gain to pass@16": potential(first, sampled, SAMPLES)["gain to pass@k"],
    }


def arm(method: Method, weight: float) -> Callable[[int, bool], dict[str, float]]:
    def run(seed: int, quick: bool) -> dict[str, float]:
        world = world_of(seed)
        policy = base(world, seed, size(quick))
        made = recipe(each(right), method, weight, samples=8)
        history = train_in_memory(
            policy, world.training(), made, steps=4 if quick else 150, per_step=32, lr=5e-4, seed=seed
        )
        final = statistics.fmean([step["entropy"] for step in history if "entropy" in step][-10:])
        return {**measured(policy, world, seed), "final entropy": final}

    return run


def base_arm(seed: int, quick: bool) -> dict[str, float]:
    world = world_of(seed)
    return measured(base(world, seed, size(quick)), world, seed)


def models_arm(seed: int, quick: bool) -> dict[str, float]:
    """The correlation study: small models of other training length and noise; Potential@16 against diversity."""
    kinds = [(noise, steps) for noise in (0.2, 0.35, 0.5) for steps in ((40, 60) if quick else (150, 300, 600))]
    potentials, diversities, passes = [], [], []
    for noise, steps in kinds:
        world = Modes(seed, EVEN, noise=noise, hard=False)
        policy = base(world, seed, Size(steps=steps))
        sampled = evaluate({"policy": policy}, world.everything(), each(right), samples=SAMPLES, seed=seed)
        first = greedy(policy, world, seed)
        potentials.append(potential(first, sampled, SAMPLES)["potential"])
        diversities.append(distinct_share(sampled.groups))
        passes.append(first.reward)
    known = [i for i, value in enumerate(potentials) if np.isfinite(value) and passes[i] > (0.0 if quick else 0.4)]
    if len(known) < 3:
        return {"correlation": 0.0, "models": float(len(known))}
    pair = np.corrcoef([diversities[i] for i in known], [potentials[i] for i in known])
    return {"correlation": float(np.nan_to_num(pair[0, 1])), "models": float(len(known))}


ARMS = {
    "base": base_arm,
    "grpo": arm("grpo", 0.0),
    "positive": arm("positive", TINY),
    "positive, paper's weight": arm("positive", PAPER),
    "all samples": arm("all", TINY),
    "entropy bonus": arm("entropy_bonus", 0.3),
    "models": models_arm,
}
CLAIMS = (
    Claim(
        "the diversity term finds more distinct solutions", "Div-Equ 75.0 to 79.3", "distinct right", "positive", "grpo"
    ),
    Claim(
        "the diversity term keeps accuracy",
        "36.7 to 64.4 with the term, to 61.0 without; here a loss of at most two points",
        "greedy accuracy",
        "positive",
        "grpo",
        margin=0.02,
        bounds=SHARE,
    ),
    Claim(
        "the diversity term raises accuracy", "64.4 against 61.0", "greedy accuracy", "positive", "grpo", bounds=SHARE
    ),
    Claim(
        "the diversity term belongs on right samples only",
        "lambda 0.01: 64.4 on right samples, 63.2 on all",
        "greedy accuracy",
        "positive",
        "all samples",
    ),
    Claim(
        "the diversity term is more accurate than an entropy bonus of 0.3",
        "0.3 is the weight in the facts that we were given; no other was tried",
        "greedy accuracy",
        "positive",
        "entropy bonus",
        control=True,
        bounds=SHARE,
    ),
    Claim(
        "the diversity term adds distinct solutions at the paper's weight too",
        "lambda 0.01 is the best that the paper tried",
        "distinct right",
        "positive, paper's weight",
        "grpo",
    ),
    Claim(
        "potential correlates with diversity",
        "over 12 models with pass@1 above 0.4, R2 = 0.81",
        "correlation",
        "models",
        0.0,
    ),
)
