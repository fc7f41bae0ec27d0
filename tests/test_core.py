"""The core, as a list of behaviours:

1. what density says of fresh samples is what the sampler said
2. micro-batches, shared prompts and accumulation do not change the gradient
3. the weights of all decisions sum to one
4. turns that continue one another share a row, others do not
5. environments need no model; players are addressed by name
6. every episode draws from its own seed
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import Bandit, Canned, Spy, digits, said, task, values
from hypothesis import given, settings
from hypothesis import strategies as st

import posttrain as pt
from posttrain.advantage import normalised
from posttrain.row import flatten, micro_batches, rows_of
from posttrain.seeding import mix, uniforms

REDUCTIONS = [pt.token_mean, pt.sequence_mean, pt.prompt_mean, pt.constant_length(8)]


def played(policy, tasks=2, samples=4, seed=0):
    groups = pt.rollout(pt.single_turn, [task(str(i)) for i in range(tasks)], {"policy": policy}, samples, seed)
    return [
        pt.Row(one.turns, credit, group=i)
        for i, group in enumerate(groups)
        for one, credit in zip(group, normalised(group, [pt.Score(float(k)) for k in range(samples)]), strict=True)
    ]


def test_1_density_of_fresh_samples_is_what_was_sampled(make):
    policy = make(temperature=0.7)
    pt.check_policy(policy, [task("a"), task("b", text="a longer question than the other")])
    pt.check_policy(Bandit([0.1, 0.5, -1.0]), [task()])


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_2_micro_batches_and_shared_prompts_do_not_change_the_gradient(make, reduce):
    gradients = []
    for tokens, plain in ((10**6, True), (10**6, False), (70, False), (1, False), (70, True)):
        policy = make(plain=plain)
        spy = Spy(policy)
        pt.update(policy, spy, played(make()), pt.clipped(), reduce, micro_tokens=tokens, max_norm=1e9)
        gradients.append(spy.seen[0])
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], atol=1e-6, rtol=1e-4)


def test_2_whole_step_statistics_do_not_depend_on_the_micro_batch(make):
    """The covariance of log-probability and advantage over the step (Clip-Cov's), as marks."""

    def covariance(batch, density):
        return (density.logp - density.logp.mean()) * (batch.advantage - batch.advantage.mean())

    loss = pt.total((1.0, pt.clipped()), (0.5, pt.WholeStep(covariance, lambda b, now, cov: (cov * now.logp, {}))))
    pt.check_loss(loss)
    gradients = []
    for tokens in (10**6, 60):
        policy = make()
        spy = Spy(policy)
        pt.update(policy, spy, played(make()), loss, micro_tokens=tokens, max_norm=1e9)
        gradients.append(spy.seen[0])
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-4)


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=20), data=st.data())
@settings(max_examples=50, deadline=None)
def test_3_weights_sum_to_one(lengths, data):
    group = torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=len(lengths), max_size=len(lengths))))
    for reduce in (pt.token_mean, pt.sequence_mean, pt.prompt_mean):
        n = torch.tensor(lengths)
        torch.testing.assert_close((reduce(n, group) * n).sum(), torch.tensor(1.0))


def test_3_prompt_mean_weighs_tasks_alike():
    weight = pt.prompt_mean(torch.tensor([2, 4, 6]), torch.tensor([5, 5, 9]))
    # group 5 has 6 decisions, group 9 has 6: each decision weighs 1 / (6 * 2)
    torch.testing.assert_close(weight, torch.full((3,), 1 / 12))
    torch.testing.assert_close(
        pt.constant_length(10)(torch.tensor([2, 4]), torch.tensor([0, 0])), torch.full((2,), 0.05)
    )


