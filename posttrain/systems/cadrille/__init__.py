"""cadrille: points, pictures and text into CadQuery programs, improved by executing them (arXiv:2505.22914).

A model learns procedural programs by imitation, then meets shapes that people made, of which only the surface is known:
its programs are run by a real geometry kernel, and earn ten times the IoU, or -10 where they leave no valid solid.

kernel        programs are admitted, run behind walls and within a deadline, and their solids compared
points        surfaces as points, and the Chamfer distance
render        pictures of solids: the four views that the model sees, and those of the report
reward        10 IoU, or -10
cppo          Dr. CPPO: no deviation, the samples of largest |advantage|, three updates, no KL
mining        hard examples
preferences   DPO with a refreshed reference, the offline rival
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import posttrain as pt
from posttrain.systems.cadrille.cppo import largest, recipe

__all__ = ["PARTS", "recipe"]

PARTS: Mapping[str, pt.Part] = {
    "largest": lambda plain, tiny: replace(
        plain, advantage=largest(max(plain.samples // 4, 1), plain.advantage), keep=pt.credited
    ),
}
