"""RL-Wall: the walk's graders, sweeps, trees."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from conftest import Canned, said

import posttrain as pt
from posttrain.core import Failed
from posttrain.evaluation import Evaluation
from posttrain.lab.world.navigation import Navigation, right
from posttrain.measure import auc
from posttrain.systems.rl_wall import Sweep, swept
from posttrain.systems.rl_wall.judge import Assessment, assessed, shares
from posttrain.systems.rl_wall.tree import Node, common, tree, write_trees


def test_a_walk_follows_the_tables():
    world = Navigation(3)
    follow, sign, _, _ = world.tables
    for task in world.problems(50, "test"):
        walk = task.truth
        for i, action in enumerate(walk.actions):
            assert follow[walk.states[i], action] == walk.states[i + 1]
            assert sign[walk.signs[i], action] == walk.signs[i + 1]
            assert list(sign[walk.signs[i]]).count(walk.signs[i + 1]) == 1  # the move names one action
    assert world.problems(5, "test")[0].truth == world.problems(500, "test")[0].truth  # whatever the split's size
    assert world.problems(5, "test")[0].truth != world.problems(5, "train")[0].truth


def test_plan_and_execution_are_told_apart():
    world = Navigation(0)
    task = world.problems(1, "test")[0]
    walk = task.truth

    def graded(text):
        rollout = said(text, walk)
        return world.planned(rollout), world.executed(rollout), right(rollout)

    assert graded(walk.reply) == (1.0, 1.0, 1.0)
    wrong_last = " ".join([*walk.reply.split()[:-1], f"s{(walk.states[-1] + 1) % 5}"])
    assert graded(wrong_last) == (1.0, 0.0, 0.0)  # the plan was right
    follow, state, words = world.tables[0], walk.states[0], []
    for action in walk.actions:
        other = (action + 1) % 5
        state = int(follow[state, other])
        words += [f"a{other}", f"s{state}"]
    assert graded(" ".join(words)) == (0.0, 1.0, 0.0)  # another plan, carried out well
    for text in ("", "a1 s1", "s1 a1 s1 a1 s1 a1", walk.reply + " a1"):
        assert graded(text) == (0.0, 0.0, 0.0)


def test_rare_pairs_foretell_what_is_out_of_reach():
    world = Navigation(0, taught=300)
    counts = world.expected()
    assert counts.sum() == 300 * world.length
    tasks = world.problems(40, "test")
    rare = [any(counts[s, a] < 10 for s, a in zip(t.truth.states[:-1], t.truth.actions, strict=True)) for t in tasks]
    assert world.out_of_reach(tasks) == pytest.approx(np.mean(rare))


def evaluation(values):
    return Evaluation([[said("x") for _ in one] for one in values], [[pt.Score(v) for v in one] for one in values])


def test_a_sweep_by_hand():
    found = Sweep({0.2: evaluation([[1.0, 1.0], [0.0, 0.0]]), 1.4: evaluation([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])})
    assert found.precision(0.2) == 0.5
    assert found.dependence == pytest.approx(0.5 - 1 / 3)
    assert found.coverage == pytest.approx(2 / 3)  # at 1.4


def test_a_sweep_leaves_the_policy_s_temperature_alone(make):
    policy = make(temperature=0.7)
    tasks = [pt.Task("t", (pt.user("hi"),), None)]
    found = swept(policy, tasks, pt.each(lambda r: r.turns[0].reply.temperature), temperatures=(0.2, 1.0), samples=2)
    assert policy.sampling.temperature == 0.7
    assert (found.precision(0.2), found.precision(1.0)) == (pytest.approx(0.2), 1.0)


def test_auc_by_hand():
    assert auc([0.1, 0.4, 0.35, 0.8], [False, False, True, True]) == 0.75
    assert auc([1.0, 1.0], [True, False]) == 0.5  # a tie
    assert np.isnan(auc([1.0, 2.0], [True, True]))
    draw = random.Random(0)
    values = [draw.randint(0, 5) for _ in range(60)]
    marks = [draw.random() < 0.4 for _ in range(60)]
    pairs = [
        (a > b) + 0.5 * (a == b)
        for a, x in zip(values, marks, strict=True)
        if x
        for b, y in zip(values, marks, strict=True)
        if not y
    ]
    assert auc(values, marks) == pytest.approx(np.mean(pairs))


class Letters:
    def decode(self, ids):
        return "".join(chr(97 + i) for i in ids)


def test_a_tree_shares_prefixes_and_merges_agreeing_branches():
    samples = [((0, 1, 2), 1.0, "c"), ((0, 1, 3), 0.0, "d"), ((0, 1, 2), 1.0, "c"), ((4,), 0.0, "e")]
    root = tree(samples, Letters())
    assert (root.count, root.mean) == (4, 0.5)
    first, second = sorted(root.children, key=lambda node: -node.count)
    assert (first.text, first.count, first.mean) == ("ab", 3, pytest.approx(2 / 3))
    assert [(leaf.text, leaf.count, leaf.answer) for leaf in first.children] == [("c", 2, "c"), ("d", 1, "d")]
    assert (second.text, second.answer, second.children) == ("e", "e", [])
    agreeing = tree([((0, 1), 1.0, "x"), ((2,), 1.0, "x")], Letters())
    assert (agreeing.children, agreeing.answer) == ([], "x")
    assert common([(1, 2, 3), (1, 2), (1, 2, 4)]) == 2


def test_trees_are_written_for_reading(make, tmp_path):
    policy = make()
    tasks = [pt.Task(f"t{i}", (pt.user(f"<b>{i}"),), None) for i in range(2)]
    found = pt.evaluate({"policy": policy}, tasks, pt.each(lambda r: 1.0), samples=4)
    write_trees(found, policy.tokenizer, tmp_path / "trees")
    root = json.loads((tmp_path / "trees" / "t0.json").read_text())
    assert root["count"] == 4
    page = (tmp_path / "trees" / "index.html").read_text()
    assert "&lt;b&gt;0" in page
    assert Node("x", 1, 0.0, answer="<i>").as_html().count("<i>") == 0


def test_a_judge_is_asked_of_plan_execution_and_answer():
    says = {"only the plan": "Yes. On reflection: no", "only the execution": "yes!", "final answer": "I cannot tell"}
    judge = Canned(
        lambda ask: next(
            v for k, v in says.items() if k in ask.messages[0]["content"].partition("?")[0].partition(",")[0]
        )
    )
    found = assessed(judge, [said("2+2=5"), said("4")])
    assert found == [Assessment(False, True, None)] * 2
    assert shares(found, [False, True]) == {"plan": 0.0, "execute": 1.0, "verify": 0.0, "judged": 0.0}
    some = [Assessment(True, None, True), Assessment(False, False, True)]
    assert shares(some, [True, False]) == {"plan": 0.5, "execute": 0.0, "verify": 0.5, "judged": 1.0}


def test_a_judge_that_cannot_answer_has_said_neither():
    down = Canned(Failed("no answer: yes, the server is down"))
    assert assessed(down, [said("4")]) == [Assessment(None, None, None)]
