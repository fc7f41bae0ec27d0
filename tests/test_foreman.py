"""The asynchronous loop with real players in one process: draws, refills, losses, ages and resumption."""

from __future__ import annotations

from collections import Counter, deque

import pytest
import torch
from conftest import digits, task
from inline import Inline

import posttrain as pt
from posttrain.scale import asynchronous
from posttrain.scale.asynchronous import Players, train_with_players

TASKS = [task(str(i)) for i in range(120)]


@pytest.fixture
def loop(make, monkeypatch, tmp_path):
    """Run the asynchronous loop: `loop(out, steps, recipe, players, **crew)`; returns the session and the policy."""

    def run(out, steps=4, recipe=None, staleness=0, rule="block", resume=False, stop_after=None, **crew):
        made = recipe or (lambda policy: pt.grpo(pt.each(digits), samples=3))

        def build():
            policy = make(max_new=5)
            return policy, made(policy)

        monkeypatch.setattr(asynchronous, "crew_of", lambda build, players: Inline(build, **crew))
        policy, mine = build()
        settings = pt.Run(tmp_path / out, steps=steps, tasks=3, lr=1e-4, save_every=1, resume=resume, quiet=True)
        players = Players(staleness=staleness, rule=rule)
        done = iter(range(10**6))
        stopped = (lambda: next(done) + 1 >= stop_after) if stop_after else (lambda: False)
        return train_with_players(policy, TASKS, mine, settings, build, players, stopped=stopped), policy

    return run


def trained(folder) -> list[list[str]]:
    """The tasks of each step, in order."""
    steps: dict[int, list[str]] = {}
    for record in pt.read_rollouts(folder):
        steps.setdefault(record["step"], []).append(record["task"])
    return [steps[step][::3] for step in sorted(steps)]


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("method", ["grpo", "dapo"])
def test_staleness_zero_is_train_whatever_order_players_finish_in(make, loop, tmp_path, method, late):
    """Bandit-sized steps: the same tasks, draws and refills; the same weights to float tolerance."""

    def recipe(policy):
        reward = pt.each(digits)
        return pt.dapo(reward, max_new=5, samples=3) if method == "dapo" else pt.grpo(reward, samples=3)

    policy = make(max_new=5)
    run = pt.Run(tmp_path / "plain", steps=4, tasks=3, lr=1e-4, quiet=True)
    plain = pt.train(policy, TASKS, recipe(policy), run)
    session, other = loop("spread", recipe=recipe, late=late)
    assert trained(tmp_path / "spread") == trained(tmp_path / "plain")
    for name in ("reward", "groups_refused", "rollouts", "decisions"):
        assert [line[name] for line in session.history] == [line[name] for line in plain.history], name
    gaps = [(a - b).abs().max() for a, b in zip(policy.parameters(), other.parameters(), strict=True)]
    assert max(gaps) < 1e-5
    assert all(line["age_max"] == 0 for line in session.history)


@pytest.mark.parametrize("rule", ["block", "drop", "interrupt"])
def test_no_group_is_trained_older_than_the_bound_or_twice(loop, tmp_path, rule):
    """The newest group mostly ends first, so that the oldest are late."""
    session, _ = loop("late", steps=10, staleness=1, rule=rule, late=True, count=4)
    ages = [line["age_max"] for line in session.history]
    assert max(ages) <= 1
    assert rule != "block" or max(ages) == 1
    counts = Counter(name for step in trained(tmp_path / "late") for name in step)
    assert set(counts.values()) == {1}
    assert sum(counts.values()) == 10 * 3
    last = session.history[-1]
    assert (last["groups_dropped"] > 0) == (rule == "drop")
    assert (sum(line["groups_lost"] for line in session.history) > 0) == (rule == "interrupt")
    for line in session.history:
        assert sum(value for name, value in line.items() if name.startswith("age/")) == pytest.approx(1)


def test_a_lost_group_is_played_again_with_the_same_draws(loop, tmp_path):
    plain, _ = loop("plain")
    lossy, _ = loop("lossy", lose={1, 4, 7})
    assert trained(tmp_path / "lossy") == trained(tmp_path / "plain")
    assert [line["reward"] for line in lossy.history] == [line["reward"] for line in plain.history]
    assert sum(line["groups_lost"] for line in lossy.history) == 3
    assert lossy.history[-1]["players_replaced"] == 3


