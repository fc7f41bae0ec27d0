"""What people teach: their best solutions to imitate, and pairs of which one was recorded as better."""

from __future__ import annotations

import random
from collections.abc import Sequence

import posttrain as pt
from posttrain.systems.afterburner.measurement import METRICS
from posttrain.systems.afterburner.venus import InMarkdown, Problem, best_first, reply_text, task_of


def demonstrations(found: Sequence[Problem], most: int) -> list[pt.Demonstration]:
    """For each problem and metric the `most` best solutions that passed. Raises ValueError when there is none."""
    plain = InMarkdown()
    out = [
        pt.Demonstration((*task_of(one, metric, plain).prompt, pt.assistant(reply_text(solution.code))))
        for one in found
        for metric in METRICS
        for solution in best_first(one, metric)[:most]
    ]
    if not out:
        raise ValueError("no solution of the data passed and has its time, memory or integral: nothing to learn from")
    return out


def pairs(found: Sequence[Problem], count: int, least: int, seed: int) -> list[pt.Pair]:
    """For each metric and each problem with at least `least` solutions that passed, `count` random pairs.

    Raises ValueError when there is none.
    """
    plain, out = InMarkdown(), list[pt.Pair]()
    for one in found:
        for metric in METRICS:
            known = best_first(one, metric)
            if len(known) < max(least, 2):
                continue
            draw = random.Random(pt.mix(seed, "pairs", one.key, metric))
            for _ in range(count):
                better, worse = sorted(draw.sample(range(len(known)), 2))
                if known[better].recorded[metric] < known[worse].recorded[metric]:
                    texts = reply_text(known[better].code), reply_text(known[worse].code)
                    out.append(pt.Pair(task_of(one, metric, plain).prompt, *texts, kind=metric))
    if not out:
        raise ValueError(f"`least={least}`: no problem has so many solutions that passed and differ; lower `least`")
    return out
