"""Advantages and critics: hand-computed cases and closed forms."""

from __future__ import annotations

import itertools

import pytest
import torch
from conftest import Bandit, digits, task
from hypothesis import given, settings
from hypothesis import strategies as st

import posttrain as pt
from posttrain.advantage import decision_rewards, discounted_returns
from posttrain.policy.value import Critic, Gae, advantage_estimates


def group_of(*decisions):
    """Rollouts with the given numbers of decisions per turn."""
    return [
        pt.Rollout(task(), [pt.Turn(pt.Ask(()), pt.Reply("x", torch.zeros(n), None)) for n in turns])
        for turns in decisions
    ]


def scalars(credit):
    return [round(values[0].item(), 4) for values in credit]


def test_group_baselines_by_hand():
    group, scores = group_of([2], [1], [3], [1]), [pt.Score(v) for v in (1.0, 0.0, 0.0, 1.0)]
    # mean 1/2; standard deviation with n - 1: sqrt(4 * 0.25 / 3) = 0.5774
    assert scalars(pt.centred(group, scores)) == [0.5, -0.5, -0.5, 0.5]
    assert scalars(pt.normalised(group, scores)) == [0.866, -0.866, -0.866, 0.866]
    assert scalars(pt.leave_one_out(group, scores)) == [0.6667, -0.6667, -0.6667, 0.6667]
    assert [len(v) for v in pt.centred(group, scores)] == [2, 1, 3, 1]
    for advantage in (pt.centred, pt.normalised, pt.leave_one_out):
        assert scalars(advantage(group[:1], scores[:1])) == [0.0]
        assert scalars(advantage(group, [pt.Score(3.0)] * 4)) == [0.0] * 4


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=12))
@settings(max_examples=60, deadline=None)
def test_leave_one_out_is_the_centred_one_rescaled(values):
    group, scores = group_of(*[[1]] * len(values)), [pt.Score(v) for v in values]
    one_out, centred = pt.leave_one_out(group, scores), pt.centred(group, scores)
    n = len(values)
    for a, b in zip(one_out, centred, strict=True):
        assert a.item() == pytest.approx(b.item() * n / (n - 1), abs=1e-4)
    assert sum(a.item() for a in centred) == pytest.approx(0, abs=1e-3)


def test_rewards_of_decisions_turns_and_rollouts():
    [one] = group_of([2, 3])
    assert decision_rewards(one, pt.Score(5.0)).tolist() == [0, 0, 0, 0, 5]
    assert decision_rewards(one, pt.Score(5.0, turns=(1.0, 4.0))).tolist() == [0, 1, 0, 0, 4]
    assert decision_rewards(one, pt.Score(5.0, decisions=torch.arange(5.0))).tolist() == [0, 1, 2, 3, 4]
    [silent] = group_of([2, 0])
    assert decision_rewards(silent, pt.Score(0.0, turns=(1.0, 4.0))).tolist() == [0, 5]  # nothing was said last
    with pytest.raises(ValueError, match="scored 3 turns of a rollout of 2"):
        decision_rewards(one, pt.Score(0.0, turns=(1.0, 2.0, 3.0)))
    with pytest.raises(ValueError, match="scored 4 decisions of a rollout of 5"):
        decision_rewards(one, pt.Score(0.0, decisions=torch.zeros(4)))


def test_returns_to_go_by_hand():
    assert discounted_returns(torch.tensor([1.0, 2.0, 4.0]), 0.5).tolist() == [3.0, 4.0, 4.0]
    group = group_of([1, 1], [1, 1])
    scores = [pt.Score(0.0, turns=(1.0, 2.0)), pt.Score(0.0, turns=(0.0, 0.0))]
    assert [v.tolist() for v in pt.to_go()(group, scores)] == [[3.0, 2.0], [0.0, 0.0]]
    assert [v.tolist() for v in pt.to_go_by_turn()(group, scores)] == [[1.5, 1.0], [-1.5, -1.0]]


def test_turns_are_compared_with_their_siblings_turns():
    group = group_of([1, 2], [1], [1, 1])
    scores = [pt.Score(0.0, turns=(1.0, 5.0)), pt.Score(0.0, turns=(2.0,)), pt.Score(0.0, turns=(3.0, 5.0))]
    credit = pt.normalised_by_turn(group, scores)
    assert [v.tolist() for v in credit] == [pytest.approx([-1, 0, 0], abs=1e-5), [0], pytest.approx([1, 0], abs=1e-5)]


def test_whitening_and_best_of_n():
    credit = pt.whitened([torch.tensor([1.0, 2.0]), torch.tensor([3.0])])
    assert torch.cat(credit).tolist() == pytest.approx([-1, 0, 1], abs=1e-5)
    group = group_of([1], [1], [1])
    scores = [pt.Score(v) for v in (0.0, 0.7, 0.9)]
    assert scalars(pt.best(1)(group, scores)) == [0, 0, 1]
    assert scalars(pt.best(2, least=0.8)(group, scores)) == [0, 0, 1]
    assert scalars(pt.best()(group, [pt.Score(0.0)] * 3)) == [0, 0, 0]


def test_gae_by_hand():
    rewards, values = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.5, 0.4, 0.2])
    # deltas with gamma 0.9: -0.14, -0.22, 0.8;  lambda 0.5: A2 = .8, A1 = -.22 + .45 * .8 = .14, A0 = -.14 + .45 * .14
    found = advantage_estimates(rewards, values, 0.9, 0.5)
    assert found.tolist() == pytest.approx([-0.077, 0.14, 0.8], abs=1e-6)
    # lambda 1: returns minus values; lambda 0: one-step errors; a bootstrap value follows a cut
    assert advantage_estimates(rewards, values, 1.0, 1.0).tolist() == pytest.approx([0.5, 0.6, 0.8])
    assert advantage_estimates(rewards, values, 1.0, 0.0).tolist() == pytest.approx([-0.1, -0.2, 0.8])
    assert advantage_estimates(rewards, values, 1.0, 0.0, bootstrap=2.0)[-1].item() == pytest.approx(2.8)


