"""Fairness of margins: the measure, the losses, their signs, and that micro-batches do not matter."""

from __future__ import annotations

import math

import pytest
import torch

import posttrain as pt
from posttrain.lab.world.preferences import Preferences
from posttrain.lab.world.words import tokenizer_of, untrained_judge
from posttrain.preference import accumulate_pairs, dpo, pair_scores
from posttrain.reward_training import regression, reward_step
from posttrain.systems.reward_fairness import (
    fairness,
    margin_loss,
    pair_loss,
    policy_margins,
    print_margins,
    score_loss,
    unfairness,
)

SHARES = torch.tensor([0.9, 0.5, 0.1, 0.7])


def test_minus_one_is_jain_s_index():
    jain = SHARES.sum() ** 2 / (len(SHARES) * (SHARES**2).sum())
    assert fairness(SHARES).item() == pytest.approx(jain.item())
    assert fairness(torch.tensor([1.0, 1e-9, 1e-9, 1e-9])).item() == pytest.approx(0.25, abs=1e-4)


@pytest.mark.parametrize("tau", [-3.0, -1.0, 0.0, 0.5, 2.0, 5.0])
def test_equal_shares_are_the_fairest(tau):
    equal = torch.full((4,), 0.3)
    assert unfairness(equal, tau).item() == pytest.approx(1.0, abs=1e-5)
    assert unfairness(SHARES, tau).item() > 1.0


def test_the_limit_at_zero_is_the_entropy():
    p = SHARES / SHARES.sum()
    wanted = math.exp(-(p * p.log()).sum().item()) / 4
    assert fairness(SHARES, 0.0).item() == pytest.approx(wanted)
    assert fairness(SHARES.double(), 1e-5).item() == pytest.approx(wanted, abs=1e-4)


def test_tau_one_says_nothing_and_the_published_coefficient_above_is_not_real():
    with pytest.raises(ValueError, match="`tau=1.0`: this fairness does not depend on the shares"):
        fairness(SHARES, 1.0)
    with pytest.raises(ValueError, match="`tau=1.0`: this fairness"):
        margin_loss("regularised", tau=1.0)
    with pytest.raises(ValueError, match="above 1 the fairness is negative"):
        margin_loss("published coefficient", tau=2.0)


def jain_after_a_step(kind, **options) -> float:
    """Of the margins, after a gradient step on the fairness part of the loss alone."""
    margin = torch.tensor([2.0, 0.5, -0.3, 1.0], requires_grad=True)
    utility = margin_loss("plain")(margin).mean().detach()
    loss = margin_loss(kind, **options)(margin).mean()
    plain = margin_loss("plain")(margin).mean()
    weight = (loss.detach() / utility) if "coefficient" in kind else 1.0
    (gradient,) = torch.autograd.grad(loss - weight * plain, margin)
    return fairness(torch.sigmoid(margin.detach() - 0.1 * gradient)).item()


def test_regularisation_and_the_corrected_coefficient_even_margins_out_and_the_published_one_does_not():
    before = fairness(torch.sigmoid(torch.tensor([2.0, 0.5, -0.3, 1.0]))).item()
    assert jain_after_a_step("regularised", alpha=1.0) > before
    assert jain_after_a_step("coefficient", gamma=2.0) > before
    assert jain_after_a_step("published coefficient", gamma=2.0) < before


@pytest.mark.parametrize("tau", [-1.0, 0.5, 2.0])
def test_fairness_raises_the_smallest_margin_and_lowers_the_largest(tau):
    margin = torch.tensor([2.0, 0.5, -0.3, 1.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(fairness(torch.sigmoid(margin), tau), margin)
    assert gradient[2] > 0
    assert gradient[0] < 0


@pytest.mark.parametrize("kind", ["plain", "regularised", "coefficient"])
def test_a_reward_model_s_gradient_is_that_of_the_whole_step(kind):
    world = Preferences(0)
    seen = []
    for tokens in (10_000, 60):
        judge = untrained_judge(tokenizer_of(world.vocabulary))
        judge.model.score.weight.data.normal_(generator=torch.Generator().manual_seed(0))
        metrics = reward_step(judge, world.pairs(12, "t"), score_loss(margin_loss(kind, alpha=2.0)), tokens)
        seen.append((torch.cat([p.grad.flatten() for p in judge.parameters()]), metrics))
    torch.testing.assert_close(seen[1][0], seen[0][0], atol=5e-6, rtol=1e-4)
    assert seen[0][1] == pytest.approx(seen[1][1], rel=1e-4)


@pytest.mark.parametrize(
    "loss", [dpo(), pair_loss(margin_loss("regularised", alpha=2.0)), pair_loss(margin_loss("coefficient"))]
)
def test_a_policy_s_gradient_is_that_of_the_whole_step(make, loss):
    policy = make()
    reference = policy.frozen_copy()
    with torch.no_grad():
        for p in policy.parameters():
            p.mul_(0.9)
    pairs = [pt.Pair((pt.user(f"q{i}"),), f"good {i}", "bad " * (i + 1)) for i in range(5)]
    seen = []
    for pieces in ([pairs], [pairs[:2], pairs[2:3], pairs[3:]]):
        policy.model.zero_grad()
        accumulate_pairs(pieces, lambda piece: pair_scores(policy, reference, piece), loss, whole=True)
        seen.append(torch.cat([p.grad.flatten() for p in policy.parameters()]))
    torch.testing.assert_close(seen[1], seen[0], atol=5e-6, rtol=1e-4)


def test_a_policy_s_margins_are_dpo_s_in_pieces_of_any_size(make):
    policy = make()
    reference = policy.frozen_copy()
    with torch.no_grad():
        for p in policy.parameters():
            p.mul_(0.9)
    pairs = [pt.Pair((pt.user(f"q{i}"),), f"good {i}", "bad " * (i + 1)) for i in range(5)]
    wanted = 0.5 * pair_scores(policy, reference, pairs).margin().detach()
    for size in (2, 5):
        torch.testing.assert_close(policy_margins(policy, reference, pairs, 0.5, size), wanted, atol=1e-6, rtol=1e-4)


def test_margins_are_printed_for_each_set_and_kind_of_pair(capsys):
    pairs = [pt.Pair((pt.user("q"),), "a", "b", kind) for kind in ("x", "y", "x")]
    print_margins({"held out": pairs}, lambda some: torch.tensor([-0.5, 1.0][: len(some)]))
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["held", "out", "x", "accuracy", "0.500,", "mean", "margin", "0.250"],
        ["held", "out", "y", "accuracy", "0.000,", "mean", "margin", "-0.500"],
    ]


def test_a_judge_s_regression_on_labels_by_hand():
    """HelpSteer's labels in noisy rewards: 1 for the better reply, 0 for the other, half the squares of both."""
    chosen, rejected = torch.tensor([0.7, 1.0]), torch.tensor([0.4, 0.0])
    assert regression(chosen, rejected).tolist() == pytest.approx([(0.3**2 + 0.4**2) / 2, 0.0])


def test_pairs_of_equal_texts_are_refused(tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"prompt": "p", "chosen": "same", "rejected": "same"}\n')
    with pytest.raises(ValueError, match="line 1: 'chosen' and 'rejected' are the same text"):
        pt.read_pairs(file)


def test_a_category_column_is_read_and_missed_by_name(tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"prompt": "p", "chosen": "a", "rejected": "b", "category": "harmless"}\n')
    assert pt.read_pairs(file, category="category")[0].kind == "harmless"
    with pytest.raises(ValueError, match="there is no column 'categroy'.*did you mean `category=category`"):
        pt.read_pairs(file, category="categroy")
