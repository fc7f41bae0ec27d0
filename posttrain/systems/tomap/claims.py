"""What the paper claims, what we ask of our own choices, and the arms that are compared."""

from __future__ import annotations

from posttrain.claim import Claim
from posttrain.systems.tomap.experiments import arm

SHOWN = "shift"  # the measure of the picture: agreement at the end less at the beginning, in hundredths

ARMS = {
    "base": arm("rl", learns=False),
    "RL": arm("rl"),
    "ToMAP-lite": arm("lite"),
    "ToMAP": arm("full"),
    "white": arm("white"),
    "black, random": arm("black_random"),
    "untrained ToMAP": arm("full", learns=False),
}
CLAIMS = (
    Claim("reinforcement makes a better persuader", "13.84 against 11.76 on average", "shift", "RL", "base"),
    Claim("ToMAP beats RL", "17.48 against 13.84 on average, 23.01 against 16.42 in training", "shift", "ToMAP", "RL"),
    Claim(
        "attitudes help beyond counterclaims",
        "ToMAP against ToMAP-lite, which is not told how much Bob agrees",
        "shift",
        "ToMAP",
        "ToMAP-lite",
    ),
    Claim(
        "true attitudes are no worse than predicted ones", "the oracle `white` against ToMAP", "shift", "white", "ToMAP"
    ),
    Claim("predicted attitudes beat random ones", "ToMAP against random attitudes", "shift", "ToMAP", "black, random"),
    Claim(
        "ToMAP beats RL in long conversations",
        "suited to long conversations; here six turns, after training on three",
        "shift, 6 turns",
        "ToMAP",
        "RL",
    ),
    Claim(
        "ToMAP keeps gaining in long conversations",
        "suited to long conversations; here six turns against three",
        "shift, 6 turns",
        "ToMAP",
        "ToMAP",
        against="shift",
    ),
    Claim(
        "training reduces repetition",
        "repetition is reduced in training",
        "repetition",
        "ToMAP",
        "untrained ToMAP",
        larger=False,
    ),
    Claim(
        "the predictor beats always guessing the commonest answer",
        "an MLP on embeddings of statement and dialogue",
        "predictor accuracy",
        "untrained ToMAP",
        "untrained ToMAP",
        against="majority class",
    ),
    Claim(
        "training teaches the form of replies",
        "a reward for it; here the share of well-formed replies",
        "format",
        "ToMAP",
        "untrained ToMAP",
    ),
    Claim(
        "ToMAP learns beyond what its prompt tells it",
        "against the base model, told all that ToMAP is told",
        "shift",
        "ToMAP",
        "untrained ToMAP",
        control=True,
    ),
    Claim("counterclaims help by themselves", "ToMAP-lite against RL", "shift", "ToMAP-lite", "RL", control=True),
    Claim(
        "attitudes still help in long conversations",
        "ToMAP against ToMAP-lite at six turns",
        "shift, 6 turns",
        "ToMAP",
        "ToMAP-lite",
        control=True,
    ),
)
