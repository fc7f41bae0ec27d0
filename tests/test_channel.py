"""The radio channel: its fading, its capacity, and what arrives."""

from __future__ import annotations

import importlib.util
import math

import pytest
import torch
from scipy import stats

from posttrain import channel

sionna = pytest.mark.skipif(
    not importlib.util.find_spec("sionna"), reason="no sionna: pip install 'posttrain[channel]'"
)


def test_power_gains_are_exponential_and_phases_uniform():
    h = channel.fading(20_000, seed=1)
    assert stats.kstest(h.abs().square().numpy(), "expon").pvalue > 0.01
    assert stats.kstest((h.angle() / (2 * math.pi) + 0.5).numpy(), "uniform").pvalue > 0.01


@sionna
def test_sionna_draws_from_the_same_distribution():
    own, theirs = channel.fading(20_000, seed=1), channel.fading(20_000, seed=2, by="sionna")
    assert theirs.dtype == own.dtype
    assert stats.ks_2samp(own.abs().numpy(), theirs.abs().numpy()).pvalue > 0.01
    assert stats.ks_2samp(own.angle().numpy(), theirs.angle().numpy()).pvalue > 0.01
    assert torch.equal(theirs, channel.fading(20_000, seed=2, by="sionna"))


def test_capacity_of_a_block():
    assert channel.bits_per_second(1e6, torch.tensor([0.0, 1.0, 3.0])).tolist() == [0.0, 1e6, 2e6]
    assert channel.ratio(30.0).item() == pytest.approx(1000)
    assert channel.ratio(-10.0).item() == pytest.approx(0.1)


def test_each_transmission_has_unit_power():
    symbols = channel.unit_power(channel.complex_normal(5, 16, seed=0) * torch.tensor([1e-3, 1, 2, 7, 50])[:, None])
    torch.testing.assert_close(symbols.abs().square().mean(-1), torch.ones(5))


def test_the_error_is_that_of_the_equaliser():
    """E|x^ - x|^2 = 1 / (1 + |h|^2 snr) for unit symbols: the least that a linear receiver can have."""
    snr = torch.tensor([0.1, 1.0, 10.0, 1000.0])
    h = torch.tensor([1.0 + 0j, 0.5j, -2.0 + 0j, 0.7 + 0.7j])
    sent = channel.complex_normal(4, 50_000, seed=3)
    arrived = channel.send(sent, h, snr, seed=4)
    expected = 1 / (1 + h.abs().square() * snr)
    torch.testing.assert_close((arrived - sent).abs().square().mean(-1), expected, rtol=0.03, atol=1e-4)


def test_what_arrives_is_differentiable_in_what_is_sent():
    sent = channel.complex_normal(2, 3, seed=5).requires_grad_()
    channel.send(sent, torch.tensor([1 + 0j, 1j]), torch.tensor([1.0, 4.0]), seed=6).abs().sum().backward()
    assert sent.grad is not None
    assert bool((sent.grad.abs() > 0).all())
