"""RAG-Zeval on facts by key: a reader makes candidates by contrasting contexts, and a judge with a fault learns."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import posttrain as pt
from posttrain.decode.context import decode_with_contexts
from posttrain.lab.world.facts import ASKED, Facts, Judge, Reader, Sheet, judge_prompt
from posttrain.lab.world.words import Size, base
from posttrain.systems.rag_zeval import recipe
from posttrain.systems.rag_zeval.candidates import Curriculum, distinct
from posttrain.systems.rag_zeval.reward import Goal, Ranked, reward
from posttrain.systems.rag_zeval.trajectory import BrokenTrajectory, ranks_as, trajectory

ALPHAS = (0.0, -0.5, -1.0)
READS, JUDGES, ERRS = Size(steps=500), Size(steps=600, rows=32), Size(steps=150, rows=32, rate=1e-3)
SAMPLES, STEPS, PER_STEP, RATE = 8, 50, 16, 2e-4
TRAINED, TESTED = 400, 100  # sheets
COUNTS, STATIC = (2, 3), (3,)
SUPPORTED = 0.85  # of the reader's claims with the facts before it, below which rankings teach what is wrong


@dataclass(frozen=True)
class Answered:
    """A sheet with different answers to it, the best first, as `Candidates` are."""

    key: str
    sheet: Sheet
    responses: tuple[tuple[str, ...], ...]
    alphas: tuple[float, ...]


def judge_policy(world: Judge, seed: int, budget: pt.Budget = pt.FULL) -> pt.TextPolicy:
    """It has learnt to judge, and then the fault."""
    sound = Judge(seed, fooled=0.0, misquotes=0.0, flags=0.0)
    return base(sound, seed, budget.size(JUDGES), (world, budget.size(ERRS)))


@cache
def candidates_of(seed: int, split: str, count: int, budget: pt.Budget = pt.FULL) -> list[Answered]:
    """Greedy answers of the reader at each alpha; sheets of which all answers are the same are left out.

    Raises ValueError when the reader does not answer from the facts: the rankings would be wrong.
    """
    reader = base(Reader(seed), seed, budget.size(READS))
    sheets = Facts(seed).sheets(budget.items(count), split)
    made: list[dict[float, str]] = [{} for _ in sheets]
    prompts = [(f"facts {sheet.reference} {sheet.question}", sheet.question) for sheet in sheets]
    pairs = [tuple(reader.chat.prompt((pt.user(text),))[0] for text in pair) for pair in prompts]
    for alpha in ALPHAS:
        found = decode_with_contexts(reader, [(a, b) for a, b in pairs], [alpha] * len(pairs), max_new=ASKED + 1)
        for answers, (ids, _) in zip(made, found, strict=True):
            answers[alpha] = reader.chat.decode(ids)
    if budget == pt.FULL and (rate := support(sheets, [one[0.0].split() for one in made])) < SUPPORTED:
        raise ValueError(f"the reader answers {rate:.2f} of questions from the facts, and {SUPPORTED} are needed")
    out = []
    for number, (sheet, answers) in enumerate(zip(sheets, made, strict=True)):
        different = distinct(answers)
        if len(different) > 1:
            texts = tuple(tuple(text.split()) for text in different.values())
            out.append(Answered(f"{split}-{number}", sheet, texts, tuple(different)))
    return out


def support(sheets: Sequence[Sheet], answers: Sequence[Sequence[str]]) -> float:
    return statistics.fmean(sum(map(sheet.supports, said)) / ASKED for sheet, said in zip(sheets, answers, strict=True))


def true_scores(one: Answered) -> list[float]:
    return [sum(map(one.sheet.supports, claims)) / len(claims) for claims in one.responses]


def ask_judge(task: pt.Task) -> pt.Episode:
    yield from pt.ask(task.prompt)


def made_task(one: Answered, count: int, draw: random.Random) -> pt.Task[Ranked]:
    chosen = draw.sample(range(len(one.responses)), min(count, len(one.responses)))
    prompt = judge_prompt(one.sheet, [one.responses[i] for i in chosen])
    ranks = tuple(one.alphas[i] for i in chosen)
    return pt.Task(f"{one.key}/{len(chosen)}", (pt.user(prompt),), Ranked(one.sheet.reference, ranks))


# ---- arms


def pair_tasks(found: Sequence[Answered]) -> list[pt.Task[Ranked]]:
    """The answers from the facts, and without them, in a random order."""
    out = []
    for one in found:
        draw = random.Random(pt.mix(0, one.key))
        if one.alphas[0] == 0.0 and one.alphas[-1] == -1.0:
            ends = Answered(one.key, one.sheet, (one.responses[0], one.responses[-1]), (0.0, -1.0))
            out.append(made_task(ends, 2, draw))
    return out


def measures(lab: pt.Lab) -> pt.Measures:
    """Greedy verdicts on pairs of the answer from the facts and the one without: best, middle and worst case."""
    found = candidates_of(lab.seed, "test", TESTED, lab.budget)
    known = {one.key: one for one in found}
    seen = lab.evaluate(pair_tasks(found), reward(1), ask_judge, temperature=0.0)
    best, worst, exact = [], [], []
    for rollout in seen.rollouts:
        truth, one = rollout.task.truth, known[rollout.task.key.partition("/")[0]]
        try:
            scores = [assessed.score for assessed in trajectory(rollout.text, 2)]
        except BrokenTrajectory:
            scores = [0.0, 1.0] if truth.ranks[0] > truth.ranks[1] else [1.0, 0.0]  # counts as the wrong order
        good, poor = scores if truth.ranks[0] > truth.ranks[1] else scores[::-1]
        best.append(good >= poor)
        worst.append(good > poor)
        true = [true_scores(one)[0], true_scores(one)[-1]]
        exact += [abs(a - b) < 1e-6 for a, b in zip((good, poor), true, strict=True)]
    attainable = [ranks_as(true_scores(one), one.alphas) for one in found]
    out = {"best": statistics.fmean(best), "worst": statistics.fmean(worst), "exact": statistics.fmean(exact)}
    out |= {
        "middle": (out["best"] + out["worst"]) / 2,
        "evidence": seen.part("evidence"),
        "attainable": statistics.fmean(attainable),
    }
    rewards = [step["reward"] for step in lab.history]
    return {**out, "first reward": statistics.fmean(rewards[:5]) if rewards else 0.0}


def source(found: Sequence[Answered], curriculum: bool, seen: int, seed: int) -> Curriculum[Answered]:
    """`seen` sheets in all: the first half with two candidates, the second with three; or three throughout."""
    return Curriculum(found[: max(seen // 2, 1)], made_task, COUNTS if curriculum else STATIC, seed)


def arm(curriculum: bool = True, goal: Goal = "ranking") -> pt.Arm:
    return pt.trial(
        Judge,
        lambda lab: recipe(reward(1, goal), samples=SAMPLES, reference=lab.policy.frozen_copy()),
        measures,
        steps=STEPS,
        per_step=PER_STEP,
        lr=RATE,
        policy=judge_policy,
        tasks=lambda lab: source(
            candidates_of(lab.seed, "training", TRAINED, lab.budget), curriculum, STEPS * PER_STEP, lab.seed
        ),
    )


ARMS = {
    "without RL": pt.trial(Judge, None, measures, policy=judge_policy),
    "ranking, curriculum": arm(),
    "ranking, static": arm(curriculum=False),
    "best candidate": arm(goal="best"),
}
CLAIMS = pt.claims("""
    rankings alone teach an evaluator to judge
        paper: WikiEval worst case .858 to .984, 7B; here by at least 0.05
        worst in [0, 1]: ranking, curriculum > without RL + 0.05
    what it quotes stands in the reference more often
        paper: evidence grounding rises during RL
        evidence in [0, 1]: ranking, curriculum > without RL
    the curriculum begins with rewards that can be reached
        paper: static ranking starts near zero (Fig. 4)
        first reward: ranking, curriculum > ranking, static
    the curriculum ends better than ranking as many throughout
        paper: Pearson .501 against .457 and .450
        worst in [0, 1]: ranking, curriculum > ranking, static
    ranking all candidates is better than naming the best
        paper: Pearson .501 against .406
        worst in [0, 1]: ranking, curriculum > best candidate
    scores become exact although only their order is rewarded
        ours: the share of scores that equal the true share of supported claims
        exact in [0, 1]: ranking, curriculum > without RL
""")
HEADLINE = pt.Headline("rankings alone teach an evaluator to judge")
SMOKE = pt.Smoke(
    """
    laptop
    laptop --counts static --goal best
    train --data {ranked_answers} --max-new 8 --samples 2 --counts 2
    synthesise --data {passages} --max-new 4
    evaluate --data {judged_pairs} --max-new 8 --attempts 1
    """,
    {"lab.TRAINED": 40, "lab.TESTED": 20, "lab.SUPPORTED": 0.0},
)
