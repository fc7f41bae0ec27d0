"""What the paper claims, what we ask of our own choices, and the arms that are compared."""

from __future__ import annotations

from functools import partial

from posttrain.advantage import normalised
from posttrain.lab.claim import Claim
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
        "automatic mode keeps the accuracy of slow",
        "adaptive mode keeps accuracy with shorter chains; here within 3 points of slow",
        "auto",
        "labels of 4",
        "labels of 4",
        against="slow",
        margin=0.03,
    ),
    Claim(
        "with fewer tokens",
        "about half the tokens on CMMLU (v1.1)",
        "auto tokens",
        "labels of 4",
        "labels of 4",
        against="slow tokens",
        larger=False,
    ),
    Claim(
        "and is far better than fast",
        "by 20 points at least (the facts' condition)",
        "auto over fast",
        "labels of 4",
        0.2,
    ),
    Claim(
        "one lucky guess is not enough for a label",
        "ours: 3 of 4 fast answers, not 1 of 1",
        "auto",
        "labels of 4",
        "labels of 1",
        control=True,
    ),
    Claim(
        "it is what the labels know, not their share",
        "the same labels on other problems",
        "auto",
        "labels of 4",
        "labels at random",
        control=True,
    ),
)
DISTILLATION = (
    Claim(
        "iterations around medium complexity beat one training on everything",
        "iterative distillation, at equal steps",
        "new",
        "medium",
        "one-shot",
    ),
    Claim("a balanced mix beats all-hard", "a balanced mix beats all-easy and all-hard", "new", "medium", "all-hard"),
    Claim(
        "it is the complexity that counts",
        "against as many problems chosen at random",
        "new",
        "medium",
        "random",
        control=True,
    ),
    Claim("merging helps the new", "inter-iteration merging", "new", "medium, merged", "medium"),
    Claim("merging keeps the old", "inter-iteration merging", "old", "medium, merged", "medium"),
    Claim(
        "the shortest right chain is the better teacher",
        "rejection sampling keeps the shortest right path",
        "new",
        "one-shot",
        "any right chain",
    ),
    Claim(
        "and makes short answers",
        "the same",
        "new, extra tokens",
        "one-shot",
        "any right chain",
        larger=False,
    ),
)
SCHEDULER = (
    Claim(
        "wall time falls with staleness 1",
        "about 30 % less idle time; here real processes with long-tailed rollouts",
        "wall seconds",
        "staleness 1",
        "synchronous",
        larger=False,
    ),
    Claim("and the policy is as good", "within seed noise", "accuracy", "staleness 1", "synchronous", margin=0.05),
)
ROUTER = (
    Claim("math learns more with its own scale", "no source dominates a mixed batch", "math", "adaptive", "raw"),
    Claim("code learns more with its own scale", "the same", "code", "adaptive", "raw"),
    Claim("the loud source loses nothing", "the same, within 0.05", "general", "adaptive", "raw", margin=0.05),
    Claim(
        "only adaptive scaling improves every source",
        "here: without it the source that gains least gains no more than 0.05",
        "least gained",
        "raw",
        0.05,
        larger=False,
    ),
    Claim(
        "a sigmoid for the loud source alone does as well",
        "the facts' R: the reward model squashed",
        "mean",
        "squashed",
        "adaptive",
        margin=0.03,
    ),
    Claim(
        "it beats the deviations of groups",
        "GRPO's own scaling, without a router",
        "mean",
        "adaptive",
        "group deviations",
        control=True,
    ),
    Claim(
        "it beats a higher rate",
        "raw rewards with four times the learning rate",
        "mean",
        "adaptive",
        "raw, four times the rate",
        control=True,
    ),
    Claim(
        "the loud source is also the hard one",
        "a base without any skill in it: it may need its scale",
        "general",
        "adaptive, unskilled",
        "raw, unskilled",
        margin=0.05,
        control=True,
    ),
    Claim(
        "masking keeps the KL term from ruling",
        "zero-advantage masking, with a KL weight of 0.5",
        "mean",
        "masked",
        "unmasked",
    ),
)
CLAIMS = (*THINKING, *DISTILLATION, *SCHEDULER, *ROUTER)
