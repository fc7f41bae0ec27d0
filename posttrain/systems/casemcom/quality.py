"""How much a received picture is worth: PSNR and SSIM over the region that a task needs.

Pictures and weights are [B, H, W], in [0, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

BEST_DB = 60.0  # of a picture that arrives without error
WINDOW, DEVIATION = 11, 1.5
C1, C2 = 0.01**2, 0.03**2  # (K1 L)^2 and (K2 L)^2, with a range L of 1


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """[B] over the pixels of each picture."""
    return (values * weights).sum((-2, -1)) / weights.sum((-2, -1)).clamp(min=1e-12)


def psnr(received: Tensor, pictures: Tensor, weights: Tensor) -> Tensor:
    """[B] -10 log10 of the weighted mean squared error, in dB, at most `BEST_DB`."""
    error = weighted_mean((received - pictures).square(), weights)
    return -10 * error.clamp(min=10 ** (-BEST_DB / 10)).log10()


def ssim(received: Tensor, pictures: Tensor, weights: Tensor) -> Tensor:
    """[B] structural similarity (Wang et al. 2004, Eq. 13) in a Gaussian window of 11 x 11, its map averaged by weight.

    At the edges of a picture the window is cut off and its weights sum to one again.
    """
    at = torch.arange(WINDOW, dtype=torch.float32) - WINDOW // 2
    line = torch.exp(-at.square() / (2 * DEVIATION**2))
    window = (line[:, None] * line).to(pictures.device)[None, None]

    def local(values: Tensor) -> Tensor:
        inside = functional.conv2d(torch.ones_like(values[:1, None]), window, padding=WINDOW // 2)
        return (functional.conv2d(values[:, None], window, padding=WINDOW // 2) / inside)[:, 0]

    x, y = local(received), local(pictures)
    xx, yy, xy = (local(a * b) - m for a, b, m in ((received, received, x * x), (pictures, pictures, y * y),
                                                   (received, pictures, x * y)))  # fmt: skip
    similarity = (2 * x * y + C1) * (2 * xy + C2) / ((x * x + y * y + C1) * (xx + yy + C2))
    return weighted_mean(similarity, weights)
