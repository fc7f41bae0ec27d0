"""Emotion-o1 on a laptop: a task of one look-up and a task of six, and a teacher who thinks as long as each needs."""

from __future__ import annotations

import random
import statistics
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import posttrain as pt
from posttrain.grade.stated import whole_reply
from posttrain.lab.world.signs import KINDS, LABELS, Kind, SignQuestion, Signs
from posttrain.lab.world.words import Size, base, demonstrations
from posttrain.systems.emotion_o1 import Method, recipe
from posttrain.systems.emotion_o1.lengths import Band, fit_bands, tokens_of
from posttrain.systems.emotion_o1.measures import measures_of, prediction
from posttrain.systems.emotion_o1.reward import ALL_TERMS, Truth, Weights, evaluation, reward

TINY = Size(hidden=64, layers=2, steps=300, rows=32)
STEPS, PER_STEP, SAMPLES, EPOCHS = 30, 16, 8, 2
RATE, CRITIC_RATE, KL = 1e-3, 1e-3, 0.01
CHAINS = 1000  # of the teacher, on which bands are fitted
SETS: Mapping[str, tuple[Kind, Mapping[str, Any]]] = {
    "basic": ("basic", {}),
    "advanced": ("advanced", {}),
    "repeated words": ("advanced", {"repeated": True}),
    "five words": ("advanced", {"shown": 5}),
}


def task(one: SignQuestion, key: str) -> pt.Task[Truth]:
    return pt.Task(key, (pt.user(one.prompt),), Truth(one.kind, one.label, LABELS))


def tasks(world: Signs, count: int, split: str, kind: Kind | None = None, **more: Any) -> list[pt.Task]:
    return [task(one, f"{split}-{i}") for i, one in enumerate(world.questions(count, split, kind, **more))]


def bands(world: Signs, policy: pt.TextPolicy, count: int = CHAINS) -> dict[str, Band]:
    """Fitted on the teacher's chains: all have the right label."""
    draw, tokens = random.Random(pt.mix(world.seed, "chains")), tokens_of(policy)
    lengths = {
        kind: [float(len(tokens(world.chain(one, draw)))) for one in world.questions(count, "chains", kind)]
        for kind in KINDS
    }
    return fit_bands(lengths, KINDS)


def measures(lab: pt.Lab) -> pt.Measures:
    """Of sampled replies: weighted F1 and length of chains by set, and what both kinds in domain have in common.

    `stuffing` is the structure of replies with a wrong label, which only questions of five words have enough of.
    """
    tokens, out, found = tokens_of(lab.policy), dict[str, float](), dict[str, list[dict[str, Any]]]()
    for name, (kind, more) in SETS.items():
        some = tasks(lab.world, lab.budget.items(96), f"test {name}", kind, **more)
        played = lab.evaluate(some, evaluation(), samples=4).rollouts
        found[name] = [prediction(whole_reply(one), one.task.key, one.task.truth, tokens) for one in played]
        [row] = measures_of(found[name]).values()
        out |= {f"{name} F1": row["weighted F1"] or 0.0, f"{name} length": row["length"] or 0.0}
    both = [*found["basic"], *found["advanced"]]
    for name in ("length", "structure", "redundancy"):
        out[name] = mean([one[name] for one in both])
    wrong = [one["structure"] for one in found["five words"] if one["predicted"] != one["label"]]
    return {**out, "unparseable": mean([one["length"] is None for one in both]), "stuffing": mean(wrong)}


def mean(values: list[Any]) -> float:
    known = [float(value) for value in values if value is not None]
    return statistics.fmean(known) if known else 0.0


def supervised(long_basic: float, long_advanced: float) -> pt.Arm:
    """The teacher's chains alone, of which these shares are long."""
    return pt.trial(lambda seed: Signs(seed, long_basic, long_advanced), None, measures, size=TINY)


def arm(weights: Weights = ALL_TERMS, method: Method = "ppo") -> pt.Arm:
    """Reinforcement of the task-adaptive model."""

    def of_four_terms(lab: pt.Lab) -> pt.Recipe:
        paid = reward(bands(lab.world, lab.policy), tokens_of(lab.policy), weights)
        return recipe(paid, lab.policy, method=method, samples=SAMPLES, kl=KL, critic_lr=CRITIC_RATE, epochs=EPOCHS)

    return pt.trial(
        Signs,
        of_four_terms,
        measures,
        steps=STEPS,
        per_step=PER_STEP,
        lr=RATE,
        size=TINY,
        tasks=lambda lab: tasks(lab.world, 4000, "training"),
    )


def continued(seed: int, budget: pt.Budget) -> pt.Measures:
    """More supervised steps on the teacher's chains: as many of them as reinforcement samples replies."""
    world = Signs(seed)
    lab = pt.Lab(seed, budget, world, base(world, seed, budget.size(TINY)))
    shown = demonstrations(world, pt.mix(seed, "continued"))
    pt.tiny.warm_start(lab.policy, shown, budget.steps(STEPS), PER_STEP * SAMPLES, RATE)
    return measures(lab)


