"""What the paper claims of iterating, our controls, and the arms that are compared."""

from __future__ import annotations

from posttrain.lab.claim import Claim
from posttrain.systems.afterburner.experiments import arm

SHOWN = "pass 8"  # the measure of the picture

ARMS = {
    "base": arm("base"),
    "sft": arm("sft"),
    "dpo": arm("dpo"),
    "grpo": arm("grpo"),
    "grpo, no feedback": arm("grpo", feedback=False),
    "grpo, no code": arm("grpo", original=False),
}
CLAIMS = (
    Claim(
        "PASS@1 rises over iterations",
        "37.3 to 61.7 over ten test-time iterations on Venus",
        "pass 8",
        "grpo",
        "grpo",
        against="pass 0",
    ),
    Claim(
        "BEYOND-T, of time, rises over iterations",
        "31.2 to 45.2 over ten test-time iterations on Venus",
        "beyond time 8",
        "grpo",
        "grpo",
        against="beyond time 0",
    ),
    Claim(
        "BEYOND-M, of memory, rises over iterations",
        "25.1 to 48.1 at the last iteration on Venus",
        "beyond memory 8",
        "grpo",
        "grpo",
        against="beyond memory 0",
    ),
    Claim(
        "BEYOND-I, of memory integrated over time, rises over iterations",
        "16.2 to 39.0 at the last iteration on Venus",
        "beyond integral 8",
        "grpo",
        "grpo",
        against="beyond integral 0",
    ),
    Claim(
        "after iterating, GRPO's code passes more often than SFT's",
        "61.7 against 48.7 at iteration 10",
        "pass 8",
        "grpo",
        "sft",
    ),
    Claim(
        "after iterating, GRPO's code passes more often than DPO's",
        "61.7 against 51.7 at iteration 10",
        "pass 8",
        "grpo",
        "dpo",
    ),
    Claim(
        "after iterating, GRPO's code is faster than SFT's",
        "45.2 against 26.8 at iteration 10",
        "beyond time 8",
        "grpo",
        "sft",
    ),
    Claim(
        "after iterating, GRPO's code is faster than DPO's",
        "45.2 against 30.9 at iteration 10",
        "beyond time 8",
        "grpo",
        "dpo",
    ),
    Claim(
        "SFT's first answers pass more often than the base model's",
        "46.0 against 28.0 at iteration 0",
        "pass 0",
        "sft",
        "base",
    ),
    Claim(
        "DPO's first answers pass more often than the base model's",
        "43.0 against 28.0 at iteration 0",
        "pass 0",
        "dpo",
        "base",
    ),
    Claim(
        "SFT's first answers pass more often than GRPO's", "46.0 against 37.3 at iteration 0", "pass 0", "sft", "grpo"
    ),
    Claim("GRPO gains more from iterating than SFT", "24.4 against 2.7 points", "pass rise", "grpo", "sft"),
    Claim("GRPO gains more from iterating than DPO", "24.4 against 8.7 points", "pass rise", "grpo", "dpo"),
    Claim(
        "GRPO keeps improving after SFT has saturated",
        "SFT and DPO rapidly saturate, GRPO continuously optimizes; here from iteration 2 to 8, against SFT",
        "pass late rise",
        "grpo",
        "sft",
    ),
    Claim(
        "feedback from measurements helps GRPO",
        "57.0 against 52.5 without it, at iteration 4",
        "pass 8",
        "grpo",
        "grpo, no feedback",
    ),
    Claim(
        "seeing the original code helps GRPO",
        "57.0 against 54.2 without it, at iteration 4",
        "pass 8",
        "grpo",
        "grpo, no code",
    ),
    Claim(
        "iterating GRPO passes more often than the best of as many samples of SFT",
        "nine samples of the first answer, of which the best by the same measurements is kept",
        "pass 8",
        "grpo",
        "sft",
        against="sampled, pass 8",
        control=True,
    ),
    Claim(
        "iterating GRPO gives faster code than the best of as many samples of SFT",
        "nine samples of the first answer, of which the best by the same measurements is kept",
        "beyond time 8",
        "grpo",
        "sft",
        against="sampled, beyond time 8",
        control=True,
    ),
    Claim(
        "iterating GRPO passes more often than the best of as many samples of GRPO",
        "nine samples of the first answer, of which the best by the same measurements is kept",
        "pass 8",
        "grpo",
        "grpo",
        against="sampled, pass 8",
        control=True,
    ),
)
