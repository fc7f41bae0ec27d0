"""Reward fairness: margins of preference pairs as a resource to be shared fairly (arXiv:2505.23349).

Whatever bias a reward model picks up (length, format, flattery), it shows as margins that are large for some pairs and
small for others. A measure of how equally margins are shared joins the loss; the bias need not be named.

    Fairness Regularisation   L = u - alpha f
    Fairness Coefficient      L = u f^gamma   as published, which rewards unfairness; corrected, L = u D^gamma

u is -log sigmoid(margin), f the fairness of the margins' sigmoids over the step (Lan et al. 2010), D its unfairness,
1/f.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

import posttrain as pt
from posttrain.lab.world.preferences import CUES, Preferences
from posttrain.lab.world.words import Size, base, tokenizer_of, untrained_judge
from posttrain.preference import mark_coupled
from posttrain.reward_training import ScoreLoss, reward_step

Kind = Literal["plain", "regularised", "coefficient", "published coefficient"]
MarginLoss: TypeAlias = Callable[[Tensor], Tensor]  # margins of a step [B] -> cost [B]
Margins: TypeAlias = Callable[[Sequence[pt.Pair]], Tensor]  # pairs -> margins [B], without gradients


def fairness(shares: Tensor, tau: float = -1.0) -> Tensor:
    """[] f_tau of positive shares [B] (Lan et al. 2010), divided by B as released.

    f = sign(1 - tau) [sum p^(1 - tau)]^(1 / tau) / B with p = shares / sum. tau = -1 is Jain's index, in [1/B, 1];
    tau -> 0 the exponential of the entropy. Equal shares give 1 below tau = 1, and -1 above. Raises ValueError for
    tau = 1, where it is the same whatever the shares.
    """
    check_tau(tau)
    p = shares / shares.sum()
    if tau == 0:
        return torch.exp(-(p * p.log()).sum()) / len(p)
    return math.copysign(1.0, 1 - tau) * p.pow(1 - tau).sum().pow(1 / tau) / len(p)


def unfairness(shares: Tensor, tau: float = -1.0) -> Tensor:
    """[] at least 1, and 1 when all shares are equal, for every tau."""
    found = fairness(shares, tau)
    return 1 / found if tau < 1 else -found


def check_tau(tau: float) -> None:
    if tau == 1:
        raise ValueError("`tau=1.0`: this fairness does not depend on the shares; take another, the paper's is -1")


def margin_loss(kind: Kind, *, alpha: float = 0.1, gamma: float = 0.5, tau: float = -1.0) -> MarginLoss:
    """The loss of a step's margins.

    Raises ValueError for tau = 1, and for the published coefficient above it, which is not real.
    """
    check_tau(tau)
    if kind == "published coefficient" and tau > 1:
        raise ValueError(f"`tau={tau}`: above 1 the fairness is negative, and its power {gamma} is not a real number")

    def loss(margin: Tensor) -> Tensor:
        utility, shares = -F.logsigmoid(margin), torch.sigmoid(margin)
        if kind == "regularised":
            return utility - alpha * fairness(shares, tau)
        if kind == "coefficient":
            return utility * unfairness(shares, tau) ** gamma
        if kind == "published coefficient":
            return utility * fairness(shares, tau) ** gamma
        return utility

    return loss


def score_loss(loss: MarginLoss) -> ScoreLoss:
    """Of a reward model (verification): the margin is the difference of scores."""
    return mark_coupled(lambda chosen, rejected: loss(chosen - rejected))


def pair_loss(loss: MarginLoss, beta: float = 0.1) -> pt.PairLoss:
    """Of a policy (reinforcement from preferences): the margin is DPO's, beta times the difference of log-ratios."""
    return mark_coupled(lambda pairs: loss(beta * pairs.margin()))


# ---- at two scales

TINY_ALPHA, TINY_GAMMA = 1.0, 2.0
SCORED, COMPARED = 64, 8  # pairs in one pass of a reward model, and of a policy with its reference
DISTRIBUTION = "a reward model is not sharded"


