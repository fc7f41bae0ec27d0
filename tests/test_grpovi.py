"""Reward variance increase: the worked examples, the brute force, the properties."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import said, values
from hypothesis import given, settings
from hypothesis import strategies as st

import posttrain as pt
from posttrain.systems.grpovi import PARTS, clipped_score, learn, spread_out, varied

EXAMPLES = [  # uniform weights on [0, 1]; by hand from the theorem
    ([0.9, 0.55, 0.5, 0.45, 0.1], [1, 1, 0.5, 0, 0]),
    ([0.9, 0.5, 0.5, 0.5, 0.1], [1, 0.5, 0.5, 0.5, 0]),  # ties stay ties
    ([0.8, 0.6, 0.6, 0.2], [1, 0.6, 0.6, 0]),
    ([0.45, 0.47, 0.52, 0.5, 0.44, 0.49, 0.51, 0], [0, 0, 1, 1, 0, 0.38, 1, 0]),
    ([0, 1, 1, 0], [0, 1, 1, 0]),  # a rule's reward is optimal
    ([0.3, 0.3, 0.3], [0.3, 0.3, 0.3]),
    ([], []),
]


@pytest.mark.parametrize(("rewards", "wanted"), EXAMPLES)
def test_worked_examples(rewards, wanted):
    np.testing.assert_allclose(spread_out(rewards), wanted, atol=1e-12)


def test_with_the_policy_s_weights():
    found = spread_out([0.9, 0.5, 0.1], weights=[0.1, 0.6, 0.3])
    np.testing.assert_allclose(found, [1, 0.32 / 0.6, 0], atol=1e-12)
    np.testing.assert_allclose(spread_out([0.9, 0.5, 0.1], weights=[1, 6, 3]), found, atol=1e-12)


@st.composite
def problems(draw):
    n = draw(st.integers(1, 9))
    low = draw(st.floats(-2, 1))
    high = low + draw(st.floats(0.1, 3))
    levels = draw(st.lists(st.floats(0, 1), min_size=1, max_size=5))
    rewards = [low + (high - low) * draw(st.sampled_from(levels)) for _ in range(n)]
    weights = [draw(st.floats(0.01, 5)) for _ in range(n)]
    return np.clip(rewards, low, high), low, high, np.array(weights)


def vertices(levels, mass, mean, low, high):
    """Every extreme point of the feasible set, in O(n^2): `high` j times, one value in between, then `low`."""
    n, total = len(levels), mass.sum()
    before = np.concatenate([[0.0], np.cumsum(mass)])
    for j in range(n + 1):
        for k in range(j + 1, n + 1):
            middle = (mean - high * before[j] - low * (total - before[k])) / (before[k] - before[j])
            if low - 1e-12 <= middle <= high + 1e-12:
                yield np.array([high] * j + [middle] * (k - j) + [low] * (n - k))


@given(problems())
@settings(max_examples=300, deadline=None)
def test_it_is_the_global_optimum_and_keeps_mean_order_range_and_ties(problem):
    rewards, low, high, weights = problem
    found = spread_out(rewards, low, high, weights)
    assert found @ weights == pytest.approx(rewards @ weights, abs=1e-9 * max(1, abs(rewards @ weights)))
    assert found.min() >= low - 1e-12
    assert found.max() <= high + 1e-12
    for a, x in zip(rewards, found, strict=True):
        for b, y in zip(rewards, found, strict=True):
            assert not a > b or x >= y - 1e-12
            assert a != b or x == y
    levels, place = np.unique(-rewards, return_inverse=True)
    mass = np.bincount(place, weights)
    if len(levels) > 1:
        best = max(mass @ point**2 for point in vertices(levels, mass, rewards @ weights, low, high))
        assert found**2 @ weights == pytest.approx(best, rel=1e-6, abs=1e-8)
    assert found**2 @ weights >= rewards**2 @ weights - 1e-9


def test_a_million_rewards():
    rewards = np.random.default_rng(0).random(10**6)
    found = spread_out(rewards)
    assert found.mean() == pytest.approx(rewards.mean())
    assert ((found == 0) | (found == 1)).sum() >= 10**6 - 1  # at most one in between


@pytest.mark.parametrize(
    ("rewards", "message"), [([0.5, 1.2], "a reward of 1.2 is outside"), ([-0.1, 0.5], "of -0.1 is")]
)
def test_a_reward_outside_its_range_is_named(rewards, message):
    with pytest.raises(ValueError, match=message):
        spread_out(rewards)


def test_weights_must_be_positive():
    with pytest.raises(ValueError, match="weights must be positive, one for each reward"):
        spread_out([0.1, 0.2], weights=[1.0, 0.0])


def test_as_a_reward_it_keeps_the_raw_value_and_what_is_invalid():
    group = [said("0.9"), said("x"), said("0.5"), said("0.4")]
    reward = varied(pt.each(lambda r: pt.Invalid("no number") if r.text == "x" else float(r.text)))
    scores = reward(group)
    assert isinstance(scores[1], pt.Invalid)
    kept = [scores[0], scores[2], scores[3]]
    assert values(kept) == pytest.approx([1.0, 0.8, 0.0])
    assert [score.parts["raw"] for score in kept] == [0.9, 0.5, 0.4]
    with pytest.raises(ValueError, match="`weights=policy`: .* need `reference=policy.frozen"):
        varied(reward, weights="policy")


def test_the_group_s_own_range_and_a_group_of_one():
    reward = varied(pt.each(lambda r: float(r.text)), within="group")
    assert values(reward([said("3"), said("2"), said("1")])) == pytest.approx([3, 2, 1])
    assert values(reward([said("5")])) == [5.0]
    assert values(reward([said("4"), said("3"), said("2.5"), said("0")])) == pytest.approx([4, 4, 1.5, 0])


def test_under_the_initial_policy_s_probabilities(make):
    policy = make()
    group = pt.rollout(pt.single_turn, [pt.Task("t", (pt.user("hi"),), None)], {"policy": policy}, 5)[0]
    graded = pt.each(lambda r: (len(r.text) % 7) / 10)
    raw = np.array(values(graded(group)))
    found = np.array(values(varied(graded, weights="policy", reference=policy.frozen_copy())(group)))
    logp = np.array([float(r.turns[0].reply.logp.sum()) for r in group])
    weights = np.exp(logp - logp.max())
    assert found @ weights == pytest.approx(raw @ weights, rel=1e-4)
    np.testing.assert_allclose(found, spread_out(raw, weights=weights), atol=1e-3)


def test_as_a_part_of_another_method_held_out_tasks_keep_the_raw_reward():
    raw = pt.each(lambda r: float(r.text))
    made = PARTS["varied"](pt.grpo(raw), False)
    assert values(made.reward([said("0.75"), said("0.25")])) == [1.0, 0.0]
    assert made.evaluation is raw


def test_scores_that_are_clipped_are_counted_and_their_range_is_asked_for():
    judge = pt.each(lambda rollout: float(rollout.text))
    found = [clipped_score(judge, said(text), 0.0, 1.0) for text in ("0.5", "7", "-1")]
    assert [(one.value, one.parts["clipped"]) for one in found] == [(0.5, 0.0), (1.0, 1.0), (0.0, 1.0)]
    with pytest.raises(ValueError, match="`reward_model` needs `low` and `high`"):
        learn(pt.TaskOptions("no.jsonl"), pt.ModelOptions(), pt.ScaleOptions(), reward_model="rm")
