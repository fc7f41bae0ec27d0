"""What the paper claims, what we ask of our own choices, and the arms that are compared."""

from __future__ import annotations

from functools import partial

from posttrain.advantage import normalised
from posttrain.lab.claim import SHARE, Claim
from posttrain.systems.pangu_embedded.distillation import medium
from posttrain.systems.pangu_embedded.experiments import (
    ADAPTIVE,
    SQUASHED,
    at_random,
    by_fast_answers,
    distilled,
    even,
    hard,
    masked,
    routed,
    thinking,
)
from posttrain.systems.pangu_embedded.scheduler import scheduled

SHOWN = "new"  # the measure of the picture

ARMS = {
    "synchronous": partial(scheduled, staleness=0),
    "staleness 1": partial(scheduled, staleness=1),
    "labels of 4": thinking(by_fast_answers(4, 3)),
    "labels of 1": thinking(by_fast_answers(1, 1)),
    "labels at random": thinking(at_random),
    "one-shot": distilled(None),
    "medium": distilled(medium),
    "medium, merged": distilled(medium, merge=0.7),
    "random": distilled(even),
    "all-hard": distilled(hard),
    "any right chain": distilled(None, shortest=False),
    "raw": routed({}),
    "adaptive": routed(ADAPTIVE),
    "squashed": routed(SQUASHED),
    "group deviations": routed({}, normalised),
    "raw, unskilled": routed({}, pleasing=0.0),
    "adaptive, unskilled": routed(ADAPTIVE, pleasing=0.0),
    "raw, four times the rate": routed({}, lr=4e-3),
    "masked": masked(True),
    "unmasked": masked(False),
}

THINKING = (
    Claim(
        "automatic mode keeps the accuracy of slow mode",
        "adaptive mode keeps accuracy with shorter chains; here within 3 points of slow mode",
        "auto",
        "labels of 4",
        "labels of 4",
        against="slow",
        margin=0.03,
        bounds=SHARE,
    ),
    Claim(
        "automatic mode takes fewer tokens than slow mode",
        "about half the tokens on CMMLU (v1.1)",
        "auto tokens",
        "labels of 4",
        "labels of 4",
        against="slow tokens",
        larger=False,
    ),
    Claim(
        "automatic mode is far more accurate than fast mode",
        "by at least 20 points (a condition in the facts)",
        "auto over fast",
        "labels of 4",
        0.2,
    ),
    Claim(
        "labels from four fast answers beat labels from one",
        "ours: 3 of 4 must be right, or 1 of 1, which a lucky guess can be",
        "auto",
        "labels of 4",
        "labels of 1",
        control=True,
        bounds=SHARE,
    ),
    Claim(
        "the labels help by what they know, not by how many say `fast`",
        "ours: the same labels, given to other problems",
        "auto",
        "labels of 4",
        "labels at random",
        control=True,
    ),
)
DISTILLATION = (
    Claim(
        "iterations around medium complexity beat one training run on everything",
        "iterative distillation, at equal steps",
        "new",
        "medium",
        "one-shot",
    ),
    Claim(
        "a balanced mix beats hard problems alone",
        "a balanced mix beats all-easy and all-hard",
        "new",
        "medium",
        "all-hard",
    ),
    Claim(
        "problems of medium complexity beat random ones",
        "ours: as many problems, chosen at random",
        "new",
        "medium",
        "random",
        control=True,
    ),
    Claim("merging iterations helps on new problems", "inter-iteration merging", "new", "medium, merged", "medium"),
    Claim(
        "merging iterations helps on old problems",
        "inter-iteration merging",
        "old",
        "medium, merged",
        "medium",
        bounds=SHARE,
    ),
    Claim(
        "the shortest right chain teaches better than any right chain",
        "rejection sampling keeps the shortest right path",
        "new",
        "one-shot",
        "any right chain",
    ),
    Claim(
        "the shortest right chain teaches shorter answers than any right chain",
        "rejection sampling keeps the shortest right path",
        "new, extra tokens",
        "one-shot",
        "any right chain",
        larger=False,
    ),
)
SCHEDULER = (
    Claim(
        "a staleness of 1 shortens the wall time",
        "about 30 % less idle time; here real processes with long-tailed rollouts",
        "wall seconds",
        "staleness 1",
        "synchronous",
        larger=False,
    ),
    Claim(
        "a staleness of 1 costs no accuracy",
        "within seed noise; here within 0.05",
        "accuracy",
        "staleness 1",
        "synchronous",
        margin=0.05,
        bounds=SHARE,
    ),
)
ROUTER = (
    Claim("adaptive scaling teaches more math", "no source dominates a mixed batch", "math", "adaptive", "raw"),
    Claim("adaptive scaling teaches more code", "no source dominates a mixed batch", "code", "adaptive", "raw"),
    Claim(
        "adaptive scaling costs the loud source nothing",
        "no source dominates a mixed batch; here within 0.05",
        "general",
        "adaptive",
        "raw",
        margin=0.05,
    ),
    Claim(
        "without adaptive scaling one source hardly improves",
        "only adaptive scaling improves every source; here raw rewards gain at most 0.05 in one",
        "least gained",
        "raw",
        0.05,
        larger=False,
    ),
    Claim(
        "a sigmoid on the loud source alone does as well as adaptive scaling",
        "the router in the facts squashes the reward model; here within 0.03",
        "mean",
        "squashed",
        "adaptive",
        margin=0.03,
    ),
    Claim(
        "adaptive scaling beats dividing by each group's deviation",
        "GRPO's own scaling, without a router",
        "mean",
        "adaptive",
        "group deviations",
        control=True,
    ),
    Claim(
        "adaptive scaling beats a higher learning rate",
        "raw rewards with four times the learning rate",
        "mean",
        "adaptive",
        "raw, four times the rate",
        control=True,
    ),
    Claim(
        "adaptive scaling costs the loud source nothing where it is also the hard one",
        "a base model without any skill in the loud source, which may need its scale; within 0.05",
        "general",
        "adaptive, unskilled",
        "raw, unskilled",
        margin=0.05,
        control=True,
    ),
    Claim(
        "masking keeps the KL term from dominating",
        "zero-advantage masking, with a KL weight of 0.5",
        "mean",
        "masked",
        "unmasked",
    ),
)
CLAIMS = (*THINKING, *DISTILLATION, *SCHEDULER, *ROUTER)
