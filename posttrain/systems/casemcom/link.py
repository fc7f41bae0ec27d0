"""The link: an expert's symbols over Rayleigh fading, the receiver's wish for more, and what all of it took.

The receiver knows h and the noise. It asks for a second transmission, over a new block, where the quality that it
expects of the first is less than the task needs; of two it keeps the one of which it expects more. It never sees the
picture that was sent. Every transmission is charged.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import posttrain as pt
from posttrain import channel
from posttrain.systems.casemcom.experts import REGIONS, Experts, through
from posttrain.systems.casemcom.quality import psnr, ssim
from posttrain.systems.casemcom.slots import Capture, Delivery, Slot, User

SYMBOL_MS, ROUND_TRIP_MS = 0.25, 4.0  # of a symbol on the air, and of asking once more; ours


def slots_of(
    captures: Sequence[Capture], experts: Experts, seed: int, by: channel.By = "own", at_once: int = 1024
) -> list[Slot]:
    """The slots with what every decision delivers. Fading and noise are those of the captures' places and the seed.

    Raises ValueError, naming the slot, for a budget in which not every user gets the least size.
    """
    least = experts.sizes[0]
    for one in captures:
        if one.symbols < least * len(one.users):
            raise ValueError(
                f"the slot {one.key!r} has {one.symbols} symbols for {len(one.users)} users: they need {least} each"
            )
    out = []
    for start in range(0, len(captures), at_once):
        some = captures[start : start + at_once]
        every = [user for one in some for user in one.users]
        pictures, masks = (torch.cat([getattr(one, name) for one in some]) for name in ("pictures", "masks"))
        found = iter(deliveries(every, pictures, masks, experts, pt.mix(seed, "link", start), by))
        out += [
            Slot(one.key, one.symbols, experts.sizes, one.users, tuple(next(found) for _ in one.users)) for one in some
        ]
    return out


@torch.no_grad()
def deliveries(
    users: Sequence[User], pictures: Tensor, masks: Tensor, experts: Experts, seed: int, by: channel.By
) -> list[tuple[Delivery, ...]]:
    """[B][K] what each expert delivers to each user. A user's blocks fade alike whichever expert sends."""
    snr_db, least_db = numbers(users, "snr_db"), numbers(users, "least_db")
    regions, weights = regions_of(users), weights_of(users, masks)
    blocks = [channel.fading(len(users), pt.mix(seed, "block", attempt), by) for attempt in range(2)]
    columns = []
    for expert in range(len(experts.encoders)):
        first, second = (
            through(experts, expert, pictures, masks, snr_db, block, pt.mix(seed, "noise", expert, attempt))
            for attempt, block in enumerate(blocks)
        )
        hoped, hoped_again = (
            experts.expected_psnr(expert, regions, snr_db + 20 * block.abs().clamp(min=1e-6).log10())
            for block in blocks
        )
        again = hoped < least_db
        received = torch.where((again & (hoped_again > hoped))[:, None, None], second, first)
        size = experts.sizes[expert % len(experts.sizes)]
        columns.append(outcomes(received, pictures, weights, again, size))
    return list(zip(*columns, strict=True))


def outcomes(received: Tensor, pictures: Tensor, weights: Tensor, again: Tensor, size: int) -> list[Delivery]:
    """[B] what was received, and whether it took a second transmission of `size` symbols."""
    marks = zip(
        psnr(received, pictures, weights).tolist(),
        ssim(received, pictures, weights).tolist(),
        again.tolist(),
        strict=True,
    )
    return [
        Delivery(quality, likeness, size * (1 + more), more, size * SYMBOL_MS * (1 + more) + ROUND_TRIP_MS * more)
        for quality, likeness, more in marks
    ]


def numbers(users: Sequence[User], name: str) -> Tensor:
    return torch.tensor([getattr(user, name) for user in users], dtype=torch.float32)


def regions_of(users: Sequence[User]) -> Tensor:
    return torch.tensor([REGIONS.index(user.region) for user in users])


def weights_of(users: Sequence[User], masks: Tensor) -> Tensor:
    """[B, side, side] one for the pixels that a user's task needs."""
    is_object = (regions_of(users) == REGIONS.index("object"))[:, None, None]
    return torch.where(is_object, masks, torch.ones_like(masks))
