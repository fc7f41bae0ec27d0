"""Means over users, by band of their mean ratio, and what it saves to keep decisions by their prompts."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence

import posttrain as pt
from posttrain.systems.casemcom.gate import Decided, Rule, decisions_in, rule_decisions
from posttrain.systems.casemcom.reward import Charges, user_parts
from posttrain.systems.casemcom.slots import Slot

BANDS: Mapping[str, tuple[float, float]] = {"below 0 dB": (-1e9, 0), "0 to 15 dB": (0, 15), "15 dB and more": (15, 1e9)}
Parts = Mapping[str, float]


def user_measures(decided: Iterable[tuple[Slot, Sequence[Decided]]], charges: Charges) -> Iterator[dict[str, float]]:
    """What each user got, one slot after another.

    The gate's latency is charged where a prompt comes for the first time: its decision is kept, and costs nothing when
    the same quantised context comes again. `fresh` is 1 for the first time; an agent's and a rule's decisions have no
    prompt, and cost no latency.
    """
    known = {""}
    for slot, decisions in decided:
        for user, outcomes, one in zip(slot.users, slot.outcomes, decisions, strict=True):
            fresh = one.prompt not in known
            known.add(one.prompt)
            parts = user_parts(user, outcomes[one.decision], one.misread, charges, charges.gate_ms * fresh)
            yield {**parts, "fresh": float(fresh), "snr_db": user.snr_db}


def of_rollouts(rollouts: Iterable[pt.Rollout]) -> Iterator[tuple[Slot, Sequence[Decided]]]:
    return ((one.task.truth, decisions_in(one)) for one in rollouts)


def of_rule(slots: Iterable[Slot], rule: Rule) -> Iterator[tuple[Slot, Sequence[Decided]]]:
    return ((slot, [Decided(decision, False) for _, _, decision in rule_decisions(slot, rule)]) for slot in slots)


def means(found: Sequence[Parts]) -> dict[str, float]:
    return {name: statistics.fmean(one[name] for one in found) for name in found[0] if name != "snr_db"}


def by_band(found: Sequence[Parts]) -> dict[str, dict[str, float]]:
    """Of all users, and of those in each band that there are any in."""
    out = {"all": means(found)}
    for name, (low, high) in BANDS.items():
        some = [one for one in found if low <= one["snr_db"] < high]
        if some:
            out[name] = means(some)
    return out


def as_table(rows: Mapping[str, Parts]) -> list[str]:
    names = list(next(iter(rows.values())))
    lines = [" " * 16 + "".join(f"{name:>14}" for name in names)]
    return lines + [f"{row:<16}" + "".join(f"{values[name]:>14.3f}" for name in names) for row, values in rows.items()]
