"""The step: rows that teach nothing are left out, memory that runs out is met, groups are graded while others sample."""

from __future__ import annotations

import threading

import pytest
import torch
from conftest import Bandit, Spy, digits, task

import posttrain as pt
from posttrain import loss
from posttrain.descent import out_of_memory
from posttrain.loss import Corrected, credit_only


def rows_with_flat_groups(policy, flat=(0,)):
    groups = pt.rollout(pt.single_turn, [task(str(i)) for i in range(3)], {"policy": policy}, 4)
    return [
        pt.Row(one.turns, torch.full((one.decisions,), 0.0 if i in flat else j - 1.5), group=i)
        for i, group in enumerate(groups)
        for j, one in enumerate(group)
    ]


def unmarked(term):
    """The same loss, of which nothing is known."""
    return lambda batch, now: term(batch, now)


@pytest.mark.parametrize("reduce", [pt.token_mean, pt.sequence_mean, pt.prompt_mean, pt.constant_length(8)])
@pytest.mark.parametrize("term", [loss.clipped(), loss.gspo(), loss.cispo(), pt.likelihood, Corrected(loss.clipped())])
def test_rows_without_credit_are_left_out_and_the_gradient_is_the_same(make, term, reduce):
    rows = rows_with_flat_groups(make())
    seen = []
    for one in (term, unmarked(term)):
        policy = make()
        spy = Spy(policy)
        metrics = pt.update(policy, spy, rows, one, reduce, max_norm=1e9)
        seen.append(spy.seen[0])
        assert metrics["rows_skipped"] == pytest.approx(1 / 3 if one is term else 0)
    torch.testing.assert_close(*seen, atol=1e-7, rtol=1e-4)


def test_a_step_without_any_credit_moves_the_optimizer_as_before(make):
    after = []
    for term in (pt.clipped(), unmarked(pt.clipped())):
        policy = make()
        optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-2, weight_decay=0.1)
        for flat in ((0,), (0, 1, 2), (1,)):
            pt.update(policy, optimizer, rows_with_flat_groups(make(), flat), term)
        after.append(torch.cat([p.flatten() for p in policy.parameters()]))
    torch.testing.assert_close(*after, atol=1e-5, rtol=1e-4)


def test_only_losses_known_to_follow_the_advantage_leave_rows_out():
    assert credit_only(pt.total((1.0, pt.clipped()), (0.5, pt.likelihood)))
    statistic = pt.WholeStep(lambda batch, now: now.logp, lambda batch, now, mark: (mark, {}))
    for other in (pt.entropy_bonus, pt.kl_to_reference(), statistic, unmarked(pt.clipped())):
        assert not credit_only(pt.total((1.0, pt.clipped()), (0.1, other)))


def test_a_step_that_runs_out_of_memory_is_taken_in_smaller_pieces(make):
    rows = rows_with_flat_groups(make(), ())
    whole = Spy(make())
    pt.update(whole.policy, whole, rows, pt.clipped(), max_norm=1e9)
    policy = make()
    room, tried, density = policy.size(rows) // 3, [], policy.density

    def tight(rows):
        tried.append(policy.size(rows))
        if tried[-1] > room:
            density(rows).logp.sum().backward()  # memory runs out half-way: a gradient is left behind
            raise torch.OutOfMemoryError("out of memory")
        return density(rows)

    policy.density = tight
    spy = Spy(policy)
    metrics = pt.update(policy, spy, rows, pt.clipped(), max_norm=1e9)
    assert max(tried) > room
    assert metrics["micro_tokens"] <= room
    torch.testing.assert_close(spy.seen[0], whole.seen[0], atol=1e-6, rtol=1e-4)
    room = 1
    with pytest.raises(torch.OutOfMemoryError):
        pt.update(policy, spy, rows, pt.clipped(), max_norm=1e9)


def test_memory_that_the_processor_cannot_give_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**48)
    assert out_of_memory(caught.value)
    assert not out_of_memory(RuntimeError("shapes do not match"))


class Slow(Bandit):
    """Hands out one group, and goes on when that has been graded."""

    def __init__(self):
        super().__init__([0.1, 0.5, -1.0])
        self.graded = threading.Event()

    def stream(self, asks):
        for i, reply in enumerate(self.sample(asks)):
            if i == 4:
                assert self.graded.wait(30), "the first group was not graded while others were sampled"
            yield i, reply


def test_a_group_is_graded_while_others_are_sampled():
    policy = Slow()
    order = []

    def reward(group):
        order.append((group[0].task.key, threading.current_thread() is threading.main_thread()))
        policy.graded.set()
        return [pt.Score(float(i)) for i, _ in enumerate(group)]

    source = pt.Shuffled([task("a"), task("b"), task("c")], 0)
    experience = pt.gather(policy, source, pt.grpo(reward, samples=4), 3)
    assert len(experience.rows) == 12
    assert [key for key, _ in order] == [one.rollout.task.key for one in experience.played[::4]]
    assert all(main for _, main in order)  # a reward may use signals and what else belongs to the main thread


def test_errors_of_the_sampler_and_of_the_reward_reach_the_caller(make):
    class Broken(Bandit):
        def stream(self, asks):
            yield 0, self.sample(asks)[0]
            raise ConnectionError("the engine has gone")

    source = pt.Shuffled([task("a")], 0)
    with pytest.raises(ConnectionError, match="the engine has gone"):
        pt.gather(Broken([0.0, 1.0]), source, pt.grpo(pt.each(digits), samples=4), 1)

    def refuses(rollout):
        raise LookupError("no answer key")

    before = threading.active_count()
    with pytest.raises(LookupError, match="no answer key"):
        pt.gather(make(), source, pt.grpo(pt.each(refuses), samples=4), 1)
    for thread in threading.enumerate():
        if thread.name == "posttrain sampler":
            thread.join(30)
    assert threading.active_count() <= before


def test_the_sampler_s_thread_uses_as_many_cores_as_the_main_one(make):
    policy, seen = make(), []
    sample = policy.stream

    def stream(asks):
        seen.append(torch.get_num_threads())
        yield from sample(asks)

    policy.stream = stream
    pt.rollout(pt.single_turn, [task()], {"policy": policy}, 2)
    assert seen == [torch.get_num_threads()] == [1]