@dataclass(frozen=True)
class FairnessOptions:
    """How fairly the margins of pairs are shared."""

    kind: Kind = "regularised"
    """Fairness as a term of the loss, as a coefficient (corrected, or as published), or plain: without it."""
    alpha: float = 0.1
    """Weight of the term."""
    gamma: float = 0.5
    """Exponent of the coefficient."""
    tau: float = -1.0
    """Which fairness: -1 is Jain's index."""
    category: str | None = None
    """A column of kinds of pair: accuracy and mean margin are printed for each, of held-out pairs, or without
    any, of the training pairs."""

    def loss(self) -> MarginLoss:
        return margin_loss(self.kind, alpha=self.alpha, gamma=self.gamma, tau=self.tau)


@pt.one_process(DISTRIBUTION)
def laptop(
    kind: Kind = "regularised",
    cues: float = 0.6,
    run: pt.Run = pt.Run("runs/reward-fairness", steps=400, tasks=64, lr=3e-3),
) -> pt.Session:
    """A reward model from scratch on pairs with two kinds and three cues; accuracy, fairness and cues are printed.

    kind  fairness as a term of the loss, as a coefficient (corrected, or as published), or plain: without it
    cues  how much more often a chosen reply has each cue, which says nothing of its quality; 0 to 1
    """
    world = Preferences(run.seed, cues=cues)
    judge = untrained_judge(tokenizer_of(world.vocabulary), run.seed)
    loss = score_loss(margin_loss(kind, alpha=TINY_ALPHA, gamma=TINY_GAMMA))
    session = pt.train_reward_model(judge, world.pairs(4000, "training"), run, loss=loss)
    for name, value in judge_measures(judge, world, 300).items():
        print(f"  {name:24} {value:.3f}")
    return session


@pt.one_process(DISTRIBUTION)
def learn(
    data: pt.PairOptions,
    fair: FairnessOptions,
    scorer: pt.ScorerOptions,
    run: pt.Run = pt.Run("runs/reward-fairness", steps=300, tasks=512, lr=2e-6, schedule="cosine"),
    held_out: tuple[str, ...] = (),
) -> pt.Session:
    """A reward model from your checkpoint, on HH-RLHF, UltraFeedback or pairs of your own.

    held_out  pairs with the same columns that are only evaluated: FILE, or NAME=FILE
    """
    pairs, tests, judge = data.pairs(fair.category), data.tests(held_out, fair.category), scorer.reward_model()
    session = pt.train_reward_model(judge, pairs, run, loss=score_loss(fair.loss()), held_out=tests)
    print_margins(shown_sets(pairs, tests, fair), lambda some: score_margins(judge, some))
    return session


def learn_policy(
    data: pt.PairOptions,
    fair: FairnessOptions,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    run: pt.Run = pt.Run(
        "runs/fair-policy", steps=300, tasks=512, lr=5e-6, warmup=150, schedule="cosine", max_norm=5.0
    ),
    beta: float = 0.1,
    held_out: tuple[str, ...] = (),
) -> pt.Session:
    """A policy by DPO on the same pairs, without a reward model.

    beta      of DPO
    held_out  pairs with the same columns that are only evaluated: FILE, or NAME=FILE
    """
    scale.refuse_sampler()
    pairs, tests, policy = data.pairs(fair.category), data.tests(held_out, fair.category), model.policy()
    reference, loss = policy.frozen_copy(), pair_loss(fair.loss(), beta)
    session = pt.prefer(policy, pairs, loss, run, reference=reference, held_out=tests)
    print_margins(shown_sets(pairs, tests, fair), lambda some: policy_margins(policy, reference, some, beta))
    return session


def shown_sets(
    pairs: Sequence[pt.Pair], tests: Mapping[str, Sequence[pt.Pair]], fair: FairnessOptions
) -> dict[str, Sequence[pt.Pair]]:
    """Held-out pairs; without any, the training pairs if they have categories."""
    named = {name or "held out": some for name, some in tests.items()}
    return named or {"training": pairs if fair.category else []}


