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
FIGURE = "test-time iterations on Venus, 0 to 10"

CLAIMS = (
    Claim("PASS@1 rises over iterations", f"37.3 to 61.7; {FIGURE}", "pass 8", "grpo", "grpo", against="pass 0"),
    Claim("and BEYOND-T", "31.2 to 45.2; the same", "beyond time 8", "grpo", "grpo", against="beyond time 0"),
    Claim("and BEYOND-M", "25.1 to 48.1 at the end", "beyond memory 8", "grpo", "grpo", against="beyond memory 0"),
    Claim("and BEYOND-I", "16.2 to 39.0 at the end", "beyond integral 8", "grpo", "grpo", against="beyond integral 0"),
    Claim("more of it passes than after SFT", "61.7 against 48.7 at iteration 10", "pass 8", "grpo", "sft"),
    Claim("more of it passes than after DPO", "61.7 against 51.7 at iteration 10", "pass 8", "grpo", "dpo"),
    Claim("it is faster than after SFT", "45.2 against 26.8 at iteration 10", "beyond time 8", "grpo", "sft"),
    Claim("it is faster than after DPO", "45.2 against 30.9 at iteration 10", "beyond time 8", "grpo", "dpo"),
    Claim("SFT beats the base at first", "46.0 against 28.0 at iteration 0", "pass 0", "sft", "base"),
    Claim("DPO beats the base at first", "43.0 against 28.0 at iteration 0", "pass 0", "dpo", "base"),
    Claim("SFT beats GRPO at first", "46.0 against 37.3 at iteration 0", "pass 0", "sft", "grpo"),
    Claim("GRPO gains more by iterating than SFT", "24.4 against 2.7 points", "pass rise", "grpo", "sft"),
    Claim("GRPO gains more by iterating than DPO", "24.4 against 8.7 points", "pass rise", "grpo", "dpo"),
    Claim(
        "SFT and DPO saturate, GRPO goes on",
        "SFT and DPO rapidly saturate, GRPO continuously optimizes: from iteration 2 to 8",
        "pass late rise",
        "grpo",
        "sft",
    ),
    Claim("the feedback helps", "57.0 against 52.5 at iteration 4", "pass 8", "grpo", "grpo, no feedback"),
    Claim("the original code helps", "57.0 against 54.2 at iteration 4", "pass 8", "grpo", "grpo, no code"),
    Claim(
        "iterating beats as many samples of SFT",
        "nine samples of the first answer, the best by the same measurements kept",
        "pass 8",
        "grpo",
        "sft",
        against="sampled, pass 8",
        control=True,
    ),
    Claim(
        "and is faster than the best of them",
        "the same",
        "beyond time 8",
        "grpo",
        "sft",
        against="sampled, beyond time 8",
        control=True,
    ),
    Claim(
        "iterating beats as many samples of GRPO itself",
        "the same, after GRPO",
        "pass 8",
        "grpo",
        "grpo",
        against="sampled, pass 8",
        control=True,
    ),
)
