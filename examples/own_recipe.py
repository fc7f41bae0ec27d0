"""A recipe of your own for the command line: `posttrain train --recipe examples/own_recipe.py:cautious ...`.

Its function may ask for `policy`, `reward` (of --grade) and `samples` (of --samples), by these names.
"""

import sys

import posttrain as pt


def cautious(policy: pt.TextPolicy, reward: pt.Reward, samples: int = 4) -> pt.Recipe:
    """Leave-one-out advantages, a tight clip, and a divergence from the model that it starts from."""
    loss = pt.total((1.0, pt.clipped(0.1, 0.1)), (0.02, pt.kl_to_reference()))
    return pt.Recipe(
        reward, advantage=pt.leave_one_out, loss=loss, samples=samples, updates=2, reference=policy.frozen_copy()
    )


if __name__ == "__main__":
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    policy = pt.text("tiny", max_new=32)
    settings = pt.Run("runs/own-recipe", steps=steps, tasks=16, lr=5e-4, overwrite=True)
    pt.train(policy, pt.tiny.tasks(200), cautious(policy, pt.grade.math), settings)