def print_margins(sets: Mapping[str, Sequence[pt.Pair]], margins: Margins) -> None:
    """Accuracy and mean margin of each set of pairs, and of each kind of pair in it."""
    for name, pairs in sets.items():
        for kind in sorted({pair.kind or "" for pair in pairs}):
            found = margins([pair for pair in pairs if (pair.kind or "") == kind])
            accuracy = (found > 0).float().mean().item()
            print(f"  {name:12} {kind:16} accuracy {accuracy:.3f}, mean margin {found.mean().item():.3f}")


@torch.no_grad()
def score_margins(judge: pt.RewardModel, pairs: Sequence[pt.Pair]) -> Tensor:
    """[B] score of the chosen reply less that of the rejected one."""
    parts = []
    for start in range(0, len(pairs), SCORED):
        some = pairs[start : start + SCORED]
        score = judge.scores([judge.ids(pair.prompt, text) for pair in some for text in (pair.chosen, pair.rejected)])
        parts.append(score[::2] - score[1::2])
    return torch.cat(parts)


@torch.no_grad()
def policy_margins(
    policy: pt.TextPolicy, reference: pt.TextPolicy, pairs: Sequence[pt.Pair], beta: float = 0.1, size: int = COMPARED
) -> Tensor:
    """[B] margins of DPO, `size` pairs in one pass."""
    pieces = [pairs[start : start + size] for start in range(0, len(pairs), size)]
    return torch.cat([beta * pt.pair_scores(policy, reference, piece).margin() for piece in pieces])


STAGES = {"laptop": laptop, "train": learn, "policy": learn_policy}
SMOKE = pt.Smoke("""
    laptop
    laptop --kind 'published coefficient'
    train --data {pairs} --category category
    train --data {pairs} --held-out {pairs}
    policy --data {pairs} --kind coefficient --category category --held-out {pairs}
""")


# ---- claims

STEPS, PAIRS = 400, 64