@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=30), budget=st.integers(1, 120))
@settings(max_examples=50, deadline=None)
def test_2_micro_batches_hold_every_row_once_within_the_budget(sizes, budget):
    class Sized:
        def size(self, rows):
            return sum(row.length for row in rows)

    rows = [SimpleNamespace(length=size, group=i // 3) for i, size in enumerate(sizes)]
    bins = micro_batches(Sized(), rows, budget)  # type: ignore[arg-type]
    assert sorted(i for inside in bins for i in inside) == list(range(len(sizes)))
    assert all(sum(sizes[i] for i in inside) <= budget or len(inside) == 1 for inside in bins)


def again(task):
    """Three turns: the second continues the first's tokens, the third starts over."""
    first = yield from pt.ask(task.prompt)
    yield from pt.ask([*task.prompt, pt.assistant(first), pt.user("again")])
    yield from pt.ask([pt.user("something else")])


def test_4_turns_that_continue_share_a_row(make):
    policy = make()
    [one] = pt.play([task()], again, {"policy": policy})
    packed = pt.rows(policy, one, torch.arange(one.decisions).float())
    assert [len(row.turns) for row in packed] == [2, 1]
    assert torch.cat([row.advantage for row in packed]).tolist() == list(range(one.decisions))
    first, second = one.turns[0].reply.trace, one.turns[1].reply.trace
    assert second.prompt[: len(first.prompt) + len(first.reply)] == first.prompt + first.reply
    pt.check_policy(policy, [task()], again)


def test_4_a_miscount_of_advantages_names_the_task(make):
    [one] = pt.play([task("sum")], pt.single_turn, {"policy": make()})
    with pytest.raises(ValueError, match=r"task 'sum': \d+ decisions but 99 advantages"):
        pt.rows(make(), one, torch.ones(99))


def test_5_an_environment_is_driven_by_hand():
    def guess(task):
        for k in range(3):
            reply = yield from pt.ask(task.prompt)
            if reply.content == task.truth:
                return k + 1
        return 0

    assert pt.check_env(guess, task(truth="7"), ["3", "7"]) == 2
    assert pt.check_env(guess, task(truth="9"), ["3"]) == 0


def test_5_mistakes_in_environments_are_explained(make):
    def forgot(task):
        return pt.ask(task.prompt)

    def plain(task):
        return [task.prompt]

    def endless(task):
        while True:
            yield from pt.ask(task.prompt)

    def stranger(task):
        yield from pt.ask(task.prompt, "judge")

    assert pt.play([task()], forgot, {"policy": make()})[0].turns  # the generator itself is a fine episode
    with pytest.raises(TypeError, match="yield from ask"):
        pt.play([task()], plain, {"policy": make()})
    with pytest.raises(AssertionError, match="bound its turns"):
        pt.check_env(endless, task(), ["x"], most=5)
    with pytest.raises(ValueError, match="asked 'judge', but only"):
        pt.play([task()], stranger, {"policy": make()})


def test_5_other_players_reply_but_are_not_trained(make):
    def judged(task):
        reply = yield from pt.ask(task.prompt)
        verdict = yield from pt.ask([pt.user(reply.content)], "judge")
        return verdict.content

    [one] = pt.play([task()], judged, {"policy": make(), "judge": Canned("fine")})
    assert one.facts == "fine"
    assert len(one.turns) == 1


def test_6_a_sample_does_not_depend_on_the_batch_around_it(make):
    policy = make(max_new=16)
    together = pt.rollout(pt.single_turn, [task("a"), task("b", text="another, longer one")], {"policy": policy}, 3, 5)
    alone = pt.play([task("b", text="another, longer one")], pt.single_turn, {"policy": policy}, [mix(5, 1, 2)])
    assert alone[0].text == together[1][2].text
    torch.testing.assert_close(alone[0].turns[0].reply.logp, together[1][2].turns[0].reply.logp, atol=1e-5, rtol=1e-4)
    assert len({one.text for group in together for one in group}) > 3


def test_6_uniforms_are_uniform_and_differ_by_seed():
    import numpy as np

    draws = uniforms(np.arange(200, dtype=np.uint64), 100)
    assert abs(draws.mean() - 0.5) < 0.01
    assert abs(np.corrcoef(draws[0], draws[1])[0, 1]) < 0.3
    assert draws.min() >= 0
    assert draws.max() < 1


def test_a_step_changes_parameters_and_reports(make):
    policy = make()
    recipe = pt.grpo(pt.each(digits), samples=4, kl=0.1, reference=policy.frozen_copy())
    source = pt.ShuffledSource([task(str(i)) for i in range(5)])
    before = [p.detach().clone() for p in policy.parameters()]
    got = pt.gather(policy, source, recipe, 3, seed=1)
    metrics = pt.update(
        policy, torch.optim.SGD(policy.parameters(), 0.5), got.rows, recipe.loss, reference=recipe.reference
    )
    assert got.metrics["rollouts"] == 12
    assert metrics["kl"] == pytest.approx(0, abs=1e-6)  # nothing has moved yet
    assert metrics["sampler_gap"] < 1e-5
    assert policy.version == 1
    assert any((a != b).any() for a, b in zip(before, policy.parameters(), strict=True))


def test_a_gradient_that_is_not_finite_stops_before_the_step():
    policy = Bandit([0.0, 0.0])
    rows = played(policy)
    bad = replace(rows[0], advantage=torch.tensor([float("nan")]))
    with pytest.raises(FloatingPointError, match="no step was taken"):
        pt.update(policy, torch.optim.SGD(policy.parameters(), 0.5), [bad], pt.clipped())
    assert policy.logits.tolist() == [0.0, 0.0]


def test_ungradable_samples_leave_the_baseline_and_are_not_trained():
    policy = Bandit([0.0, 0.0, 0.0])

    def reward(group):
        return [pt.Invalid("unreadable"), *[pt.Score(float(k)) for k in range(len(group) - 1)]]

    recipe = pt.Recipe(reward, advantage=pt.centred, samples=4, max_invalid=0.5)
    got = pt.gather(policy, pt.ShuffledSource([task()]), recipe, 1)
    assert [None if one.advantage is None else one.advantage.tolist() for one in got.played] == [None, [-1], [0], [1]]
    assert len(got.rows) == 3
    assert got.metrics["invalid"] == 0.25
    with pytest.raises(ValueError, match=r"1 of 4 rollouts could not be graded .* because: unreadable"):
        pt.gather(policy, pt.ShuffledSource([task()]), replace(recipe, max_invalid=0.2), 1)


def test_dynamic_sampling_replaces_groups_without_variance():
    flat = {"0", "1", "2"}

    def reward(group):
        return [pt.Score(0.0 if group[0].task.key in flat else float(k)) for k in range(len(group))]

    recipe = pt.Recipe(reward, samples=2, admit=pt.informative, rounds=10)
    got = pt.gather(Bandit([0.0, 0.0]), pt.ShuffledSource([task(str(i)) for i in range(6)]), recipe, 3)
    assert len(got.played) == len(got.rows) == 6
    refused = got.metrics["groups_refused"]
    assert got.metrics["groups_flat"] == refused / (refused + 3) > 0  # of all that was played
    assert {one.rollout.task.key for one in got.played}.isdisjoint(flat)
    none = pt.gather(Bandit([0.0, 0.0]), pt.ShuffledSource([task("0")]), replace(recipe, rounds=2), 1)
    assert none.rows == []
    assert none.metrics["groups_refused"] == 2


def test_ungradable_groups_that_are_refused_still_stop_the_run():
    recipe = pt.Recipe(pt.each(lambda rollout: pt.Invalid("down")), samples=2, admit=pt.informative, rounds=3)
    with pytest.raises(ValueError, match="6 of 6 rollouts could not be graded"):
        pt.gather(Bandit([0.0, 0.0]), pt.ShuffledSource([task("0")]), recipe, 1)


def test_an_advantage_that_miscounts_is_named():
    recipe = pt.Recipe(pt.each(lambda rollout: 1.0), advantage=lambda group, scores: [torch.zeros(1)], samples=2)
    with pytest.raises(ValueError, match="task 't': the advantage returned 1 tensors for 2 rollouts"):
        pt.gather(Bandit([0.0, 0.0]), pt.ShuffledSource([task()]), recipe, 1)


@pytest.mark.parametrize(("samples", "updates", "taken"), [(9, 8, 8), (5, 2, 2), (2, 4, 2)])
def test_as_many_updates_as_asked_for(samples, updates, taken):
    policy = Bandit([0.0, 0.0])
    pt.update(
        policy, torch.optim.SGD(policy.parameters(), 0.1), played(policy, 1, samples), pt.clipped(), updates=updates
    )
    assert policy.version == taken


def test_a_source_hands_out_every_task_once_an_epoch_and_remembers():
    source = pt.ShuffledSource(list(range(10)), seed=3)
    first = source.take(7)
    copy = pt.ShuffledSource(list(range(10)), seed=3)
    copy.load_state_dict(source.state_dict())
    assert source.take(13) == copy.take(13)
    assert sorted(pt.ShuffledSource(list(range(10)), seed=3).take(10)) == list(range(10))
    assert first != list(range(7))
    with pytest.raises(ValueError, match="empty"):
        pt.ShuffledSource([])


def test_a_group_of_one_is_refused_with_a_group_baseline():
    with pytest.raises(ValueError, match="a group of one has no baseline"):
        pt.grpo(pt.each(digits), samples=1)
    assert pt.reinforce_pp(pt.each(digits), samples=1).samples == 1


def test_rows_cut_off_by_length_can_be_left_out():
    long = said("x", stop="length")
    row = pt.Row(long.turns, torch.ones(1))
    assert not pt.wait_for_learners(row)
    assert long.truncated
    assert pt.wait_for_learners(pt.Row(said("x").turns, torch.ones(1)))


def test_off_policy_rows_are_corrected_and_truncated():
    """Another engine sampled with other probabilities: w = min(pi_old / mu, 2) multiplies the cost."""
    policy = Bandit([0.0, 0.0])  # pi = 1/2
    reply = lambda mu: pt.Reply(0, torch.tensor([mu]).log(), 0)  # noqa: E731
    rows = [pt.Row([pt.Turn(pt.Ask(()), reply(mu))], torch.ones(1)) for mu in (0.5, 0.4, 0.1)]
    spy = Spy(policy)
    metrics = pt.update(policy, spy, rows, pt.clipped(), corrected=True, max_norm=1e9)
    # d/dlogit0 of -ratio is -1/2 for each; weights 1, 1.25, min(5, 2)
    torch.testing.assert_close(spy.seen[0][0].float(), torch.tensor(-0.5 * (1 + 1.25 + 2) / 3))
    assert metrics["correction_capped"] == pytest.approx(1 / 3)
    gap = torch.tensor([0.0, 0.5 / 0.4, 0.5 / 0.1]).clamp(min=1).log().mean()
    assert metrics["sampler_gap"] == pytest.approx(gap.item(), rel=1e-4)


def test_flatten_keeps_order():
    rows = played(Bandit([0.0, 1.0]), tasks=1, samples=3)
    batch = flatten(rows)
    assert batch.row.tolist() == [0, 1, 2]
    assert values([pt.Score(a) for a in batch.advantage.tolist()]) == pytest.approx([-1, 0, 1], abs=1e-4)
    assert rows_of(Bandit([0.0]), pt.Rollout(task(), rows[0].turns), rows[0].turns)[0].advantage.tolist() == [0]
