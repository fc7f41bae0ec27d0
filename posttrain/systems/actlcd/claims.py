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
        "DoLa surfaces what is suppressed",
        "the premise: contrasting layers raises factuality where the model knows better",
        "rare",
        "DoLa",
        "greedy",
    ),
    Claim(
        "and harms what was right",
        "the premise: an indiscriminate contrast costs correct tokens",
        "common",
        "greedy",
        "DoLa",
    ),
    Claim("the gate beats greedy decoding", "TruthfulQA +19.81, StrategyQA +7.51", "factuality", "ActLCD", "greedy"),
    Claim("the gate beats DoLa", "better than DoLa on five benchmarks", "factuality", "ActLCD", "DoLa"),
    Claim(
        "it is where it contrasts, not how often",
        "a gate that contrasts at random, as often",
        "factuality",
        "ActLCD",
        "ActLCD",
        against="random gate",
        control=True,
    ),
    Claim(
        "it beats greedy at equal repetition penalty",
        "the paper compares greedy at 1.0 with ActLCD at 1.2; here both at 1.2",
        "factuality at 1.2",
        "ActLCD",
        "greedy",
        control=True,
    ),
    Claim(
        "reinforcement adds to cloning",
        "a reward-aware classifier, against its classifier alone",
        "factuality",
        "ActLCD",
        "BC only",
        control=True,
    ),
    Claim(
        "a learnt gate beats a threshold on the entropy",
        "the simplest gate, tuned on the same facts",
        "factuality",
        "ActLCD",
        "entropy gate",
        control=True,
    ),
    Claim(
        "the sequence's reward is as good as each token's",
        "sequence-level, against the same sums paid token by token, within 0.02",
        "factuality",
        "ActLCD",
        "ActLCD, token reward",
        margin=0.02,
    ),
    Claim(
        "what is left to an oracle",
        "the share of facts that one of both actions says rightly: within 0.1",
        "factuality",
        "ActLCD",
        "oracle",
        margin=0.1,
        control=True,
    ),
    Claim(
        "offline learning is as good as online",
        "the same gate by GRPO on right facts, without labels, 30,720 decisions against 6,144 offline; within 0.03",
        "factuality",
        "ActLCD",
        "GRPO gate",
        margin=0.03,
        control=True,
    ),
    Claim(
        "where mistakes snowball, the gate beats greedy",
        "long-form answers: LongFact +3.30; here an answer is the next question's subject",
        "factuality",
        "ActLCD, snowball",
        "greedy, snowball",
    ),
    Claim("and DoLa", "the same", "factuality", "ActLCD, snowball", "DoLa, snowball"),
    Claim(
        "where mistakes snowball, reinforcement adds to cloning",
        "a sequence-level reward should know that an early mistake costs more",
        "factuality",
        "ActLCD, snowball",
        "BC only, snowball",
        control=True,
    ),
)
