"""What a decision earns: the quality that the task needs, less what sending it took."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

import posttrain as pt
from posttrain.systems.casemcom.gate import Decided, decisions_in
from posttrain.systems.casemcom.slots import Delivery, Slot, User

WORTH: Mapping[str, float] = {"high": 1.0, "low": 0.5}  # of quality, by priority; ours
QUALITY_DB, SYMBOLS = 20.0, 96.0  # a quality and a number of symbols that count as one


@dataclass(frozen=True, slots=True)
class Charges:
    """What is taken off. All of these numbers are ours."""

    symbol_charge: float = 0.5
    """For 96 symbols."""
    retransmission_charge: float = 0.3
    """For a second transmission."""
    late_charge: float = 0.3
    """For more latency than the user tolerates."""
    misread_charge: float = 0.5
    """For a reply that cannot be read, or costs more symbols than are left."""
    gate_ms: float = 0.0
    """Latency of the gate's decision; 0 for one that was decided before, and kept by its prompt."""

    def __post_init__(self):
        pt.at_least(0, **{name: getattr(self, name) for name in self.__dataclass_fields__})


def user_parts(
    user: User, delivery: Delivery, misread: bool, charges: Charges, gate_ms: float | None = None
) -> dict[str, float]:
    """Of one user: `reward`, and what it is made of.

        worth * PSNR_w / 20 - 0.5 symbols / 96 - 0.3 retransmitted - 0.3 late - 0.5 misread

    worth is 1 or 0.5 by priority; the weights of PSNR_w are those of the task's region.
    """
    latency = delivery.latency_ms + (charges.gate_ms if gate_ms is None else gate_ms)
    late = latency > user.latency_ms
    paid = (
        WORTH[user.priority] * delivery.psnr / QUALITY_DB
        - charges.symbol_charge * delivery.symbols / SYMBOLS
        - charges.retransmission_charge * delivery.retransmitted
        - charges.late_charge * late
        - charges.misread_charge * misread
    )
    return {
        "reward": paid,
        "psnr": delivery.psnr,
        "ssim": delivery.ssim,
        "symbols": float(delivery.symbols),
        "retransmitted": float(delivery.retransmitted),
        "latency_ms": latency,
        "late": float(late),
        "misread": float(misread),
    }


def slot_parts(slot: Slot, decided: Sequence[Decided], charges: Charges) -> list[dict[str, float]]:
    """[U] of every user."""
    return [
        user_parts(user, outcomes[one.decision], one.misread, charges, None if one.prompt else 0.0)
        for user, outcomes, one in zip(slot.users, slot.outcomes, decided, strict=True)
    ]


def reward(charges: Charges = Charges()) -> pt.Reward:
    """The mean over the users of a slot; its parts are means too.

    Each user's share of it is the score of its own turn, or of the one reply's decision about it.
    """

    def slot_reward(group: pt.Group) -> list[pt.Score]:
        out = []
        for rollout in group:
            found = slot_parts(rollout.task.truth, decisions_in(rollout), charges)
            means = {name: statistics.fmean(one[name] for one in found) for name in found[0]}
            shares = tuple(one["reward"] / len(found) for one in found)
            of_agent = rollout.decisions == len(found) and len(rollout.turns) == 1
            finer: dict[str, Any] = {"decisions": torch.tensor(shares)} if of_agent else {"turns": shares}
            out.append(pt.Score(means.pop("reward"), means, **finer))
        return out

    return slot_reward
