"""Reward fairness: margins of preference pairs as a resource to be shared fairly (arXiv:2505.23349).

Whatever bias a reward model picks up (length, format, flattery), it shows as margins that are large for some pairs and
small for others. A measure of how equally they are shared joins the loss, without naming the bias.

    Fairness Regularisation   L = u - alpha f
    Fairness Coefficient      L = u f^gamma   as published, which rewards unfairness; corrected, L = u D^gamma

u is -log sigmoid(margin), f the fairness of the margins' sigmoids over the step (Lan et al. 2010), D unfairness, 1/f.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from posttrain.cli.options import ModelOptions, RunOptions
from posttrain.data import Pair, read_pairs
from posttrain.descent import descend
from posttrain.lab.claim import SHARE, Claim
from posttrain.lab.world.preferences import CUES, Preferences
from posttrain.lab.world.words import Size, base, fresh_judge, spoken
from posttrain.policy.value import RewardModel, reward_model
from posttrain.preference import PairLoss, dpo, judged, prefer, together, whole_step
from posttrain.recipe import Part
from posttrain.reward_training import ScoreLoss, reward_step, train_reward_model
from posttrain.run.session import Session
from posttrain.stream import Shuffled

Kind = Literal["plain", "regularised", "coefficient", "published coefficient"]
MarginLoss: TypeAlias = Callable[[Tensor], Tensor]  # margins of a step [B] -> cost [B]


def fairness(shares: Tensor, tau: float = -1.0) -> Tensor:
    """[] f_tau of positive shares [B] (Lan et al. 2010), divided by B as released.

    f = sign(1 - tau) [sum p^(1 - tau)]^(1 / tau) / B with p = shares / sum. tau = -1 is Jain's index, in [1/B, 1];
    tau -> 0 the exponential of the entropy. Equal shares give 1 below tau = 1, and -1 above. Raises ValueError for
    tau = 1, where it is the same whatever the shares.
    """
    if tau == 1:
        raise ValueError("fairness at tau=1 does not depend on the shares: take another, the paper's is -1")
    p = shares / shares.sum()
    if tau == 0:
        return torch.exp(-(p * p.log()).sum()) / len(p)
    return math.copysign(1.0, 1 - tau) * p.pow(1 - tau).sum().pow(1 / tau) / len(p)


def unfairness(shares: Tensor, tau: float = -1.0) -> Tensor:
    """[] at least 1, and 1 when all shares are equal, for every tau."""
    found = fairness(shares, tau)
    return 1 / found if tau < 1 else -found


def fair(kind: Kind, *, alpha: float = 0.1, gamma: float = 0.5, tau: float = -1.0) -> MarginLoss:
    """The loss of a step's margins. Raises ValueError for the published coefficient above tau = 1: it is not real."""
    if kind == "published coefficient" and tau > 1:
        raise ValueError(f"tau={tau}: above 1 the fairness is negative, and its power {gamma} is not a real number")

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


def for_scores(loss: MarginLoss) -> ScoreLoss:
    """In a reward model (verification): the margin is the difference of scores."""
    return together(lambda chosen, rejected: loss(chosen - rejected))


def for_policy(loss: MarginLoss, beta: float = 0.1) -> PairLoss:
    """In reinforcement from preferences: the margin is DPO's, beta times the difference of log-ratios."""
    return together(lambda pairs: loss(beta * pairs.margin()))


PARTS: Mapping[str, Part] = {}


# ---- at two scales

TINY_ALPHA, TINY_GAMMA = 1.0, 2.0


def laptop(
    kind: Kind = "regularised",
    cues: float = 0.6,
    run: RunOptions = RunOptions("runs/reward-fairness", steps=400, tasks=64, lr=3e-3),
) -> Session:
    """A reward model from scratch on pairs with two kinds and three cues; accuracy, fairness and cues are printed.

    kind  fairness as a term of the loss, as a coefficient (corrected, or as published), or plain: without it
    cues  how much oftener a chosen reply has each cue, which says nothing of its quality; 0 to 1
    """
    world = Preferences(run.seed, cues=cues)
    judge = fresh_judge(spoken(world.vocabulary), run.seed)
    loss = for_scores(fair(kind, alpha=TINY_ALPHA, gamma=TINY_GAMMA))
    session = train_reward_model(judge, world.pairs(4000, "training"), run.run(kind=kind, cues=cues), loss=loss)
    for name, value in judged_fairly(judge, world, 300).items():
        print(f"  {name:24} {value:.3f}")
    return session


