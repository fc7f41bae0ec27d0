"""DIP-R1: object detection in crowds by a model that thinks, looks and decides (arXiv:2505.23179).

GRPO on a vision-language model with three rewards: for the form, for looks at the regions on which the samples of a
picture disagree, and for precision and recall of the boxes that it answers with.

reply       the three blocks of a reply and the boxes in them
frames      boxes in pixels of the picture, and in the coordinates that a model writes
match       IoU, Hungarian matching, precision, recall, F-beta
look        regions, what a group disagrees on, and the reward for looking there
reward      the three rewards together
measures    AP and AR, MR^-2, F1
data        COCO-style and CrowdHuman's files
prompts     the instruction, and replies written from annotations
drawing     a picture with boxes, for reports
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import posttrain as pt
from posttrain.systems.dip_r1.drawing import draw_boxes
from posttrain.systems.dip_r1.reply import Reader, read_strictly

__all__ = ["PARTS", "recipe"]


def recipe(
    reward: pt.Reward,
    policy: pt.TextPolicy,
    *,
    samples: int = 8,
    kl: float = 0.04,
    read: Reader = read_strictly,
    evaluation: pt.Reward | None = None,
) -> pt.Recipe:
    """GRPO: groups of 8, clip 0.2, and a KL of 0.04 to `policy` as it is now; 0 keeps no copy of it.

    read  what a reply states, for the drawings of reports
    The numbers are ours.
    """
    reference = policy.frozen_copy() if kl else None
    draw = partial(draw_boxes, read=read)
    return pt.grpo(reward, samples=samples, kl=kl, reference=reference, evaluation=evaluation, draw=draw)


PARTS: Mapping[str, pt.Part] = {}  # its rewards read boxes, which the tasks of other recipes do not have
