"""What a program earns: R = 10 IoU with the target, and -10 where it leaves no valid solid (paper).

The released code gives 0 to a program that runs and defines no usable `r`; here every invalid one earns -10, as the
paper has it, and 0 is for two valid solids that the kernel cannot intersect.
"""

from __future__ import annotations

import re

import posttrain as pt
from posttrain.systems.cadrille.kernel.pool import Comparison, Kernel

WEIGHT, INVALID = 10.0, -10.0
FENCED = re.compile(r"```[\w+-]*[ \t]*\n(.*?)```", re.DOTALL)


def program_in(text: str) -> str:
    """The program that a reply states: its first fenced block, or all of it."""
    found = FENCED.search(text)
    return (found[1] if found else text).strip()


def reward(kernel: Kernel) -> pt.Reward:
    """Of tasks whose truth is a `Target`. Parts: `iou`, 0 where there is none, and `valid`."""

    def graded(group: pt.Group) -> list[pt.Score | pt.Invalid]:
        pairs = [(program_in(rollout.text), rollout.task.truth) for rollout in group]
        return [one if isinstance(one, pt.Invalid) else score(one) for one in kernel.compare(pairs)]

    return graded


def score(found: Comparison) -> pt.Score:
    iou = found.iou or 0.0
    return pt.Score(WEIGHT * iou if found.valid else INVALID, {"iou": iou, "valid": float(found.valid)})
