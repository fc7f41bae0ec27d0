"""The experts: separate encoders and decoders of pictures for a channel, one for each region and number of symbols.

An expert is a joint source and channel code (JSCC): an encoder writes a picture as n complex symbols of unit power, and
its decoder reads them as they arrive. Region `object` is the pixels of the object's box, `whole` all of them. Which
expert sends is the gate's choice; nothing is routed inside of a network.

Shapes:  B transmissions   P pixels, side^2   n symbols   K experts, region by region and size by size
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import posttrain as pt
from posttrain import channel
from posttrain.systems.casemcom.quality import psnr

REGIONS = ("object", "whole")
SNR_DB = (-13.0, 30.0)  # of the paper's case study; mean ratios are uniform between them
GRID_DB = tuple(range(-40, 45, 5))  # a block's own ratio, at which the receiver's estimates are fitted
WEIGHTS, CONFIG = "experts.safetensors", "experts.json"


class Experts(nn.Module):
    """K encoders and decoders, and what quality a receiver may expect of each.

    side    of a picture, in pixels
    sizes   complex symbols of a transmission, ascending
    hidden  width of the one hidden layer of every encoder and decoder
    """

    expected: Tensor  # [K, regions, grid] mean PSNR of a region, in dB, at the ratios of GRID_DB

    def __init__(self, side: int, sizes: Sequence[int], hidden: int = 128):
        super().__init__()
        self.settings = {"side": side, "sizes": list(sizes), "hidden": hidden}
        self.side, self.sizes, pixels = side, tuple(sizes), side * side
        every = [size for _ in REGIONS for size in sizes]
        self.encoders = nn.ModuleList(
            nn.Sequential(nn.Linear(pixels + 1, hidden), nn.GELU(), nn.Linear(hidden, 2 * size)) for size in every
        )
        self.decoders = nn.ModuleList(
            nn.Sequential(nn.Linear(2 * size, hidden), nn.GELU(), nn.Linear(hidden, pixels), nn.Sigmoid())
            for size in every
        )
        self.register_buffer("expected", torch.zeros(len(every), len(REGIONS), len(GRID_DB)))

    def encode(self, expert: int, pictures: Tensor, masks: Tensor, snr_db: Tensor) -> Tensor:
        """[B, side, side] pictures, with [B, side, side] masks of their objects -> [B, n] symbols of unit power."""
        seen = pictures * masks if expert < len(self.sizes) else pictures
        numbers = self.encoders[expert](torch.cat([seen.flatten(1), snr_db[:, None] / SNR_DB[1]], 1))
        return channel.unit_power(torch.view_as_complex(numbers.view(len(numbers), -1, 2).contiguous()))

    def decode(self, expert: int, symbols: Tensor) -> Tensor:
        """[B, n] symbols as they were equalised -> [B, side, side] pictures."""
        return self.decoders[expert](torch.view_as_real(symbols).flatten(1)).view(-1, self.side, self.side)

    def expected_psnr(self, expert: int, regions: Tensor, own_db: Tensor) -> Tensor:
        """[B] what the receiver expects, in dB, of a region [B] (index) at a block's own ratio |h|^2 snr [B], in dB.

        Linear between the points of the grid. It knows the channel and the expert, and no picture.
        """
        step = GRID_DB[1] - GRID_DB[0]
        place = ((own_db - GRID_DB[0]) / step).clamp(0, len(GRID_DB) - 1 - 1e-4)
        at = place.long()
        curve = self.expected[expert][regions]
        low, high = curve.gather(1, at[:, None])[:, 0], curve.gather(1, at[:, None] + 1)[:, 0]
        return low + (place - at) * (high - low)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, folder / WEIGHTS)
        (folder / CONFIG).write_text(json.dumps(self.settings, indent=2) + "\n")


def load_experts(folder: str | Path) -> Experts:
    """What `Experts.save` wrote. Raises ValueError for a folder without it."""
    path = Path(folder)
    if not (path / CONFIG).is_file() or not (path / WEIGHTS).is_file():
        raise ValueError(
            f"`experts={folder}`: the folder holds no experts ({CONFIG} and {WEIGHTS}); stage experts does"
        )
    made = Experts(**json.loads((path / CONFIG).read_text()))
    made.load_state_dict(load_file(path / WEIGHTS))
    return made.eval()


def train_experts(
    experts: Experts,
    pictures: Tensor,
    masks: Tensor,
    *,
    updates: int = 250,
    rows: int = 128,
    rate: float = 2e-3,
    seed: int = 0,
) -> None:
    """Each expert alone: the least mean squared error over its region behind fading and noise. Then the estimates.

    A ratio is drawn for every picture and step, uniform in dB.
    """
    for expert in range(len(experts.encoders)):
        draw = torch.Generator().manual_seed(pt.mix(seed, "experts", expert))
        parameters = [*experts.encoders[expert].parameters(), *experts.decoders[expert].parameters()]
        optimizer = torch.optim.Adam(parameters, lr=rate)
        for update in range(updates):
            some = torch.randint(len(pictures), (rows,), generator=draw)
            snr_db = SNR_DB[0] + (SNR_DB[1] - SNR_DB[0]) * torch.rand(rows, generator=draw)
            fading = channel.fading(rows, pt.mix(seed, "fading", expert, update))
            weights = masks[some] if expert < len(experts.sizes) else torch.ones_like(masks[some])
            received = through(experts, expert, pictures[some], masks[some], snr_db, fading, pt.mix(seed, update))
            loss = ((received - pictures[some]).square() * weights).sum() / weights.sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    fit_expectations(experts, pictures, masks, seed)


def through(
    experts: Experts, expert: int, pictures: Tensor, masks: Tensor, snr_db: Tensor, fading: Tensor, seed: int
) -> Tensor:
    """[B, side, side] pictures as one transmission each delivers them."""
    sent = experts.encode(expert, pictures, masks, snr_db)
    return experts.decode(expert, channel.send(sent, fading, channel.ratio(snr_db), seed))


@torch.no_grad()
def fit_expectations(experts: Experts, pictures: Tensor, masks: Tensor, seed: int, most: int = 512) -> None:
    """Fill in `expected` on training pictures, at ratios that the encoder is told exactly."""
    pictures, masks = pictures[:most], masks[:most]
    for expert in range(len(experts.encoders)):
        for k, ratio_db in enumerate(GRID_DB):
            snr_db = torch.full((len(pictures),), float(ratio_db))
            still = torch.ones(len(pictures), dtype=torch.complex64)
            received = through(experts, expert, pictures, masks, snr_db, still, pt.mix(seed, "expected", expert, k))
            for region, weights in enumerate((masks, torch.ones_like(masks))):
                experts.expected[expert, region, k] = psnr(received, pictures, weights).mean()
