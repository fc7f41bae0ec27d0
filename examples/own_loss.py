"""A loss of your own, added to a known one: the clipped surrogate, plus a pull back to where the step began."""

import sys

import torch

import posttrain as pt
from posttrain import tiny


def stay_close(batch: pt.Batch, now: pt.Density) -> tuple[torch.Tensor, pt.Metrics]:
    """[N] a cost per decision; the library weighs and sums. It only acts from the second update of a step on."""
    moved = now.logp - batch.logp_old
    return moved.square(), {"moved": moved.detach().abs().mean().item()}


if __name__ == "__main__":
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    loss = pt.total((1.0, pt.clipped(0.2, 0.28)), (0.1, stay_close))
    pt.check_loss(loss)
    policy = pt.text("tiny", max_new=32)
    recipe = pt.Recipe(pt.grade.exact, loss=loss, updates=2)
    pt.train(policy, tiny.tasks(500), recipe, pt.Run("runs/own-loss", steps=steps, lr=5e-4, overwrite=True))
