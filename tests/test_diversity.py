"""Diversity on right samples, and the measures."""

from __future__ import annotations

import pytest
import torch
from conftest import said, task
from hypothesis import given
from hypothesis import strategies as st

import posttrain as pt
from posttrain.core import Batch, Density
from posttrain.evaluation import Evaluation
from posttrain.systems.diversity import distinct_equations, diversity, equations, potential


def batch(old, scores, rows):
    old = torch.tensor(old)
    zero = torch.zeros(len(old))
    return Batch(old, old, zero, torch.tensor(rows), scores=tuple(scores)), Density(old.clone().requires_grad_(), zero)


def test_only_right_samples_are_kept_wide():
    given, now = batch([-0.5, -3.0, -1.0], [pt.Score(1.0), pt.Score(0.0)], [0, 0, 1])
    cost, metrics = diversity()(given, now)
    assert cost.tolist() == [-0.5, -3.0, 0.0]  # rho log pi
    assert metrics["right_share"] == pytest.approx(2 / 3)
    cost, _ = diversity(right_only=False)(given, now)
    assert cost.tolist() == [-0.5, -3.0, -1.0]


def test_right_is_told_by_the_named_part_and_not_by_the_shaped_reward():
    shaped = [pt.Score(0.1, {"accuracy": 0.0, "format": 1.0}), pt.Score(0.4, {"accuracy": 1.0})]
    given, now = batch([-1.0, -2.0], shaped, [0, 1])
    assert diversity(part="accuracy")(given, now)[0].tolist() == [0.0, -2.0]
    with pytest.raises(ValueError, match="reads the reward part 'exactness', and a row has none"):
        diversity(part="exactness")(given, now)
    bare, now = batch([-1.0], [None], [0])
    with pytest.raises(ValueError, match="the loss reads the reward"):
        diversity()(bare, now)


@pytest.mark.parametrize("seed", range(4))
def test_its_expected_gradient_is_that_of_the_entropy(seed):
    """Over all actions, sum pi(a) grad[rho log pi(a)] = -grad H: the gradient runs through both factors."""
    z = torch.randn(6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()
    logp = z.log_softmax(0)
    given = Batch(logp.detach(), logp.detach(), torch.zeros(6), torch.arange(6), scores=(pt.Score(1.0),) * 6)
    cost, _ = diversity()(given, Density(logp, torch.zeros(6)))
    (found,) = torch.autograd.grad((logp.detach().exp() * cost).sum(), z)
    again = z.log_softmax(0)
    (wanted,) = torch.autograd.grad((again.exp() * again).sum(), z)  # of -H
    torch.testing.assert_close(found, wanted)


def test_a_token_below_one_over_e_is_raised_and_one_above_lowered():
    given, now = batch([-2.0, -0.5], [pt.Score(1.0)], [0, 0])
    cost, _ = diversity()(given, now)
    cost.sum().backward()
    assert (now.logp.grad < 0).tolist() == [True, False]  # d cost / d log pi = 1 + log pi


def test_a_flat_group_of_right_samples_is_still_learnt_from(make):
    policy = make()
    group = pt.rollout(pt.single_turn, [task()], {"policy": policy}, 4)[0]
    rows = [row for one in group for row in pt.rows(policy, one, torch.zeros(one.decisions), score=pt.Score(1.0))]
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
    found = pt.update(policy, optimizer, rows, pt.total((1.0, pt.clipped()), (0.5, diversity())))
    assert found["grad_norm"] > 0
    assert found["rows_skipped"] == 0


def test_equations_are_found_without_spaces():
    text = "Let $x = 2 + 3$, so x=5. Then $2 x = 10 \\, = 2\\cdot 5$.\nno equation here"
    assert equations("so 1,000 = 10^3, and x <= 5") == ["1,000=10^3"]
    assert equations(text) == ["x=2+3", "x=5", "2x=10", "10=2\\cdot5"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The total number of apples is 5 + 3 = 8 apples.", ["5+3=8"]),
        ("Total cost = price times quantity", []),
        ("the total = 2 + 3 = 5", ["2+3=5"]),
        ("Natalia sold 48/2 = <<48/2=24>>24 clips in May.", ["48/2=24"]),
        ("- 2 + 2 = 4\n* x = 3\nStep 1: 7 - 3 = 4", ["2+2=4", "x=3", "7-3=4"]),
        ("I get x = 4 because a triangle has $\\sin a = \\frac{1}{2}$", ["x=4", "\\sina=\\frac{1}{2}"]),
        ("\\[ A = 12 \\text{ cm}^2 \\]", ["A=12^2"]),
        ("**5 + 5 = 10**", ["5+5=10"]),
        ("a = b", ["a=b"]),
        ("2x-y = 3", ["2x-y=3"]),
        ("$x-y = 3$ for well-known reasons", ["x-y=3"]),
        ("2^{n-k} = 8", ["2^{n-k}=8"]),
        ("ab = 12", ["ab=12"]),
        ("- $2ab + c = 24$", ["2ab+c=24"]),
        ("\\[ A = \\frac{bh}{2} = 6 \\]", ["A=\\frac{bh}{2}", "\\frac{bh}{2}=6"]),
        ("ax^2 + bx + c = 0 and so on", ["ax^2+bx+c=0"]),
        ("AB + BC = AC.", ["AB+BC=AC"]),
        ("it = 5, so = 5, So ab = 5, the ab = 5, cost = lw", []),  # words, and what may be one beside them
        ("5 kg = 5000 g", ["5=5000g"]),
        ("5cm = 50mm", ["5=50"]),
    ],
)
def test_prose_is_no_equation(text, found):
    assert equations(text) == found


@given(st.text(alphabet="ab =+\\{}1k.-", max_size=60) | st.text())
def test_any_text_has_equations_of_two_sides_or_none(text):
    for equation in equations(text):
        assert len(list(filter(None, equation.split("=")))) == 2
        assert not any(map(str.isspace, equation))


def test_distinct_equations_by_hand():
    # first question: a=1 a=1 b=2, two of three distinct; second: one of one; third: none, left out
    texts = [["a=1", "a = 1\nb=2"], ["c=3"], ["words"]]
    assert distinct_equations(texts) == pytest.approx((2 / 3 + 1) / 2)
    with pytest.raises(ValueError, match="none of the samples holds an equation"):
        distinct_equations([["words"]])


def test_potential_is_over_what_greedy_decoding_fails():
    def evaluation(values):
        scores = [[pt.Score(float(v)) for v in marks] for marks in values]
        return Evaluation([[said("x") for _ in marks] for marks in values], scores)

    found = potential(evaluation([[1], [0], [0]]), evaluation([[1, 1], [0, 1], [0, 0]]), 2)
    assert found["potential"] == pytest.approx(0.5)  # of the two failed, one is found in two samples
    assert found["gain to pass@k"] == pytest.approx(2 / 3 - 1 / 3)
