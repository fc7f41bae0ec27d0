"""What the paper claims, what we ask of our own choices, and the arms that are compared."""

from __future__ import annotations

from posttrain.lab.claim import Claim
from posttrain.systems.actlcd.experiments import Arm, bcq, by_entropy, fixed, online, oracle

SHOWN = "factuality"  # the measure of the picture

ARMS: dict[str, Arm] = {
    "greedy": fixed(0.0),
    "DoLa": fixed(1.0),
    "entropy gate": by_entropy,
    "BC only": bcq("clone"),
    "ActLCD": bcq("terminal"),
    "ActLCD, token reward": bcq("token"),
    "GRPO gate": online,
    "oracle": oracle,
    "greedy, snowball": fixed(0.0, snowball=True),
    "DoLa, snowball": fixed(1.0, snowball=True),
    "BC only, snowball": bcq("clone", snowball=True),
    "ActLCD, snowball": bcq("terminal", snowball=True),
}
CLAIMS = (
    Claim(
        "DoLa surfaces facts that the model suppresses",
        "premise: contrasting layers raises factuality where the model knows better",
        "rare",
        "DoLa",
        "greedy",
    ),
    Claim(
        "DoLa damages answers that greedy decoding has right",
        "premise: an indiscriminate contrast costs correct tokens",
        "common",
        "greedy",
        "DoLa",
    ),
    Claim("the gate beats greedy decoding", "TruthfulQA +19.81, StrategyQA +7.51", "factuality", "ActLCD", "greedy"),
    Claim("the gate beats DoLa", "better than DoLa on five benchmarks", "factuality", "ActLCD", "DoLa"),
    Claim(
        "where the gate contrasts matters, not how often",
        "against a gate that contrasts at random, equally often",
        "factuality",
        "ActLCD",
        "ActLCD",
        against="random gate",
        control=True,
    ),
    Claim(
        "the gate beats greedy decoding at an equal repetition penalty",
        "the paper compares greedy at 1.0 with ActLCD at 1.2; here both have 1.2",
        "factuality at 1.2",
        "ActLCD",
        "greedy",
        control=True,
    ),
    Claim(
        "reinforcement improves on cloning",
        "a reward-aware classifier against its behaviour-cloning classifier alone",
        "factuality",
        "ActLCD",
        "BC only",
        control=True,
    ),
    Claim(
        "the gate beats a threshold on the entropy",
        "the simplest gate, tuned on the same facts",
        "factuality",
        "ActLCD",
        "entropy gate",
        control=True,
    ),
    Claim(
        "a sequence-level reward is as good as token-level rewards",
        "the reward of the sequence against the same sum paid token by token; within 0.02",
        "factuality",
        "ActLCD",
        "ActLCD, token reward",
        margin=0.02,
    ),
    Claim(
        "the gate comes close to an oracle",
        "the oracle has every fact right that one of the two actions has right; within 0.1",
        "factuality",
        "ActLCD",
        "oracle",
        margin=0.1,
        control=True,
    ),
    Claim(
        "learning the gate offline is as good as learning it online",
        "the same gate by GRPO on right facts, without labels: 30,720 decisions, 6,144 offline; within 0.03",
        "factuality",
        "ActLCD",
        "GRPO gate",
        margin=0.03,
        control=True,
    ),
    Claim(
        "the gate beats greedy decoding where mistakes snowball",
        "long-form answers: LongFact +3.30; here an answer is the next question's subject",
        "factuality",
        "ActLCD, snowball",
        "greedy, snowball",
    ),
    Claim(
        "the gate beats DoLa where mistakes snowball",
        "long-form answers; here an answer is the next question's subject",
        "factuality",
        "ActLCD, snowball",
        "DoLa, snowball",
    ),
    Claim(
        "reinforcement improves on cloning where mistakes snowball",
        "a sequence-level reward should know that an early mistake costs more",
        "factuality",
        "ActLCD, snowball",
        "BC only, snowball",
        control=True,
    ),
)
