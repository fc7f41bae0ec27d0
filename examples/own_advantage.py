"""An advantage of your own: how far a rollout stands above the median of its group, never more than one."""

import statistics
import sys

import torch

import posttrain as pt
from posttrain import tiny


def above_median(group: pt.Group, scores: list[pt.Score]) -> list[torch.Tensor]:
    """One [N] tensor per rollout, over its decisions."""
    middle = statistics.median(score.value for score in scores)
    return [
        torch.full((rollout.decisions,), max(-1.0, min(1.0, score.value - middle)))
        for rollout, score in zip(group, scores, strict=True)
    ]


if __name__ == "__main__":
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    policy = pt.text("tiny", max_new=32)
    recipe = pt.Recipe(pt.grade.exact, advantage=above_median)
    pt.train(policy, tiny.tasks(500), recipe, pt.Run("runs/own-advantage", steps=steps, lr=5e-4, overwrite=True))
