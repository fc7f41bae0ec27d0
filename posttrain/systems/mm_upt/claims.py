"""What the paper claims, and the arms that are compared."""

from __future__ import annotations

from posttrain.lab.claim import Claim
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
        "it improves without labels",
        "49.5 to 53.2 on average; here by 0.1 at least",
        "mean@1",
        "majority",
        "base",
        margin=-0.1,
    ),
    Claim(
        "it approaches labels",
        "53.2 against 53.2 with labels on MMR1",
        "mean@1",
        "majority",
        "labels",
        margin=0.1,
    ),
    Claim(
        "a wrong majority teaches what is wrong",
        "49.5 to 44.1 on hard data",
        "mean@1",
        "weak base",
        "weak, majority",
    ),
    Claim(
        "agreement rises all the same",
        "majority reward 0.5 to 0.8",
        "agreement",
        "weak, majority",
        "weak base",
    ),
    Claim("answers narrow", "semantic entropy falls", "semantic entropy", "majority", "base", larger=False),
    Claim("coverage is lost", "pass@10 80.0 to 72.5", "pass@10", "base", "majority"),
    Claim(
        "labels help where the majority is wrong",
        "the same base with labels: it could be taught",
        "mean@1",
        "weak, labels",
        "weak base",
        control=True,
    ),
    Claim(
        "it improves on pictures without labels",
        "49.5 to 53.2 on average; here by 0.1 at least",
        "mean@1",
        "pictures, majority",
        "pictures, base",
        margin=-0.1,
    ),
    Claim(
        "it approaches labels on pictures",
        "53.2 against 53.2 with labels on MMR1",
        "mean@1",
        "pictures, majority",
        "pictures, labels",
        margin=0.1,
    ),
    Claim(
        "coverage is lost on pictures",
        "pass@10 80.0 to 72.5",
        "pass@10",
        "pictures, base",
        "pictures, majority",
    ),
    Claim(
        "its own questions do as well: in context",
        "synthetic questions 51.8 to 52.7 against 51.2 to 53.2 with the originals; here within 0.05",
        "mean@1",
        "pictures, in-context questions",
        "pictures, majority",
        margin=0.05,
    ),
    Claim(
        "its own questions do as well: from the picture alone",
        "52.32/52.67/52.16 with direct questions; here within 0.05",
        "mean@1",
        "pictures, direct questions",
        "pictures, majority",
        margin=0.05,
    ),
    Claim(
        "it beats learning the majority's replies by heart",
        "LMSI is below it in the paper's table",
        "mean@1",
        "pictures, majority",
        "pictures, LMSI",
    ),
    Claim(
        "a higher rate lets the vote turn wrong",
        "ours: the same at three times the learning rate, which labels can stand",
        "mean@1",
        "pictures, majority",
        "pictures, majority, thrice the rate",
        control=True,
    ),
)