def full(
    data: str,
    model: ModelOptions,
    run: RunOptions = RunOptions("runs/reward-fairness", steps=300, tasks=512, lr=2e-6, schedule="cosine"),
    target: Literal["reward-model", "policy"] = "reward-model",
    kind: Kind = "regularised",
    alpha: float = 0.1,
    gamma: float = 0.5,
    tau: float = -1.0,
    beta: float = 0.1,
    category: str | None = None,
) -> Session:
    """HH-RLHF, UltraFeedback or your own pairs (columns prompt, chosen, rejected), at your checkpoint.

    data      file or dataset of pairs
    target    a reward model, or a policy by DPO, for which the paper takes --lr 5e-6 --warmup 150 --max-norm 5
    kind      fairness as a term of the loss, as a coefficient (corrected, or as published), or plain: without it
    alpha     weight of the term
    gamma     exponent of the coefficient
    tau       which fairness: -1 is Jain's index
    beta      of DPO
    category  a column of kinds, by which accuracy and mean margin are printed at the end
    """
    pairs = read_pairs(data, kind=category)
    loss = fair(kind, alpha=alpha, gamma=gamma, tau=tau)
    described = {"data": data, "target": target, "kind": kind, "alpha": alpha, "gamma": gamma, "tau": tau}
    made = run.run(**described, **vars(model))
    if target == "policy":
        policy = model.policy()
        return prefer(policy, pairs, for_policy(loss, beta), made, reference=policy.frozen())
    unused = [name for name in ("lora", "bf16", "checkpointing") if getattr(model, name)]
    if unused:
        raise ValueError(f"--target reward-model does not take --{unused[0]}: leave it out, or take --target policy")
    judge = reward_model(model.model, template=model.template, device=model.device, threads=model.threads)
    session = train_reward_model(judge, pairs, made, loss=for_scores(loss))
    for name in sorted({pair.kind for pair in pairs if pair.kind}):
        margins = margins_of(judge, [pair for pair in pairs if pair.kind == name])
        print(
            f"  training pairs of {name:16} accuracy {(margins > 0).float().mean():.3f}, "
            f"mean margin {margins.mean():.3f}"
        )
    return session


@torch.no_grad()
def margins_of(judge: RewardModel, pairs: Sequence[Pair], size: int = 64) -> Tensor:
    """[B] score of the chosen reply less that of the rejected one."""
    parts = []
    for start in range(0, len(pairs), size):
        ids = [judge.ids(p.prompt, text) for p in pairs[start : start + size] for text in (p.chosen, p.rejected)]
        score = judge.scores(ids)
        parts.append(score[::2] - score[1::2])
    return torch.cat(parts)


