"""What the paper claims, and the arms that are compared."""

from __future__ import annotations

from posttrain.lab.claim import SHARE, Claim
from posttrain.systems.mm_upt import pictures
from posttrain.systems.mm_upt.experiments import arm

ARMS = {
    "base": arm(None, True),
    "majority": arm(False, True),
    "labels": arm(True, True),
    "weak base": arm(None, False),
    "weak, majority": arm(False, False),
    "weak, labels": arm(True, False),
    "pictures, base": pictures.arm(None),
    "pictures, majority": pictures.arm(pictures.voted()),
    "pictures, labels": pictures.arm(pictures.voted(labels=True)),
    "pictures, in-context questions": pictures.arm(pictures.voted("in-context")),
    "pictures, direct questions": pictures.arm(pictures.voted("direct")),
    "pictures, majority, thrice the rate": pictures.arm(pictures.voted(rate=3 * pictures.RATE)),
    "pictures, LMSI": pictures.arm(pictures.imitated),
}
CLAIMS = (
    Claim(
        "voting improves the model without labels",
        "49.5 to 53.2 on average; here by at least 0.1",
        "mean@1",
        "majority",
        "base",
        margin=-0.1,
    ),
    Claim(
        "voting comes close to training with labels",
        "53.2 against 53.2 with labels on MMR1; here within 0.1",
        "mean@1",
        "majority",
        "labels",
        margin=0.1,
        bounds=SHARE,
    ),
    Claim(
        "a wrong majority teaches wrong answers",
        "49.5 to 44.1 on hard data",
        "mean@1",
        "weak base",
        "weak, majority",
    ),
    Claim(
        "agreement rises even where the majority is wrong",
        "majority reward 0.5 to 0.8",
        "agreement",
        "weak, majority",
        "weak base",
    ),
    Claim("voting narrows the answers", "semantic entropy falls", "semantic entropy", "majority", "base", larger=False),
    Claim("voting loses coverage", "pass@10 80.0 to 72.5", "pass@10", "base", "majority", bounds=SHARE),
    Claim(
        "labels help where the majority is wrong",
        "the same base model with labels: it can be taught",
        "mean@1",
        "weak, labels",
        "weak base",
        control=True,
    ),
    Claim(
        "on pictures, voting improves the model without labels",
        "49.5 to 53.2 on average; here by at least 0.1",
        "mean@1",
        "pictures, majority",
        "pictures, base",
        margin=-0.1,
    ),
    Claim(
        "on pictures, voting comes close to training with labels",
        "53.2 against 53.2 with labels on MMR1; here within 0.1",
        "mean@1",
        "pictures, majority",
        "pictures, labels",
        margin=0.1,
    ),
    Claim(
        "on pictures, voting loses coverage",
        "pass@10 80.0 to 72.5",
        "pass@10",
        "pictures, base",
        "pictures, majority",
        bounds=SHARE,
    ),
    Claim(
        "questions that the model writes in context do as well as the originals",
        "synthetic questions 51.8 to 52.7 against 51.2 to 53.2 with the originals; here within 0.05",
        "mean@1",
        "pictures, in-context questions",
        "pictures, majority",
        margin=0.05,
    ),
    Claim(
        "questions that the model writes from the picture alone do as well as the originals",
        "52.32/52.67/52.16 with direct questions; here within 0.05",
        "mean@1",
        "pictures, direct questions",
        "pictures, majority",
        margin=0.05,
    ),
    Claim(
        "voting beats imitating the majority's replies",
        "LMSI scores lower in the paper's table",
        "mean@1",
        "pictures, majority",
        "pictures, LMSI",
    ),
    Claim(
        "a higher learning rate turns the vote wrong",
        "ours: three times the learning rate, which training with labels withstands",
        "mean@1",
        "pictures, majority",
        "pictures, majority, thrice the rate",
        control=True,
    ),
)