def judge_measures(judge: pt.RewardModel, world: Preferences, count: int) -> dict[str, float]:
    """Utility: accuracy by kind, on clean pairs. Fairness: Jain's index of the margins, and what cues are worth."""
    margins = {kind: score_margins(judge, world.tests(count, kind)) for kind in "AB"}
    usual = margins["A"].abs().mean()  # what a cue is worth is told in usual margins
    cues = {f"{cue} cue": score_margins(judge, world.marked_pairs(count // 2, cue)).mean() / usual for cue in CUES}
    return margin_measures(margins) | {name: value.item() for name, value in cues.items()}


def margin_measures(margins: Mapping[str, Tensor]) -> dict[str, float]:
    accuracy = {kind: (found > 0).float().mean().item() for kind, found in margins.items()}
    every = torch.cat(list(margins.values()))
    return {
        "accuracy A": accuracy["A"],
        "accuracy B": accuracy["B"],
        "worst accuracy": min(accuracy.values()),
        "Jain's index": fairness(torch.sigmoid(every)).item(),
        "mean margin": every.mean().item(),
    }


def judge_arm(loss: ScoreLoss, cues: float = 0.0) -> pt.Arm:
    def arm(seed: int, budget: pt.Budget) -> pt.Measures:
        world = Preferences(seed, cues=cues)
        judge = untrained_judge(tokenizer_of(world.vocabulary), seed)
        optimizer = torch.optim.AdamW(judge.parameters(), lr=3e-3, weight_decay=0.0)
        source = pt.ShuffledSource(world.pairs(budget.items(8000), "training"), seed)
        for _ in range(budget.steps(STEPS)):
            optimizer.zero_grad()
            reward_step(judge, source.take(budget.items(PAIRS)), loss)
            pt.descend(optimizer, 1.0)
        found = judge_measures(judge, world, budget.items(400))
        return found | {"worth of a cue": statistics.fmean(abs(found[f"{cue} cue"]) for cue in CUES)}

    return arm


def policy_arm(loss: pt.PairLoss) -> pt.Arm:
    def arm(seed: int, budget: pt.Budget) -> pt.Measures:
        world = Preferences(seed)
        policy = base(world, seed, budget.size(Size(steps=300)))
        reference = policy.frozen_copy()
        optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3, weight_decay=0.0)
        source = pt.ShuffledSource(world.pairs(budget.items(4000), "training"), seed)
        for _ in range(budget.steps(200)):
            optimizer.zero_grad()
            pairs: list[pt.Pair] = source.take(budget.items(PAIRS))
            pt.accumulate_pairs([pairs], lambda piece: pt.pair_scores(policy, reference, piece), loss, True)
            pt.descend(optimizer, 1.0)
        tests = {kind: world.tests(budget.items(300), kind) for kind in "AB"}
        margins = {kind: policy_margins(policy, reference, some, size=len(some)) for kind, some in tests.items()}
        return margin_measures(margins)

    return arm


LOSSES: dict[str, MarginLoss] = {
    "BT": margin_loss("plain"),
    "FR, alpha 0.1": margin_loss("regularised"),
    "FR": margin_loss("regularised", alpha=TINY_ALPHA),
    "FC": margin_loss("coefficient", gamma=TINY_GAMMA),
    "FC as published": margin_loss("published coefficient", gamma=TINY_GAMMA),
}
ARMS = {
    **{name: judge_arm(score_loss(loss)) for name, loss in LOSSES.items()},
    **{f"{name}, cues": judge_arm(score_loss(LOSSES[name]), 0.6) for name in ("BT", "FR", "FC")},
    "DPO": policy_arm(pt.dpo()),
    "DPO, FR": policy_arm(pair_loss(margin_loss("regularised", alpha=TINY_ALPHA))),
    "DPO, FC": policy_arm(pair_loss(margin_loss("coefficient", gamma=TINY_GAMMA))),
}
CLAIMS = pt.claims("""
    FR shares margins more equally than Bradley-Terry
        paper: the aim of the regularisation
        Jain's index in [0, 1]: FR > BT
    FC, corrected, shares margins more equally than Bradley-Terry
        paper: the aim of the coefficient
        Jain's index in [0, 1]: FC > BT
    FC as published shares margins more equally than Bradley-Terry
        paper: L = u f^gamma: minimising it lowers f
        Jain's index in [0, 1]: FC as published > BT
    FR costs no accuracy
        paper: RewardBench 78.4 against 78.1
        accuracy A in [0, 1]: FR > BT - 0.01
    FC costs no accuracy
        paper: RewardBench 77.5 against 78.1
        accuracy A in [0, 1]: FC > BT - 0.01
    FR raises accuracy on the worst kind of pair
        paper: fairness over categories
        worst accuracy: FR > BT
    FC raises accuracy on the worst kind of pair
        paper: fairness over categories
        worst accuracy: FC > BT
    FR shares margins more equally at the paper's alpha
        paper: alpha 0.1 is best
        Jain's index in [0, 1]: FR, alpha 0.1 > BT
    FR relies less on cues than Bradley-Terry
        paper: a bias is mitigated without being named
        worth of a cue: FR, cues < BT, cues
    FC relies less on cues than Bradley-Terry
        paper: a bias is mitigated without being named
        worth of a cue: FC, cues < BT, cues
    FR in DPO shares margins more equally than DPO
        paper: the aim of the regularisation; the paper measures win rates, 20.5 against 16.7
        Jain's index in [0, 1]: DPO, FR > DPO
    FC in DPO shares margins more equally than DPO
        paper: the aim of the coefficient; the paper measures win rates, 21.1 against 16.7
        Jain's index in [0, 1]: DPO, FC > DPO
    FR in DPO raises accuracy on the worst kind of pair
        paper: fairness over categories
        worst accuracy: DPO, FR > DPO
""")
HEADLINE = pt.Headline(
    "FR shares margins more equally than Bradley-Terry",
    "Bradley-Terry shares them equally already (Jain's index 0.94); in DPO, where it does not, FR helps",
)