def test_a_stopped_run_goes_on_where_it_was(loop, tmp_path):
    """Groups that were played and not trained are in the checkpoint; those under way are begun again."""
    loop("whole", steps=6, staleness=1, count=3, late=True)
    with pytest.raises(KeyboardInterrupt):
        loop("cut", steps=6, staleness=1, count=3, late=True, stop_after=3)
    assert len(pt.read_metrics(tmp_path / "cut")) == 3
    loop("cut", steps=6, staleness=1, count=3, late=True, resume=True)
    counts = Counter(name for step in trained(tmp_path / "cut") for name in step)
    assert set(counts.values()) == {1}
    assert len(counts) == 18
    assert set(counts) == {name for step in trained(tmp_path / "whole") for name in step}, "no task was skipped"
    assert [line["step"] for line in pt.read_metrics(tmp_path / "cut")] == list(range(6))


def test_dynamic_sampling_goes_with_staleness(loop, tmp_path):
    recipe = lambda policy: pt.dapo(pt.each(digits), max_new=5, samples=3)  # noqa: E731
    session, _ = loop("dynamic", steps=5, staleness=1, recipe=recipe, late=True, count=3)
    assert max(line["age_max"] for line in session.history) <= 1
    assert sum(line["groups_refused"] for line in session.history) > 0
    counts = Counter(name for step in trained(tmp_path / "dynamic") for name in step)
    assert set(counts.values()) == {1}


def test_a_cluster_s_run_is_not_resumed_without_one(loop, make, tmp_path):
    loop("cluster", steps=2)
    run = pt.Run(tmp_path / "cluster", steps=3, tasks=3, lr=1e-4, save_every=1, resume=True, quiet=True)
    with pytest.raises(ValueError, match="differ in foreman: resume it as it was started"):
        pt.train(make(max_new=5), TASKS, pt.grpo(pt.each(digits), samples=3), run)


def test_a_critic_stays_with_the_learner(loop):
    """PPO: one sample a task, and an advantage that only the learner can compute and teach."""
    from posttrain.policy.value import Critic, Gae

    session, _ = loop("ppo", recipe=lambda policy: pt.ppo(pt.each(digits), advantage=Gae(Critic(policy)), samples=1))
    assert all("critic_loss" in line for line in session.history)


def test_another_staleness_is_another_run(loop):
    loop("run", steps=2)
    with pytest.raises(ValueError, match="was started with staleness = 0, not 1"):
        loop("run", steps=3, staleness=1, resume=True)


def test_stale_groups_are_corrected(loop, tmp_path):
    session, _ = loop("stale", steps=6, staleness=1, count=4, late=True)
    assert all("correction_capped" in line for line in session.history if line.get("rows_skipped", 1) < 1)
    versions = {turn["version"] for record in pt.read_rollouts(tmp_path / "stale") for turn in record["turns"]}
    assert {0, 1, 2} <= versions


def test_a_player_that_has_other_weights_is_found(make):
    from posttrain.sampler.weights import SyncError, Twin, collect_weights, synchronise

    learner, player = make(seed=0), make(seed=1)
    weights = collect_weights(learner, ((5, 6, 7), (8, 9)), merged=False)
    twin = Twin(player)
    assert synchronise(twin, weights)["parity_gap_max"] < 1e-5
    assert all(torch.equal(a, b) for a, b in zip(learner.parameters(), player.parameters(), strict=True))
    broken = type(weights)(1, {**weights.tensors, "lm_head.weight": weights.tensors["lm_head.weight"] + 1}, (), ())
    twin.policy.load_state_dict = lambda state: None
    with pytest.raises(SyncError, match="the sampler did not take the weights: lm_head.weight"):
        synchronise(twin, broken)


def test_groups_that_are_owed_are_kept_in_a_checkpoint(loop, tmp_path):
    """What a checkpoint holds of refused groups is read again: nothing in it is more than plain data."""
    recipe = lambda policy: pt.dapo(pt.each(digits), max_new=5, samples=3)  # noqa: E731
    session, _ = loop("owing", steps=2, recipe=recipe, staleness=1)
    foreman = session.memory["foreman"]
    foreman.owed = deque([(3, 1, 0)])
    session.checkpoints.check_plain({"foreman": foreman.state_dict()})
    state = foreman.state_dict()
    foreman.owed.clear()
    foreman.load_state_dict(state)
    assert list(foreman.owed) == [(3, 1, 0)]
    foreman.owed.append((4, 1, 0))
