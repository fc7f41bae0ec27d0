"""How good programs are: Chamfer distance, IoU, share of invalid ones; and their picture beside the target's.

The paper's IoU is a mean over valid programs, which a model raises by failing where it would be bad: the share of
invalid ones stands beside it, and so does the IoU in which they count as 0 (ours).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

import posttrain as pt
from posttrain.systems.cadrille.kernel.pool import Kernel
from posttrain.systems.cadrille.points import Mesh, chamfer
from posttrain.systems.cadrille.render import VIEWS, picture
from posttrain.systems.cadrille.reward import program_in

FROM_ABOVE = VIEWS[1]
COLUMNS = ("CD x1000", "IoU", "invalid", "IoU, invalid 0")


def predictions(rollouts: Sequence[pt.Rollout], kernel: Kernel, seed: int = 0) -> list[dict[str, Any]]:
    """A line for each: `id`, `program`, `iou`, `chamfer` and `reason`. What the machine could not grade is left out.

    chamfer  mean squared distances, both ways, of 8192 points, both solids moved and scaled to the unit cube; None
             where there is no solid
    """
    programs = [program_in(one.text) for one in rollouts]
    compared = kernel.compare([(text, one.task.truth) for text, one in zip(programs, rollouts, strict=True)])
    surfaces = kernel.meshes([*programs, *(one.task.truth for one in rollouts)])
    made, wanted = surfaces[: len(programs)], surfaces[len(programs) :]
    lines = []
    for one, text, found, a, b in zip(rollouts, programs, compared, made, wanted, strict=True):
        if isinstance(found, pt.Invalid) or isinstance(a, pt.Invalid) or not isinstance(b, Mesh):
            continue
        draw = np.random.default_rng(pt.mix(seed, one.task.key))
        distance = chamfer(a.in_cube(), b.in_cube(), draw) if isinstance(a, Mesh) else None
        lines.append(
            {"id": one.task.key, "program": text, "iou": found.iou, "chamfer": distance, "reason": found.reason}
        )
    return lines


def measures_of(lines: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """By the names of `COLUMNS`; None where no program is valid. Two valid solids that cannot be intersected have 0."""
    valid = [line for line in lines if not line["reason"]]
    overlaps = [line["iou"] or 0.0 for line in valid]
    distances = [1000 * line["chamfer"] for line in valid if line["chamfer"] is not None]
    return {
        "CD x1000": statistics.median(distances) if distances else None,
        "IoU": statistics.fmean(overlaps) if overlaps else None,
        "invalid": 1 - len(valid) / len(lines),
        "IoU, invalid 0": sum(overlaps) / len(lines),
    }


def as_table(measures: Mapping[str, float | None]) -> str:
    """A line of names, and one of numbers."""
    cells = ["-" if measures[name] is None else f"{measures[name]:.3f}" for name in COLUMNS]
    return "\n".join("  ".join(f"{cell:>14}" for cell in row) for row in (COLUMNS, cells))


def drawing(kernel: Kernel) -> Callable[[pt.Rollout], np.ndarray | None]:
    """Of a rollout, a picture [128, 256, 3] uint8 of the target on the left, and on the right of what was made.

    None where there is no target to draw; what is no solid stays white.
    """

    def draw(rollout: pt.Rollout) -> np.ndarray | None:
        wanted, made = kernel.meshes([rollout.task.truth, program_in(rollout.text)])
        if not isinstance(wanted, Mesh):
            return None
        left = picture(wanted.in_cube(), FROM_ABOVE)
        right = picture(made.in_cube(), FROM_ABOVE) if isinstance(made, Mesh) else np.full_like(left, 255)
        return np.hstack([left, right])

    return draw
