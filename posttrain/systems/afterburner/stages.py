"""What SFT and DPO learn from problems of the user's own, and the options of all the stages that teach."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from posttrain.data import Demonstration, Pair
from posttrain.episode import assistant
from posttrain.seeding import mix
from posttrain.systems.afterburner.measuring import METRICS, at_least
from posttrain.systems.afterburner.reward import Weights
from posttrain.systems.afterburner.venus import InMarkdown, Problem, asked, by_record, said

Stage = Literal["sft", "dpo", "grpo", "evaluate"]


@dataclass(frozen=True)
class TeachingOptions:
    """What SFT, DPO and GRPO learn from."""

    samples: int = 32
    """GRPO: samples of a task."""
    best: int = 24
    """SFT: solutions of each problem and metric that are learned."""
    pairs_each: int = 48
    """DPO: pairs of each problem and metric."""
    least: int = 48
    """DPO: solutions that a problem must have."""
    beta: float = 0.1
    """DPO: how close it stays to the model it starts from."""
    zone: float = 0.1
    """GRPO: relative gains smaller than this count as none."""
    repaired: bool = False
    """GRPO: what passes where the original failed also earns for its efficiency, as in the release."""

    def check(self) -> None:
        """Raises ValueError for a number that is too small."""
        at_least(self, samples=1, best=1, pairs_each=1, least=1, zone=0)

    def weights(self) -> Weights:
        return Weights(zone=self.zone, repaired=self.repaired)


def demonstrations(found: Sequence[Problem], most: int) -> list[Demonstration]:
    """Of each problem and metric the `most` best solutions that passed, from nothing.

    Raises ValueError when there is none.
    """
    plain = InMarkdown()
    out = [
        Demonstration((*asked(one, metric, plain).prompt, assistant(said(solution.code))))
        for one in found
        for metric in METRICS
        for solution in by_record(one, metric)[:most]
    ]
    if not out:
        raise ValueError("no solution of the data passed and has its time, memory or integral: nothing to learn from")
    return out


def pairs(found: Sequence[Problem], count: int, least: int, seed: int) -> list[Pair]:
    """Of each problem with `least` passed solutions and each metric `count` random pairs, the better one chosen.

    Raises ValueError when there is none.
    """
    plain, out = InMarkdown(), list[Pair]()
    for one in found:
        for metric in METRICS:
            known = by_record(one, metric)
            if len(known) < max(least, 2):
                continue
            draw = random.Random(mix(seed, "pairs", one.key, metric))
            for _ in range(count):
                better, worse = sorted(draw.sample(range(len(known)), 2))
                if known[better].recorded[metric] < known[worse].recorded[metric]:
                    texts = said(known[better].code), said(known[worse].code)
                    out.append(Pair(asked(one, metric, plain).prompt, *texts, kind=metric))
    if not out:
        raise ValueError(f"no problem has {least} solutions that passed and differ: lower --least")
    return out
