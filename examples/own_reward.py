"""A reward of your own: right answers, the shorter the better.

python examples/own_reward.py [STEPS]            or, from the command line:
posttrain train ... --grade examples/own_reward.py:short_and_right
"""

import sys

import posttrain as pt
from posttrain import tiny


def short_and_right(reply: str, answer: str) -> float:
    right = reply.rpartition("####")[2].strip() == answer
    return right * (1.0 - len(reply) / 200)


if __name__ == "__main__":
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    policy = pt.text("tiny", max_new=32)
    recipe = pt.grpo(reward=pt.grade.own(short_and_right))
    pt.train(policy, tiny.tasks(500), recipe, pt.Run("runs/own-reward", steps=steps, lr=5e-4, overwrite=True))
