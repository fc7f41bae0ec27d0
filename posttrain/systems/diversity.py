"""Diversity-aware policy optimisation, R1-zero-Div, and Potential@k (arXiv:2505.23433).

GRPO with a term that keeps the policy's entropy up on right samples only. The entropy is estimated on the sampled
tokens as -rho log pi, whose gradient is -(1 + log pi) grad pi: it raises every token whose probability is below 1/e,
which is good for the tokens of a right sample and bad for those of a wrong one.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise, product
from typing import Literal

import numpy as np
import torch
from torch import Tensor

import posttrain as pt
from posttrain.lab.world.modes import Modes, distinct_right, is_right
from posttrain.lab.world.words import Size, base

Method = Literal["positive", "all", "grpo", "entropy_bonus"]


def diversity(right_only: bool = True, part: str | None = None) -> pt.Loss:
    """-J_Div: rho log pi, differentiated through the ratio and through the log-probability.

    On policy the ratio is one, and its gradient is the whole effect. `part` names the part of the reward that says
    whether a sample is right; None takes the whole reward. `right_only=False` is the paper's ablation on all samples.
    """

    def loss(batch: pt.Batch, now: pt.Density) -> tuple[Tensor, pt.Metrics]:
        counts = batch.rewards(part) >= pt.measure.RIGHT if right_only else torch.ones_like(now.logp, dtype=torch.bool)
        cost = pt.log_ratio(batch, now).exp() * now.logp * counts
        return cost, {"diversity": -cost.mean().item(), "right_share": counts.float().mean().item()}

    return loss


# ---- measures: how different the solutions are, and how much there is to gain

BETWEEN = re.compile(r"\\[\[\]()]|[$\n;]|,(?!\d)|[.:](?=\s|$)|<<|>>|\*\*")  # equations, which do not go across
MACROS = re.compile(r"\\[,;:!]|\\q?quad\b|\\(?:text|textbf|mathrm|mbox)\{[^{}]*\}|&")  # space, and prose in mathematics
PROSE = re.compile(
    r"(?<![\\A-Za-z])(?!(?:sin|cos|tan|log|ln|exp|max|min|lim|gcd|lcm|mod|det)(?![A-Za-z]))(?:[A-Za-z]{2,}(?:['-][A-Za-z]{2,})*|[A-Za-z]+'[A-Za-z]+)"
    r"|\b[aAI]\b(?=\s+[A-Za-z]{2})"
)
BULLET = re.compile(r"^\s*[-*•]\s+")
FORMULA = re.compile(  # numbers, operators, letters, and pairs of letters, which are products where they are no words
    r"(?:\\[A-Za-z]+(?![A-Za-z])|(?:[a-z]{1,2}|[A-Z]{1,2})(?![A-Za-z]|\s+[A-Za-z])|\d(?!\s+[A-Za-z]{2})"
    r"|[-+*/^_.,!|(){}\[\]\s])+"
)
WORD = re.compile(  # of two letters, and units
    r"(?<![\\A-Za-z])(?:a[hmnst]|b[ey]|do|eh|go|h[aei]|i[fnst]|m[ey]|no|o[fhknr]|so|to|u[ps]|we"
    r"|cm|mm|km|kg|mg|ml|ft|lb|oz|hr|[gmk]b)(?![A-Za-z])",
    re.IGNORECASE,
)
COMPARED = re.compile(r"[<>!]=")  # no equation
SPACING = re.compile(r"\s+|\.$")
MATHEMATICS = re.compile(r"\d|[A-Za-z]")


def equations(text: str) -> list[str]:
    """The equations of a solution without prose, spaces and spacing macros; chains a = b = c count each step.

    A side that is words alone is none: "the total = 5" holds no equation, "the total = 2 + 3 = 5" holds 2+3=5. Two
    letters are a product where nothing else on their side is a word (ab = 12), and they are none and no unit either.
    """
    found: list[str] = []
    for line in BETWEEN.split(MACROS.sub(" ", text)):
        if "=" in line and not COMPARED.search(line):
            sides = [SPACING.sub("", without_prose(BULLET.sub(" ", side))) for side in line.split("=")]
            found += [f"{a}={b}" for a, b in pairwise(sides) if MATHEMATICS.search(a) and MATHEMATICS.search(b)]
    return found


def without_prose(side: str) -> str:
    """A side of an equation, without its words if it has any."""
    return side if FORMULA.fullmatch(side) and not WORD.search(side) else PROSE.sub(" ", side)


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


def distinct_share(groups: Sequence[pt.Group]) -> float:
    """Distinct replies over all replies, per question: the same measure where a reply is one solution."""
    return statistics.fmean(len({rollout.text for rollout in group}) / len(group) for group in groups)


def potential(greedy: pt.Evaluation, sampled: pt.Evaluation, k: int) -> dict[str, float]:
    """Potential@k as the text defines it, and pass@k - pass@1, which Appendix B describes."""
    first = [values[0] for values in greedy.values]
    return {
        "potential": pt.measure.potential_at_k(first, sampled.values, k),
        "gain to pass@k": pt.measure.mean_pass_at_k(sampled.values, k)
        - statistics.fmean(value >= pt.measure.RIGHT for value in first),
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
    reward: pt.Reward, method: Method = "positive", weight: float = PAPER, *, part: str | None = None, samples: int = 6
) -> pt.Recipe:
    """GRPO with a mean per sequence and the diversity term; `entropy_bonus` is the plain entropy at the same weight."""
    terms: dict[str, list[tuple[float, pt.Loss]]] = {
        "grpo": [],
        "positive": [(weight, diversity(True, part))],
        "all": [(weight, diversity(False))],
        "entropy_bonus": [(weight, pt.entropy_bonus)],
    }
    loss = pt.total((1.0, pt.clipped()), *terms[method])
    return pt.Recipe(reward, advantage=pt.normalised, loss=loss, reduce=pt.sequence_mean, samples=samples)


PARTS: Mapping[str, pt.Part] = {
    "positive": lambda plain, tiny: with_diversity(plain, tiny, right_only=True),
    "all": lambda plain, tiny: with_diversity(plain, tiny, right_only=False),
}


def with_diversity(plain: pt.Recipe, tiny: bool, right_only: bool) -> pt.Recipe:
    """Another method with the diversity term beside its loss; what is right is read from the whole reward."""
    return replace(plain, loss=pt.total((1.0, plain.loss), (TINY if tiny else PAPER, diversity(right_only))))


# ---- at two scales

EVEN = (0.40, 0.35, 0.25)  # prior of the modes, all of which are right here


def world_of(seed: int, noise: float = 0.4) -> Modes:
    return Modes(seed, EVEN, noise=noise, hard=False)


def laptop(
    method: Method = "positive",
    weight: float = TINY,
    run: pt.Run = pt.Run("runs/diversity", steps=150, tasks=32, lr=5e-4),
) -> pt.Session:
    """Solution modes, all of them right: how many does the policy keep?

    method  diversity of right samples only (positive, as published) or of all; or what it is compared with
    weight  lambda of the diversity term, or of the entropy bonus
    """
    world = world_of(run.seed)
    made = recipe(pt.each(is_right), method, weight, samples=8)
    return pt.train(base(world, run.seed), world.training_tasks(), made, run, held_out=world.held_out_tasks())


def learn(
    task: pt.TaskOptions,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    run: pt.Run = pt.Run("runs/diversity", steps=230, tasks=64, lr=3e-6, schedule="cosine"),
    method: Method = "positive",
    weight: float = PAPER,
    kl: float = 1e-4,
    held_out: tuple[str, ...] = (),
) -> pt.Session:
    """GSM8K as published: 6 samples, lambda 0.01, KL 1e-4; accuracy 1 and format 0.1 are ours.

    Give `temperature=0.9` and `max_new=756` too. Without `system`, the system prompt follows the paper's description.

    method    diversity of right samples only (positive, as published) or of all; or what it is compared with
    weight    lambda of the diversity term, or of the entropy bonus
    kl        weight of the divergence from the model it starts from; 0 keeps no reference
    held_out  data of tasks that are only evaluated, by the grader alone: FILE, or NAME=FILE
    """
    task = replace(task, system=task.system or SYSTEM)
    policy, accuracy = model.policy(), task.reward()
    reward = pt.weighted(accuracy=(1.0, accuracy), format=(0.1, pt.each(lambda rollout: "\\boxed{" in rollout.text)))
    made = replace(recipe(reward, method, weight, part="accuracy"), evaluation=accuracy)
    if kl:
        made = replace(
            made, loss=pt.total((1.0, made.loss), (kl, pt.kl_to_reference(pt.k3))), reference=policy.frozen_copy()
        )
    return scale.train(policy, task.tasks(), made, run, held_out=task.tests(held_out))


STAGES = {"laptop": laptop, "train": learn}
SMOKE = pt.Smoke("""
    laptop
    laptop --method all
    train --data {questions} --max-new 6 --held-out {questions}
