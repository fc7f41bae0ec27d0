"""A policy that decides and does not speak: what it may choose, what it scores, and that every recipe trains it."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import posttrain as pt
from posttrain.core import Ask, Reply, Turn
from posttrain.policy.decision import Decision
from posttrain.row import rows_of


def network(seed: int = 0, features: int = 3, options=(3, 2, 4), **more) -> pt.Categorical:
    """With weights that prefer some options to others."""
    torch.manual_seed(seed)
    made = pt.Categorical(features, options, hidden=(16, 8), **more)
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(torch.randn(p.shape) * 0.5)
    return made


def shown(i: int, **more) -> pt.Task:
    return pt.Task(f"t{i}", (pt.show(state=[i / 5, 1.0, -i / 3], **more),), i)


TASKS = [shown(i) for i in range(4)]
OPEN = [[1, 0, 1, 0], [0, 1, 0, 0], [1, 1, 0, 1]]


def asks_of(tasks, seeds, temperature=None):
    return [Ask(one.prompt, seed=seed, temperature=temperature) for one, seed in zip(tasks, seeds, strict=True)]


def again(task: pt.Task) -> pt.Episode:
    """Two turns, of which the second shows what the first chose."""
    first = yield from pt.ask(task.prompt)
    second = yield from pt.ask([pt.show(state=[float(c) for c in first.content])])
    return first.content, second.content


@pytest.mark.parametrize("env", [pt.single_turn, again], ids=["one turn", "two turns"])
@pytest.mark.parametrize("tasks", [TASKS, [shown(i, open=OPEN) for i in range(4)]], ids=["open", "some closed"])
def test_it_passes_the_checks_of_a_policy(env, tasks):
    if env is again and tasks is not TASKS:
        pytest.skip("the second turn shows no mask")
    pt.check_policy(pt.DecisionPolicy(network()), tasks, env, tolerance=1e-5)


def test_the_log_probability_of_every_combination_is_that_of_its_choices():
    """All 24 replies to one ask: their probabilities add up to 1, and the entropies are those of the chain."""
    policy = pt.DecisionPolicy(network())
    every = list(itertools.product(range(3), range(2), range(4)))
    numbers = {"state": [0.2, 1.0, -0.3]}
    turns = [Turn(Ask((pt.show(**numbers),)), Reply(c, torch.zeros(3), Decision(numbers, c))) for c in every]
    rows = [pt.rows_of(policy, pt.Rollout(TASKS[0], [turn]), [turn])[0] for turn in turns]
    with torch.no_grad():
        found = policy.density(rows)
    logp, entropy = found.logp.view(-1, 3), found.entropy.view(-1, 3)
    whole = logp.sum(1).exp()
    assert whole.sum().item() == pytest.approx(1, abs=1e-5)
    assert (whole * entropy.sum(1)).sum().item() == pytest.approx(-(whole * logp.sum(1)).sum().item(), abs=1e-5)


@given(
    seeds=st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=8),
    budget=st.floats(3, 9),
    heat=st.sampled_from([None, 0.0, 0.5, 3.0]),
)
@settings(max_examples=40, deadline=None)
def test_choices_never_cost_more_than_the_budget_and_closed_options_are_never_chosen(seeds, budget, heat):
    costs = [[1.0, 4.0, 2.0], [1.0, 3.0], [1.0, 2.0, 5.0, 8.0]]
    policy = pt.DecisionPolicy(network(costs=costs))
    tasks = [shown(i, budget=budget, open=[[1, 0, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]]) for i in range(len(seeds))]
    for reply in policy.sample(asks_of(tasks, seeds, heat)):
        assert sum(costs[i][c] for i, c in enumerate(reply.content)) <= budget + 1e-4
        assert reply.content[0] != 1


@given(st.integers(0, 2**63 - 1), st.integers(0, 3))
@settings(max_examples=30, deadline=None)
def test_what_is_chosen_does_not_depend_on_the_asks_beside_it(seed, i):
    policy = pt.DecisionPolicy(network())
    asks = asks_of(TASKS, [seed, seed + 1, seed + 2, seed + 3])
    alone = policy.sample([asks[i]])[0]
    beside = policy.sample(asks)[i]
    assert alone.content == beside.content
    torch.testing.assert_close(alone.logp, beside.logp)


def test_a_mask_that_some_asks_lack_is_refused_whoever_comes_first():
    policy = pt.DecisionPolicy(network())
    with_mask, without = shown(0, open=OPEN), shown(1)
    for some in ([with_mask, without], [without, with_mask]):
        with pytest.raises(ValueError, match="`open` is not shown"):
            policy.sample(asks_of(some, [1, 2]))


def test_frequencies_are_the_probabilities():
    """4,000 draws: every combination within five standard errors of its probability."""
    policy = pt.DecisionPolicy(network(options=(2, 3)))
    replies = policy.sample([Ask(TASKS[1].prompt, seed=pt.mix(7, i)) for i in range(4000)])
    chance = {reply.content: reply.logp.sum().exp().item() for reply in replies}
    assert len(chance) == 6
    for one, p in chance.items():
        share = sum(reply.content == one for reply in replies) / 4000
        assert abs(share - p) < 5 * math.sqrt(p * (1 - p) / 4000)


def test_a_choice_with_one_open_option_is_no_decision():
    policy = pt.DecisionPolicy(network())
    [reply] = policy.sample([Ask(shown(1, open=OPEN).prompt)])
    assert reply.content[1] == 1
    assert len(reply.logp) == 2


def test_at_temperature_zero_the_likeliest_is_chosen_and_there_is_no_density():
    policy = pt.DecisionPolicy(network())
    cold = policy.sample(asks_of(TASKS, [1, 2, 3, 4], 0.0))
    assert [r.content for r in cold] == [r.content for r in policy.sample(asks_of(TASKS, [9, 8, 7, 6], 0.0))]
    turn = Turn(Ask(TASKS[0].prompt), cold[0])
    with pytest.raises(ValueError, match="temperature 0 has no density"):
        policy.density(rows_of(policy, pt.Rollout(TASKS[0], [turn]), [turn]))


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (pt.Task("a", (pt.user("words"),), None), "task 'a': .*one part of features"),
        (pt.Task("a", (pt.show(state=[1.0]),), None), r"`state` is shown as \[1\]; the network reads \[3\]"),
        (pt.Task("a", (pt.show(other=[1.0]),), None), "nothing is shown as `state`"),
        (pt.Task("a", (pt.show(state="high"),), None), "`state` is not shown as numbers"),
        (pt.Task("a", (pt.show(state=[1.0, math.nan, 0.0]),), None), "not finite"),
    ],
)
def test_a_task_that_cannot_be_read_is_refused_by_name(task, message):
    with pytest.raises(ValueError, match=message):
        pt.DecisionPolicy(network()).check([task])


def test_a_choice_without_an_open_option_is_an_error():
    with pytest.raises(ValueError, match="every option of a choice is closed"):
        pt.DecisionPolicy(network()).sample([Ask(shown(0, open=[[0] * 4] * 3).prompt)])


def test_it_is_saved_and_loaded(tmp_path):
    policy = pt.DecisionPolicy(network(seed=3))
    policy.save(tmp_path)
    twin = pt.DecisionPolicy(pt.load_network(tmp_path))
    asks = asks_of(TASKS, [1, 2, 3, 4])
    assert [r.content for r in twin.sample(asks)] == [r.content for r in policy.sample(asks)]
    with pytest.raises(ValueError, match="it holds 'Categorical', not Choices"):
        pt.load_network(tmp_path, type("Choices", (pt.Categorical,), {}))
    with pytest.raises(ValueError, match="holds no policy that decides"):
        pt.load_network(tmp_path / "none")


def fits(group: pt.Group) -> list[pt.Score]:
    """Both choices must be the task's number."""
    return [pt.Score(sum(c == one.task.truth for c in one.turns[-1].reply.content) / 2) for one in group]


