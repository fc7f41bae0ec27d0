"""RL-Wall: the walk's graders, sweeps, trees."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from conftest import Canned, said

import posttrain as pt
from posttrain.cli import main
from posttrain.core import Failure
from posttrain.evaluation import Evaluation
from posttrain.lab.world.navigation import Navigation, is_right
from posttrain.measure import auc
from posttrain.systems.rl_wall import stages
from posttrain.systems.rl_wall.judge import Assessment, assess, shares
from posttrain.systems.rl_wall.sweep import TEMPERATURES, Sweep, sweep_temperatures
from posttrain.systems.rl_wall.tree import Node, shared_prefix, tree, write_trees


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
        return world.plan_is_right(rollout), world.execution_is_right(rollout), is_right(rollout)

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
    counts = world.expected_counts()
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
    found = sweep_temperatures(
        policy, tasks, pt.each(lambda r: r.turns[0].reply.temperature), temperatures=(0.2, 1.0), samples=2
    )
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
    assert shared_prefix([(1, 2, 3), (1, 2), (1, 2, 4)]) == 2


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
    found = assess(judge, [said("2+2=5"), said("4")])
    assert found == [Assessment(False, True, None)] * 2
    assert shares(found, [False, True]) == {"plan": 0.0, "execute": 1.0, "verify": 0.0, "judged": 0.0}
    some = [Assessment(True, None, True), Assessment(False, False, True)]
    assert shares(some, [True, False]) == {"plan": 0.5, "execute": 0.0, "verify": 0.5, "judged": 1.0}


def test_a_judge_that_cannot_answer_has_said_neither():
    down = Canned(Failure("no answer: yes, the server is down"))
    assert assess(down, [said("4")]) == [Assessment(None, None, None)]


# ---- stages


@pytest.fixture
def problems(tmp_path) -> str:
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"What is {i}+{i}?", "answer": str(2 * i)}) + "\n" for i in range(3)))
    return str(path)


def test_a_resumed_run_keeps_the_sweep_of_its_base_model(problems, tmp_path):
    words = ["run", "rl-wall", "--scale", "full", "--data", problems, "--held-out", problems, f"again={problems}"]
    words += ["--max-new", "4", "--samples", "2", "--tasks", "2", "--quiet", "--out", str(tmp_path / "run")]
    main([*words, "--steps", "1"])
    first = json.loads((tmp_path / "run" / "sweeps.json").read_text())
    assert set(first) == {"samples", "before", "after"}
    assert {f"{name}/pass@1 at {t:g}" for name in ("problems", "again") for t in TEMPERATURES} < set(first["before"])
    first["before"]["again/coverage"] = 0.625
    (tmp_path / "run" / "sweeps.json").write_text(json.dumps(first))
    main([*words, "--steps", "2", "--resume"])
    assert json.loads((tmp_path / "run" / "sweeps.json").read_text())["before"] == first["before"]
    assert (tmp_path / "run" / "trees" / "again" / "index.html").is_file()


def test_solutions_are_judged_in_batches_and_resumed(problems, tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "AT_ONCE", 1)
    words = ["run", "rl-wall", "--stage", "judge", "--data", problems, "--max-new", "4", "--samples", "2"]
    main([*words, "--quiet", "--out", str(tmp_path / "whole")])
    lines = (tmp_path / "whole" / "judged.jsonl").read_text().splitlines(keepends=True)
    assert [len(json.loads(line)["solutions"]) for line in lines] == [2, 2, 2]
    assert set(json.loads((tmp_path / "whole" / "shares.json").read_text())) == {"plan", "execute", "verify", "judged"}
    again = [*words, "--quiet", "--out", str(tmp_path / "whole"), "--resume"]
    (tmp_path / "whole" / "judged.jsonl").write_text(lines[0] + lines[1][:20])  # killed within the second batch
    main(again)
    assert (tmp_path / "whole" / "judged.jsonl").read_text() == "".join(lines)