def test_a_critic_learns_values_and_is_saved(make):
    policy = make()
    gae = Gae(Critic(policy, lr=1e-2), updates=3)
    group = pt.rollout(pt.single_turn, [task()], {"policy": policy}, 6)[0]
    before = [p.detach().clone() for p in policy.parameters()]
    scores = [pt.Score(1.0)] * 6
    losses = []
    for _ in range(12):
        credit = gae(group, scores)
        assert [len(a) for a in credit] == [one.decisions for one in group]
        losses.append(gae.learn()["critic_loss"])
    assert losses[-1] < 0.2 * losses[0]
    torch.testing.assert_close(torch.cat(credit), torch.zeros(sum(map(len, credit))), atol=0.5, rtol=0)
    assert all((a == b).all() for a, b in zip(before, policy.parameters(), strict=True)), "the policy is not touched"
    twin = Gae(Critic(policy, lr=1e-2), updates=3)
    twin.load_state_dict(gae.state_dict())
    torch.testing.assert_close(torch.cat(twin(group, scores)), torch.cat(gae(group, scores)))


def test_a_critic_of_a_policy_with_lora_has_an_adapter_of_its_own_and_shares_the_rest():
    policy = pt.text("tiny", max_new=4, lora=4)
    gae = Gae(Critic(policy, lr=1e-2))
    group = pt.rollout(pt.single_turn, [task()], {"policy": policy}, 6)[0]
    frozen = {id(p) for p in policy.model.parameters() if not p.requires_grad}
    assert frozen == {id(p) for p in gae.critic.policy.model.parameters() if not p.requires_grad}
    before = [p.detach().clone() for p in policy.model.parameters()]
    losses = []
    for _ in range(12):
        gae(group, [pt.Score(1.0)] * 6)
        losses.append(gae.learn()["critic_loss"])
    assert losses[-1] < 0.5 * losses[0]
    assert all((a == b).all() for a, b in zip(before, policy.model.parameters(), strict=True))
    assert any("lora_A" in name for name in gae.state_dict()["critic"]["body"])
    twin = Gae(Critic(policy, lr=1e-2))
    twin.load_state_dict(gae.state_dict())
    torch.testing.assert_close(torch.cat(twin(group, [pt.Score(1.0)] * 6)), torch.cat(gae(group, [pt.Score(1.0)] * 6)))


def test_while_the_critic_warms_up_the_policy_takes_no_step(make):
    """Whatever else the loss has: an entropy bonus would move it without any advantage."""
    policy = make()
    gae = Gae(Critic(policy, lr=1e-2), warmup=2)
    recipe = pt.Recipe(
        pt.each(digits), advantage=gae, loss=pt.total((1.0, pt.clipped()), (1.0, pt.entropy_bonus)), samples=2
    )
    start = [p.detach().clone() for p in policy.parameters()]
    moved = []

    def watch(step):
        moved.append(any((a != b).any() for a, b in zip(start, policy.parameters(), strict=True)))

    history = pt.train_in_memory(policy, [task("a"), task("b")], recipe, steps=3, per_step=2, lr=1e-2, watch=watch)
    assert moved == [False, False, False, True]
    assert all("critic_loss" in line for line in history[:3])
    assert policy.version == 1


def test_the_critic_s_updates_share_the_rows_and_memory_that_runs_out_is_met(make, monkeypatch):
    policy = make()
    gae = Gae(Critic(policy), updates=3)
    group = pt.rollout(pt.single_turn, [task()], {"policy": policy}, 7)[0]
    gae(group, [pt.Score(float(i)) for i in range(7)])
    rows = [row for part, _, _ in gae.seen for row in part]
    shares, passes = [], []
    learn, values = gae.critic.learn, gae.critic.values

    def scarce(some):
        if len(some) > 1:
            raise torch.OutOfMemoryError("out of memory")
        passes.append(len(some))
        return values(some)

    monkeypatch.setattr(gae.critic, "learn", lambda some, *rest: shares.append(some) or learn(some, *rest))
    monkeypatch.setattr(gae.critic, "values", scarce)
    assert gae.learn()["critic_loss"] > 0
    assert [len(some) for some in shares] == [3, 2, 2]
    assert sorted(map(id, itertools.chain(*shares))) == sorted(map(id, rows)), "each row once"
    assert sum(passes) == 7, "row by row"
    assert gae.critic.micro_tokens < 16384


def test_on_policy_distillation_follows_the_teacher():
    """The advantage's expected gradient is that of the reverse KL to the teacher, up to sign."""
    student, teacher = Bandit([0.0, 0.0, 0.0]), Bandit([2.0, 0.0, -1.0])
    optimizer = torch.optim.SGD(student.parameters(), 0.5)
    recipe = pt.Recipe(pt.each(lambda rollout: 0.0), advantage=pt.distilled(teacher), loss=pt.likelihood, samples=64)
    source = pt.ShuffledSource([task()])
    for step in range(60):
        got = pt.gather(student, source, recipe, 1, seed=step)
        pt.update(student, optimizer, got.rows, recipe.loss)
    torch.testing.assert_close(student.logits.softmax(-1), teacher.logits.softmax(-1), atol=0.06, rtol=0)