BANDIT = [pt.Task(f"{i}", (pt.show(state=[float(i == j) for j in range(4)]),), i) for i in range(4)]


def bandit() -> pt.DecisionPolicy:
    torch.manual_seed(0)
    return pt.DecisionPolicy(pt.Categorical(4, (4, 4), hidden=(16,)))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["grpo", "ppo", "rloo"])
def test_recipes_teach_it_what_to_choose(method):
    policy = bandit()
    critic = {"advantage": pt.Gae(pt.Critic(policy, lr=1e-2), lam=1.0), "updates": 1, "epochs": 2, "samples": 8}
    recipe = {"grpo": lambda: pt.grpo(fits), "rloo": lambda: pt.rloo(fits), "ppo": lambda: pt.ppo(fits, **critic)}
    history = pt.train_in_memory(policy, BANDIT, recipe[method](), steps=60, per_step=4, lr=1e-2)
    assert history[0]["reward"] < 0.5
    assert history[-1]["reward"] > 0.9


def test_a_run_writes_what_it_chose_and_resumes_where_it_stopped(tmp_path):
    def run(out, steps, **more):
        policy = bandit()
        made = pt.ppo(fits, advantage=pt.Gae(pt.Critic(policy, lr=1e-2)), samples=2)
        where = pt.Run(tmp_path / out, steps=steps, tasks=4, lr=1e-2, quiet=True, save_every=2, **more)
        pt.train(policy, BANDIT, made, where, held_out=BANDIT)
        return load_file(tmp_path / out / "model" / "model.safetensors")

    whole = run("whole", 4)
    run("halves", 2)
    found = run("halves", 4, resume=True)
    assert all(torch.equal(whole[name], found[name]) for name in whole)
    first = next(pt.read_rollouts(tmp_path / "whole"))["turns"][0]
    assert len(first["choices"]) == 2
    assert first["messages"][0]["content"][0]["features"]["state"].count(1.0) == 1