""")


# ---- claims

SAMPLES = 16


def arm(method: Method, weight: float) -> pt.Arm:
    def measures(lab: pt.Lab) -> pt.Measures:
        final = statistics.fmean([step["entropy"] for step in lab.history if "entropy" in step][-10:])
        return {**solution_measures(lab), "final entropy": final}

    def build_recipe(lab: pt.Lab) -> pt.Recipe:
        return recipe(pt.each(is_right), method, weight, samples=8)

    return pt.trial(world_of, build_recipe, measures, steps=150, per_step=32, lr=5e-4)


def solution_measures(lab: pt.Lab) -> dict[str, float]:
    sampled, first = samples_of(lab)
    return {
        "greedy accuracy": first.reward,
        "sampled accuracy": sampled.reward,
        "distinct right": statistics.fmean(map(distinct_right, sampled.groups)),
        "gain to pass@16": potential(first, sampled, SAMPLES)["gain to pass@k"],
    }


def samples_of(lab: pt.Lab) -> tuple[pt.Evaluation, pt.Evaluation]:
    """16 samples of every question, and the greedy reply to each."""
    tasks = lab.world.all_tasks()
    return lab.evaluate(tasks, pt.each(is_right), samples=SAMPLES), lab.evaluate(
        tasks, pt.each(is_right), temperature=0.0
    )


LENGTHS, ACCURATE = (150, 300, 600), 0.4  # steps that make a base model; the paper's least pass@1


def correlation(seed: int, budget: pt.Budget) -> pt.Measures:
    """The correlation study: small models of other training length and noise; Potential@16 against diversity."""
    potentials, diversities, passes = [], [], []
    for noise, steps in product((0.2, 0.35, 0.5), LENGTHS):
        world = world_of(seed, noise)
        lab = pt.Lab(seed, budget, world, base(world, seed, budget.size(Size(steps=steps))))
        sampled, first = samples_of(lab)
        potentials.append(potential(first, sampled, SAMPLES)["potential"])
        diversities.append(distinct_share(sampled.groups))
        passes.append(first.reward)
    known = [i for i, value in enumerate(potentials) if np.isfinite(value) and passes[i] > ACCURATE]
    if len(known) < 3:
        return {"correlation": 0.0, "models": float(len(known))}
    with np.errstate(invalid="ignore"):  # of models that are all alike
        pair = np.corrcoef([diversities[i] for i in known], [potentials[i] for i in known])
    return {"correlation": float(np.nan_to_num(pair[0, 1])), "models": float(len(known))}


ARMS = {
    "base": pt.trial(world_of, None, solution_measures),
    "grpo": arm("grpo", 0.0),
    "positive": arm("positive", TINY),
    "positive, paper's weight": arm("positive", PAPER),
    "all samples": arm("all", TINY),
    "entropy bonus": arm("entropy_bonus", 0.3),
    "models": correlation,
}
CLAIMS = pt.claims("""
    the diversity term finds more distinct solutions
        paper: Div-Equ 75.0 to 79.3
        distinct right: positive > grpo
    the diversity term keeps accuracy
        paper: 36.7 to 64.4 with the term, to 61.0 without; here a loss of at most two points
        greedy accuracy in [0, 1]: positive > grpo - 0.02
    the diversity term raises accuracy
        paper: 64.4 against 61.0
        greedy accuracy in [0, 1]: positive > grpo
    the diversity term belongs on right samples only
        paper: lambda 0.01: 64.4 on right samples, 63.2 on all
        greedy accuracy: positive > all samples
    the diversity term is more accurate than an entropy bonus of 0.3
        ours: 0.3 is the weight in the facts that we were given; no other was tried
        greedy accuracy in [0, 1]: positive > entropy bonus
    the diversity term adds distinct solutions at the paper's weight too
        paper: lambda 0.01 is the best that the paper tried
        distinct right: positive, paper's weight > grpo
    potential correlates with diversity
        paper: over 12 models with pass@1 above 0.4, R2 = 0.81
        correlation: models > 0
""")
HEADLINE = pt.Headline(
    "the diversity term raises accuracy",
    "more solutions are found (2.9 of three, against 1.3); most questions are solved without the term already",
)