def judged_fairly(judge: RewardModel, world: Preferences, count: int) -> dict[str, float]:
    """Utility: accuracy by kind, on clean pairs. Fairness: Jain's index of the margins, and how far cues carry."""
    margins = {kind: margins_of(judge, world.tests(count, kind)) for kind in "AB"}
    usual = margins["A"].abs().mean()  # what a cue is worth is told in usual margins
    cues = {f"{cue} cue": margins_of(judge, world.marked_pairs(count // 2, cue)).mean() / usual for cue in CUES}
    return reported(margins) | {name: value.item() for name, value in cues.items()}


def reported(margins: Mapping[str, Tensor]) -> dict[str, float]:
    accuracy = {kind: (found > 0).float().mean().item() for kind, found in margins.items()}
    every = torch.cat(list(margins.values()))
    return {
        "accuracy A": accuracy["A"],
        "accuracy B": accuracy["B"],
        "worst accuracy": min(accuracy.values()),
        "Jain's index": fairness(torch.sigmoid(every)).item(),
        "mean margin": every.mean().item(),
    }


# ---- claims

STEPS, PAIRS = 400, 64


def judge_arm(loss: ScoreLoss, cues: float = 0.0) -> Callable[[int, bool], dict[str, float]]:
    def run(seed: int, quick: bool) -> dict[str, float]:
        world = Preferences(seed, cues=cues)
        judge = fresh_judge(spoken(world.vocabulary), seed)
        optimizer = torch.optim.AdamW(judge.parameters(), lr=3e-3, weight_decay=0.0)
        source = Shuffled(world.pairs(400 if quick else 8000, "training"), seed)
        for _ in range(8 if quick else STEPS):
            optimizer.zero_grad()
            reward_step(judge, source.take(PAIRS), loss)
            descend(optimizer, 1.0)
        found = judged_fairly(judge, world, 40 if quick else 400)
        return found | {"worth of a cue": statistics.fmean(abs(found[f"{cue} cue"]) for cue in CUES)}

    return run


def policy_arm(loss: PairLoss) -> Callable[[int, bool], dict[str, float]]:
    def run(seed: int, quick: bool) -> dict[str, float]:
        world = Preferences(seed)
        policy = base(world, seed, Size(steps=40 if quick else 300))
        reference = policy.frozen()
        optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3, weight_decay=0.0)
        source = Shuffled(world.pairs(200 if quick else 4000, "training"), seed)
        for _ in range(4 if quick else 200):
            optimizer.zero_grad()
            pairs: list[Pair] = source.take(PAIRS)
            whole_step([pairs], lambda piece: judged(policy, reference, piece), loss, True)
            descend(optimizer, 1.0)
        with torch.no_grad():
            margins = {k: 0.1 * judged(policy, reference, world.tests(40 if quick else 300, k)).margin() for k in "AB"}
        return reported(margins)

    return run


LOSSES: dict[str, MarginLoss] = {
    "BT": fair("plain"),
    "FR, alpha 0.1": fair("regularised"),
    "FR": fair("regularised", alpha=TINY_ALPHA),
    "FC": fair("coefficient", gamma=TINY_GAMMA),
    "FC as published": fair("published coefficient", gamma=TINY_GAMMA),
}
ARMS = {
    **{name: judge_arm(for_scores(loss)) for name, loss in LOSSES.items()},
    **{f"{name}, cues": judge_arm(for_scores(LOSSES[name]), 0.6) for name in ("BT", "FR", "FC")},
    "DPO": policy_arm(dpo()),
    "DPO, FR": policy_arm(for_policy(fair("regularised", alpha=TINY_ALPHA))),
    "DPO, FC": policy_arm(for_policy(fair("coefficient", gamma=TINY_GAMMA))),
}
CLAIMS = (
    Claim(
        "FR shares margins more equally than Bradley-Terry",
        "the aim of the regularisation",
        "Jain's index",
        "FR",
        "BT",
        bounds=SHARE,
    ),
    Claim(
        "FC, corrected, shares margins more equally than Bradley-Terry",
        "the aim of the coefficient",
        "Jain's index",
        "FC",
        "BT",
        bounds=SHARE,
    ),
    Claim(
        "FC as published shares margins more equally than Bradley-Terry",
        "L = u f^gamma: minimising it lowers f",
        "Jain's index",
        "FC as published",
        "BT",
        bounds=SHARE,
    ),
    Claim("FR costs no accuracy", "RewardBench 78.4 against 78.1", "accuracy A", "FR", "BT", margin=0.01, bounds=SHARE),
    Claim("FC costs no accuracy", "RewardBench 77.5 against 78.1", "accuracy A", "FC", "BT", margin=0.01, bounds=SHARE),
    Claim("FR raises accuracy on the worst kind of pair", "fairness over categories", "worst accuracy", "FR", "BT"),
    Claim("FC raises accuracy on the worst kind of pair", "fairness over categories", "worst accuracy", "FC", "BT"),
    Claim(
        "FR shares margins more equally at the paper's alpha",
        "alpha 0.1 is best",
        "Jain's index",
        "FR, alpha 0.1",
        "BT",
        bounds=SHARE,
    ),
    Claim(
        "FR relies less on cues than Bradley-Terry",
        "a bias is mitigated without being named",
        "worth of a cue",
        "FR, cues",
        "BT, cues",
        larger=False,
    ),
    Claim(
        "FC relies less on cues than Bradley-Terry",
        "a bias is mitigated without being named",
        "worth of a cue",
        "FC, cues",
        "BT, cues",
        larger=False,
    ),
    Claim(
        "FR in DPO shares margins more equally than DPO",
        "the aim of the regularisation; the paper measures win rates, 20.5 against 16.7",
        "Jain's index",
        "DPO, FR",
        "DPO",
        bounds=SHARE,
    ),
    Claim(
        "FC in DPO shares margins more equally than DPO",
        "the aim of the coefficient; the paper measures win rates, 21.1 against 16.7",
        "Jain's index",
        "DPO, FC",
        "DPO",
        bounds=SHARE,
    ),
    Claim(
        "FR in DPO raises accuracy on the worst kind of pair",
        "fairness over categories",
        "worst accuracy",
        "DPO, FR",
        "DPO",
    ),
)
