"""The traditional baseline: quantised pixels, a CRC, 5G LDPC at rate 1/2 and QAM, by sionna.

Every user gets an equal share of the budget. The constellation is chosen by the mean ratio; the picture is averaged to
as many pixels of 5 bits as the payload holds. What arrives is a picture, or, where the CRC fails twice, nothing: the
receiver then shows grey.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import posttrain as pt
from posttrain import channel
from posttrain.systems.casemcom.link import numbers, outcomes, weights_of
from posttrain.systems.casemcom.slots import Capture, Delivery, Slot, User

PIXEL_BITS, CRC, CRC_BITS = 5, "CRC11", 11
CONSTELLATIONS = ((20.0, 6), (10.0, 4), (-1e9, 2))  # bits of a symbol from a mean ratio in dB on; ours
LEAST_SYMBOLS = 16  # below, the checksum leaves no pixel


def digital_slots(slots: Sequence[Slot], captures: Sequence[Capture], seed: int) -> list[Slot]:
    """The slots with one outcome for each user: that of this baseline.

    Raises ValueError without sionna, and, naming the slot, for a share that holds no pixel.
    """
    parts = sionna_parts()
    users: list[tuple[int, int, int, int]] = []
    for i, one in enumerate(captures):
        share = users_share(one)
        if share < LEAST_SYMBOLS:
            raise ValueError(f"the slot {one.key!r}: {share} symbols for a user hold no pixel; {LEAST_SYMBOLS} do")
        users += [(share, bits_of_symbol(user.snr_db), i, j) for j, user in enumerate(one.users)]
    found: dict[tuple[int, int], Delivery] = {}
    for share, bits in sorted({(share, bits) for share, bits, _, _ in users}):
        some = [(i, j) for a, b, i, j in users if (a, b) == (share, bits)]
        sent = digital_deliveries(captures, some, share, bits, pt.mix(seed, "digital", share, bits), parts)
        found |= dict(zip(some, sent, strict=True))
    return [
        replace(one, outcomes=tuple((found[i, j],) for j in range(len(one.users))), sizes=(users_share(one),))
        for i, one in enumerate(slots)
    ]


def only_outcome(slot: Slot, user: User, room: int) -> int:
    """A rule for these slots."""
    return 0


def users_share(slot: Slot | Capture) -> int:
    return slot.symbols // len(slot.users)


def bits_of_symbol(snr_db: float) -> int:
    return next(bits for least, bits in CONSTELLATIONS if snr_db >= least)


def sionna_parts() -> Any:
    try:
        from sionna.phy import fec, mapping
    except ImportError as error:
        raise ValueError("the digital baseline needs the extra: pip install 'posttrain[channel]'") from error
    return fec, mapping


@torch.no_grad()
def digital_deliveries(
    captures: Sequence[Capture], places: Sequence[tuple[int, int]], share: int, bits: int, seed: int, parts: Any
) -> list[Delivery]:
    """[B] of users (slot, user) who send alike: `share` symbols of so many bits, half of them information."""
    fec, mapping = parts
    users = [captures[i].users[j] for i, j in places]
    pictures = torch.stack([captures[i].pictures[j] for i, j in places])
    weights = weights_of(users, torch.stack([captures[i].masks[j] for i, j in places]))
    snr = channel.ratio(numbers(users, "snr_db"))
    payload = share * bits // 2 - CRC_BITS
    grid = min(int((payload // PIXEL_BITS) ** 0.5), pictures.shape[-1])
    written = functional.pad(pixel_bits(pictures, grid), (0, payload - grid * grid * PIXEL_BITS))
    check = fec.crc.CRCEncoder(CRC, device="cpu")
    code = fec.ldpc.LDPC5GEncoder(share * bits // 2, share * bits, device="cpu")
    decoder = fec.ldpc.LDPC5GDecoder(code, device="cpu")
    symbols = mapping.Mapper("qam", bits, device="cpu")(code(check(written)))
    received, passed = torch.full_like(pictures, 0.5), [torch.zeros(len(users), dtype=torch.bool)]
    for attempt in range(2):
        block = channel.fading(len(users), pt.mix(seed, "block", attempt))
        own = block.abs().square() * snr
        arrived = channel.send(symbols, block, snr, pt.mix(seed, "noise", attempt))
        unbiased = arrived * ((own + 1) / own)[:, None]  # the equaliser shrinks by own / (1 + own)
        ratios = mapping.Demapper("app", "qam", bits, device="cpu")(unbiased, (1 / own)[:, None].expand(-1, share))
        read, good = fec.crc.CRCDecoder(check, device="cpu")(decoder(ratios))
        good, shown = good[:, 0].bool(), pictures_of(read, grid, pictures.shape[-1])
        received = torch.where((good & ~passed[-1])[:, None, None], shown, received)
        passed.append(passed[-1] | good)
    return outcomes(received, pictures, weights, ~passed[1], share)


def pixel_bits(pictures: Tensor, grid: int) -> Tensor:
    """[B, side, side] -> [B, grid^2 * 5] of 0 and 1, the greatest first: averages over a grid, in 32 levels."""
    small = functional.adaptive_avg_pool2d(pictures[:, None], grid).flatten(1)
    levels = (small * (2**PIXEL_BITS - 1)).round().long()
    return ((levels[..., None] >> torch.arange(PIXEL_BITS - 1, -1, -1)) & 1).flatten(1).float()


def pictures_of(bits: Tensor, grid: int, side: int) -> Tensor:
    """The pictures that `pixel_bits` wrote, at their size again."""
    digits = bits[:, : grid * grid * PIXEL_BITS].view(len(bits), grid, grid, PIXEL_BITS)
    levels = (digits * 2.0 ** torch.arange(PIXEL_BITS - 1, -1, -1)).sum(-1)
    small = levels[:, None] / (2**PIXEL_BITS - 1)
    return functional.interpolate(small, size=(side, side), mode="bilinear", align_corners=False)[:, 0]
