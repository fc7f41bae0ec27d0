"""The entropy mechanism: its losses against numbers derived here, its identity on a softmax, its law."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import Spy, task

import posttrain as pt
from posttrain.core import Batch, Density
from posttrain.loss import clipped
from posttrain.measure import entropy_law
from posttrain.systems.entropy import clip_cov, covariance, kl_cov, probed


def batch(logp, old, advantage) -> tuple[Batch, Density]:
    old, advantage = torch.tensor(old), torch.tensor(advantage)
    given = Batch(old, old, advantage, torch.zeros(len(old), dtype=torch.long))
    return given, Density(torch.tensor(logp, requires_grad=True), torch.zeros(len(old)))


def drawn(seed: int = 0, n: int = 200):
    draw = np.random.default_rng(seed)
    old = -draw.exponential(1.0, n)
    logp = old + draw.normal(0, 0.5, n)
    return logp.astype(np.float32), old.astype(np.float32), draw.normal(0, 1.5, n).astype(np.float32)


def cost_of(loss, logp, old, advantage):
    given, now = batch(logp.tolist(), old.tolist(), advantage.tolist())
    with torch.no_grad():
        marks = loss.mark(given, now)
    given = Batch(given.logp_sampler, given.logp_old, given.advantage, given.row, marks={loss: marks})
    return loss(given, now)[0].detach().numpy(), marks.numpy()


def test_covariance_by_hand():
    # logp 0 -1 -2 (mean -1), A 1 0 2 (mean 1): (1)(0), (0)(-1), (-1)(1)
    given, now = batch([0.0, -1.0, -2.0], [0.0, -1.0, -2.0], [1.0, 0.0, 2.0])
    assert covariance(given, now).tolist() == [0.0, 0.0, -1.0]


@pytest.mark.parametrize("share", [0.002, 0.1, 1.0])
def test_kl_cov_by_an_independent_derivation(share):
    """max(1, floor(k N)) tokens of largest covariance pay |log ratio|; no token is clipped."""
    logp, old, advantage = drawn()
    cost, marks = cost_of(kl_cov(share, 2.0), logp, old, advantage)
    cov = (logp - logp.mean()) * (advantage - advantage.mean())
    top = np.argsort(-cov, kind="stable")[: max(1, math.floor(share * len(cov)))]
    wanted = -advantage * np.exp(logp - old)
    wanted[top] += 2.0 * np.abs(logp - old)[top]
    assert set(marks.nonzero()[0]) == set(top)
    np.testing.assert_allclose(cost, wanted, rtol=1e-4, atol=1e-5)


def test_clip_cov_by_an_independent_derivation():
    """With a share of one all candidates are dropped: PPO at eps 1 elsewhere, by loops."""
    logp, old, advantage = drawn(1)
    cost, marks = cost_of(clip_cov(1.0, 0.3, 2.0), logp, old, advantage)
    mean_logp, mean_advantage = logp.mean(), advantage.mean()
    for i in range(len(logp)):
        ratio = math.exp(logp[i] - old[i])
        free, held = -advantage[i] * ratio, -advantage[i] * min(max(ratio, 0.0), 2.0)
        cov = (logp[i] - mean_logp) * (advantage[i] - mean_advantage)
        dropped = 0.3 < cov < 2.0 and not held > free
        assert marks[i] == dropped
        assert cost[i] == pytest.approx(0.0 if dropped else max(free, held), rel=1e-4, abs=1e-5)


def test_clip_cov_draws_its_share_among_the_candidates():
    logp, old, advantage = drawn(2, 1000)
    _, every = cost_of(clip_cov(1.0, 0.3, 2.0), logp, old, advantage)
    torch.manual_seed(0)
    _, some = cost_of(clip_cov(0.02, 0.3, 2.0), logp, old, advantage)
    _, other = cost_of(clip_cov(0.02, 0.3, 2.0), logp, old, advantage)
    _, one = cost_of(clip_cov(0.0, 0.3, 2.0), logp, old, advantage)
    assert some.sum() == other.sum() == 20
    assert (some <= every).all()
    assert (some != other).any()  # drawn, not the top
    assert one.sum() == 1  # as released: max(1, ...)


@pytest.mark.parametrize("build", [kl_cov, clip_cov])
@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_share_is_a_fraction(build, share):
    with pytest.raises(ValueError, match=r"it is a fraction of all decisions, in \[0, 1\]"):
        build(share)


def test_kl_cov_does_nothing_on_policy_and_a_recipe_says_so():
    logp, _, advantage = drawn()
    given, now = batch(logp.tolist(), logp.tolist(), advantage.tolist())
    loss = kl_cov(0.3, 5.0)
    marks = {loss: loss.mark(given, Density(now.logp.detach(), now.entropy))}
    marked = Batch(given.logp_sampler, given.logp_old, given.advantage, given.row, marks=marks)
    loss(marked, now)[0].sum().backward()
    np.testing.assert_allclose(now.logp.grad.numpy(), -advantage, rtol=1e-5, atol=1e-6)  # that of REINFORCE
    with pytest.warns(UserWarning, match="give updates=2 or more"):
        pt.Recipe(pt.each(lambda rollout: 0.0), loss=loss)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pt.Recipe(pt.each(lambda rollout: 0.0), loss=loss, updates=2)


@pytest.mark.parametrize("loss", [kl_cov(0.3, 2.0), clip_cov(1.0, 0.0), probed(clipped())])
def test_the_choice_is_over_the_whole_step_whatever_the_micro_batch(make, loss):
    """The release chooses within each micro-batch of each GPU, so that its gradient depends on them."""
    policy = make()
    groups = pt.rollout(pt.single_turn, [task("a"), task("b")], {"policy": policy}, 4)
    draw = torch.Generator().manual_seed(0)
    rows = [
        row
        for i, group in enumerate(groups)
        for one in group
        for row in pt.rows(policy, one, torch.randn(one.decisions, generator=draw), group=i)
    ]
    seen = []
    for tokens in (10_000, 20):
        spy = Spy(policy)
        metrics = pt.update(policy, spy, rows, loss, micro_tokens=tokens, max_norm=1e9)
        seen.append((spy.seen[0], metrics))
    torch.testing.assert_close(seen[1][0], seen[0][0], atol=1e-6, rtol=1e-4)
    for name in ("cov_share", "covariance"):
        assert seen[0][1].get(name, 0.0) == pytest.approx(seen[1][1].get(name, 0.0), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_the_change_of_entropy_is_minus_a_covariance(seed):
    """Lemma 1 of the paper on a tabular softmax: dH = -Cov(log pi, dz) to first order; Theorem 2 with dz = eta A."""
    draw = torch.Generator().manual_seed(seed)
    z, advantage = torch.randn(2, 7, generator=draw, dtype=torch.float64)
    pi = z.softmax(0)
    advantage = advantage - (pi * advantage).sum()

    def entropy(logits):
        return -(logits.softmax(0) * logits.log_softmax(0)).sum()

    eta = 1e-4
    found = (entropy(z + eta * advantage) - entropy(z)) / eta
    logp = pi.log()
    cov = (pi * (logp - (pi * logp).sum()) * (advantage - (pi * advantage).sum())).sum()
    assert found.item() == pytest.approx(-cov.item(), abs=1e-3)


def test_the_law_is_found_again():
    entropy = [1.5 - 0.1 * i for i in range(12)]
    law = entropy_law(entropy, [-0.2 * math.exp(h) + 0.9 for h in entropy])
    assert (law.a, law.b, law.r_squared) == pytest.approx((0.2, 0.9, 1.0))
    assert law.ceiling == pytest.approx(0.7)
    with pytest.raises(ValueError, match="three steps of different entropy"):
        entropy_law([1.0, 1.0, 1.0], [0.1, 0.2, 0.3])
