"""A radio channel: block Rayleigh fading, what it carries a second, and symbols sent over it.

A block is one transmission: its fading coefficient h, complex with E|h|^2 = 1, does not change while it lasts. With the
mean signal-to-noise ratio g, the block's own is |h|^2 g. Coefficients are drawn here, or by sionna (`by="sionna"`).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

By = Literal["own", "sionna"]


def ratio(decibels: Tensor | float) -> Tensor:
    """A power ratio: 10^(dB / 10)."""
    return 10 ** (torch.as_tensor(decibels, dtype=torch.float32) / 10)


def complex_normal(*shape: int, seed: int) -> Tensor:
    """Circular complex Gaussians of unit power: half of it on each axis."""
    generator = torch.Generator().manual_seed(seed)
    return torch.view_as_complex(torch.randn(*shape, 2, generator=generator)) / 2**0.5


def fading(blocks: int, seed: int, by: By = "own") -> Tensor:
    """[blocks] complex64 coefficients h of independent Rayleigh fading, E|h|^2 = 1.

    Raises ValueError when they are to be sionna's and it is missing.
    """
    if by == "own":
        return complex_normal(blocks, seed=seed)
    try:
        from sionna.phy import config
        from sionna.phy.channel import RayleighBlockFading
    except ImportError as error:
        raise ValueError("fading(by=\"sionna\") needs the extra: pip install 'posttrain[channel]'") from error
    config.seed = seed % 2**31
    coefficients, _ = RayleighBlockFading(1, 1, 1, 1, device="cpu")(blocks, 1)
    return coefficients.flatten()


def bits_per_second(bandwidth: float, snr: Tensor) -> Tensor:
    """Shannon's capacity of a block: B log2(1 + snr), for a bandwidth in Hz and its own ratio."""
    return bandwidth * torch.log2(1 + snr)


def unit_power(symbols: Tensor) -> Tensor:
    """[B, n] complex symbols scaled so that each transmission, not the batch, has a mean power of one."""
    power = symbols.abs().square().mean(-1, keepdim=True)
    return symbols / power.clamp(min=1e-12).sqrt()


def send(symbols: Tensor, coefficients: Tensor, snr: Tensor, seed: int) -> Tensor:
    """[B, n] complex symbols of unit power, over [B] blocks with [B] mean ratios -> [B, n] as they are equalised.

    y = h x + w with noise of power 1 / snr, and x^ = h* y / (|h|^2 + 1 / snr): the minimum mean squared error, by a
    receiver that knows h. Differentiable in the symbols.
    """
    h, noise = coefficients[:, None], (1 / snr)[:, None]
    heard = h * symbols + noise.sqrt() * complex_normal(*symbols.shape, seed=seed).to(symbols.device)
    return h.conj() * heard / (h.abs().square() + noise)