STRUCTURE = Weights(accuracy_weight=0.0, length_weight=0.0, structure_weight=1.0, redundancy_weight=0.0)
ARMS = {
    "fixed short": supervised(0.0, 0.0),
    "fixed long": supervised(1.0, 1.0),
    "task-adaptive": pt.trial(Signs, None, measures, size=TINY),
    "SFT continued": continued,
    "accuracy only": arm(Weights(length_weight=0.0, structure_weight=0.0, redundancy_weight=0.0)),
    "Emotion-o1": arm(),
    "by GRPO": arm(method="grpo"),
    "without length": arm(Weights(length_weight=0.0)),
    "without structure": arm(Weights(structure_weight=0.0)),
    "without redundancy": arm(Weights(redundancy_weight=0.0)),
    "structure alone": arm(replace(STRUCTURE, ungated=True)),
    "structure alone, gated": arm(STRUCTURE),
}
CLAIMS = pt.claims("""
    adaptive reasoning helps the advanced task
        paper: up to +37.95 F1 on advanced tasks (v1); here over short chains for all, by at least 0.2
        advanced F1 in [0, 1]: Emotion-o1 > fixed short + 0.2
    it costs the basic task nothing
        paper: up to +3.56 F1 on basic tasks (v1); here within 0.05 of short chains for all
        basic F1 in [0, 1]: Emotion-o1 > fixed short - 0.05
    its chains on the basic task are less than half as long as fixed long ones
        paper: 83 % shorter than OpenAI-o1 (v2); long chains are of twelve tokens and more
        basic length: Emotion-o1 < 6
    its chains on the advanced task stay long
        ours: at least nine of the twelve tokens that six steps take
        advanced length: Emotion-o1 > 9
    the four terms keep chains shorter than accuracy alone
        ours: vanilla PPO at an equal budget, which the reviewers ask for
        length: Emotion-o1 < accuracy only
    the four terms cost no accuracy against accuracy alone
        ours: vanilla PPO at an equal budget; within 0.05
        advanced F1 in [0, 1]: Emotion-o1 > accuracy only - 0.05
    reinforcement improves on the supervised model
        ours: the row that the paper's comparison with an untrained model leaves out
        advanced F1 in [0, 1]: Emotion-o1 > task-adaptive
    reinforcement is better than more supervised learning
        ours: as many of the teacher's chains as reinforcement samples replies
        advanced F1 in [0, 1]: Emotion-o1 > SFT continued
    without its length term, basic chains are longer
        ours: the ablation that the reviewers ask for
        basic length: Emotion-o1 < without length
    without its structure term, fewer words of reasoning are used
        ours: the ablation that the reviewers ask for
        structure in [0, 1]: Emotion-o1 > without structure
    without its redundancy term, chains repeat more
        ours: the ablation that the reviewers ask for
        redundancy in [0, 1]: Emotion-o1 < without redundancy
    PPO with a critic is better than GRPO
        ours: as many replies; PPO passes twice over each batch
        advanced F1 in [0, 1]: Emotion-o1 > by GRPO
    GRPO stuffs more words of reasoning than PPO
        ours: its division by a group's deviation makes a small term large where all samples are right
        structure in [0, 1]: by GRPO > Emotion-o1 + 0.2
    out of domain, where words repeat, reinforcement improves on the supervised model
        ours: the reviewers ask for a test out of domain
        repeated words F1 in [0, 1]: Emotion-o1 > task-adaptive
    out of domain, on questions of another length, it is better than short chains
        ours: five words, where six were trained on
        five words F1 in [0, 1]: Emotion-o1 > fixed short + 0.1
    the structure term alone is earned by keywords
        ours: paid for nothing else; the share of it that is earned
        structure in [0, 1]: structure alone > task-adaptive + 0.5
    keywords that pay for themselves cost accuracy
        ours: the reward is hacked where it is not gated
        advanced F1 in [0, 1]: structure alone < task-adaptive - 0.1
    gating by accuracy keeps the accuracy
        ours: the same term, paid for right labels only
        advanced F1 in [0, 1]: structure alone, gated > structure alone + 0.1
    gating does not keep keywords from being stuffed
        ours: right chains can be stuffed too
        structure in [0, 1]: structure alone, gated > task-adaptive + 0.5
""")
HEADLINE = pt.Headline("adaptive reasoning helps the advanced task")
SMOKE = pt.Smoke(
    """
    laptop
    laptop --method grpo --length-weight 0
    train --data {labelled_utterances} --bands {labelled_chains} --max-new 6 --samples 2
        --held-out {labelled_utterances}
    train --data {labelled_utterances} --method grpo --length-weight 0 --max-new 6 --samples 2
    sft --data {labelled_chains} --max-new 8
    evaluate --data {labelled_utterances} --max-new 6 --samples 2
    """
)
