"""Pangu Embedded: selection, merging, the router, modes, repair, and its stages on a checkpoint."""

from __future__ import annotations

import json
import math
import random
import statistics

import pytest
import torch
from conftest import Canned, said, task, values
from hypothesis import given, settings
from hypothesis import strategies as st

import posttrain as pt
from posttrain.cli import main
from posttrain.lab.world import chains
from posttrain.lab.world import sources as three
from posttrain.systems.pangu_embedded import lab, recipe
from posttrain.systems.pangu_embedded.distillation import (
    ByComplexity,
    complexity,
    first_right,
    medium,
    merged_weights,
    shortest_right,
    weighted_sample,
)
from posttrain.systems.pangu_embedded.dual import META, fast_enough, fusion_set, with_mode
from posttrain.systems.pangu_embedded.mars import Router, answers, repetition, with_auxiliaries
from posttrain.systems.pangu_embedded.repair import NOTE, Repaired, loop
from posttrain.systems.pangu_embedded.stages import TeacherOptions, sources

# ---- distillation


def test_complexity_is_the_share_of_wrong_answers():
    tasks = [task("easy", "yes"), task("half", "maybe"), task("hard", "no")]
    replies = {"hi easy": ["yes"], "hi half": ["maybe", "no"], "hi hard": ["yes"]}
    count: dict[str, int] = {}

    def answer(ask):
        text = ask.messages[0]["content"]
        count[text] = count.get(text, 0) + 1
        return replies[text][count[text] % len(replies[text])]

    found = complexity(Canned(answer), tasks, pt.grade.exact, samples=4)
    assert found == {"easy": 0.0, "half": 0.5, "hard": 1.0}
    assert medium(0.5) == 1.0
    assert medium(0.25) == pytest.approx(math.exp(-0.5))
    assert medium(1.0) == pytest.approx(math.exp(-2.0))


def test_selection_prefers_heavy_items_and_repeats_none():
    items = list(range(100))
    weights = [9.0 if i < 50 else 1.0 for i in items]
    picks = [weighted_sample(items, weights, 20, seed) for seed in range(200)]
    assert all(len(set(pick)) == 20 for pick in picks)
    assert statistics.fmean(i < 50 for pick in picks for i in pick) == pytest.approx(0.88, abs=0.03)
    assert weighted_sample(items, weights, 20, 3) == picks[3]
    assert 99 not in {i for pick in picks[:20] for i in weighted_sample(items, [*weights[:99], 0.0], 50, pick[0])}


def test_merging_moves_by_a_share_of_the_mean_change():
    before = {"w": torch.tensor([1.0, 2.0]), "steps": torch.tensor([3])}
    after = [{"w": torch.tensor([2.0, 2.0]), "steps": torch.tensor([4])}, {"w": torch.tensor([4.0, 0.0]), "steps": torch.tensor([5])}]  # fmt: skip
    found = merged_weights(before, after, 0.5)
    assert found["w"].tolist() == [2.0, 1.5]
    assert found["steps"].tolist() == [5], "integer buffers are not averaged"
    half = {"w": before["w"].bfloat16()}
    assert merged_weights(half, [{"w": torch.tensor([1.01, 2.0]).bfloat16()}], 1.0)["w"].dtype == torch.bfloat16
    with pytest.raises(ValueError, match="another architecture cannot be merged: w differs"):
        merged_weights(before, [{"w": torch.zeros(3), "steps": torch.tensor([1])}], 1.0)


def test_the_shortest_right_answer_is_kept_and_tasks_without_one_are_left_out():
    answers = {"hi a": ["1 2 3 4", "1 2 4", "5"], "hi b": ["7"]}
    turn: dict[str, int] = {}

    def answer(ask):
        text = ask.messages[0]["content"]
        turn[text] = turn.get(text, -1) + 1
        return answers[text][turn[text] % len(answers[text])]

    verify = pt.each(lambda rollout: float(rollout.text.endswith(rollout.task.truth)))
    kept = shortest_right(Canned(answer), [task("a", "4"), task("b", "8")], verify, candidates=3)
    assert kept == {"a": "1 2 4"}
    turn.clear()
    assert first_right(Canned(answer), [task("a", "4"), task("b", "8")], verify, 3, seed=0) == {"a": "1 2 3 4"}


# ---- the router


def grouped(kind, rewards):
    return [pt.Rollout(pt.Task(f"{kind}:1", (), r), said("x").turns) for r in rewards]


TRUTH = pt.each(lambda rollout: rollout.task.truth)


def test_each_source_has_its_reward_and_its_scale():
    router = Router({"math": TRUTH, "chat": TRUTH}, three.kind_of, {"math": "zscore", "chat": "sigmoid"}, window=6)
    assert values(router(grouped("math", [0.0, 1.0]))) == pytest.approx([-1.0, 1.0], abs=1e-5)
    chat = router(grouped("chat", [10.0, 30.0, 20.0]))
    std = math.sqrt(200 / 3)
    assert values(chat) == pytest.approx([1 / (1 + math.exp(-z)) for z in (-10 / std, 10 / std, 0.0)], abs=1e-5)
    assert chat[1].parts == {"chat": 30.0}
    plain = Router({"math": TRUTH}, three.kind_of)
    assert values(plain(grouped("math", [3.0, 5.0]))) == [3.0, 5.0]
    with pytest.raises(ValueError, match="the source 'law', which has no reward: there are .'chat', 'math'."):
        router(grouped("law", [1.0]))


def test_what_a_router_remembers_is_in_a_checkpoint():
    from posttrain.run.memory import stateful_parts

    router = Router({"math": TRUTH}, three.kind_of, {"math": "zscore"}, window=4)
    router(grouped("math", [0.0, 1.0, 5.0]))
    assert list(stateful_parts(pt.grpo(with_auxiliaries(router, bool))).values()) == [router]
    other = Router({"math": TRUTH}, three.kind_of, {"math": "zscore"}, window=4)
    other.load_state_dict(json.loads(json.dumps(router.state_dict())))
    group = grouped("math", [2.0, 3.0])
    assert values(router(group)) == values(other(group))
    assert list(router.seen["math"]) == [1.0, 5.0, 2.0, 3.0], "the last four"


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-3, 3), min_size=2, max_size=8), st.floats(0.1, 50), st.floats(-100, 100))
def test_an_adaptive_source_has_no_scale(rewards, scale, shift):
    one, other = (Router({"math": TRUTH}, three.kind_of, {"math": "zscore"}) for _ in range(2))
    if statistics.pstdev(rewards) < 1e-2:
        return
    first = values(one(grouped("math", rewards)))
    second = values(other(grouped("math", [scale * r + shift for r in rewards])))
    assert first == pytest.approx(second, abs=1e-3)


def test_format_and_repetition_join_every_reward():
    reward = with_auxiliaries(pt.each(lambda rollout: 1.0), lambda rollout: rollout.text.startswith("<think>"), width=2)
    plain, looping = reward([said("<think> a b c"), said("a b a b a b")])
    assert plain.value == pytest.approx(1.1)
    assert looping.value == pytest.approx(1.0 - 0.2 * repetition(["a", "b", "a", "b", "a", "b"], 2))
    assert repetition(["a", "b", "a", "b", "a", "b"], 2) == pytest.approx(3 / 5)
    assert repetition(["a"], 2) == 0.0
    assert looping.parts["task"] == 1.0


def test_a_source_s_scale_reaches_the_advantages(make):
    """A group's own deviation would undo it: then adaptive rewards and raw ones would teach the same."""
    router = Router({"math": TRUTH}, three.kind_of, {"math": "zscore"})
    group = grouped("math", [9.0, 3.0, 3.0, 1.0])
    adaptive, raw = (
        torch.cat(recipe(reward).advantage(group, reward(group))).tolist() for reward in (router, router.on_scales({}))
    )
    std = statistics.pstdev([9.0, 3.0, 3.0, 1.0])
    assert raw == pytest.approx([5.0, -1.0, -1.0, -3.0])
    assert adaptive == pytest.approx([a / std for a in raw], abs=1e-4)


def test_an_answer_stands_behind_closed_thinking():
    assert [answers(said(text)) for text in ("<think>a</think> b", "b", "<think>a", "<think>a</think> ")] == [
        True,
        True,
        False,
        False,
    ]


# ---- modes


def test_modes_are_system_messages():
    assert with_mode((pt.user("hi"),), "fast") == (pt.system(META["fast"]), pt.user("hi"))
    own = (pt.system("Be kind."), pt.user("hi"))
    assert with_mode(own, "slow") == (pt.system(f"{META['slow']}\nBe kind."), pt.user("hi"))


def test_one_lucky_guess_does_not_make_a_task_easy():
    answers = iter(["yes", "no", "no", "no", "yes", "yes", "no", "yes"])
    tasks = [task("lucky", "yes"), task("easy", "yes")]
    assert fast_enough(Canned(lambda ask: next(answers)), tasks, pt.grade.exact) == [False, True]


def test_the_fusion_set_has_both_modes_and_the_automatic_one_by_label():
    tasks = [task("a"), task("b"), task("c")]
    fast, slow = {"a": "1", "b": "2"}, {"a": "because 1", "b": "because 2"}
    found = fusion_set(tasks, [True, False, True], fast, slow)
    said = [(one.messages[0]["content"], one.messages[-1]["content"]) for one in found]
    assert said[:3] == [(META["auto"], "1"), (META["fast"], "1"), (META["slow"], "because 1")]
    assert said[3] == (META["auto"], "because 2")
    assert len(said) == 6, "nothing is known of c"


# ---- repetition


def test_loops_are_found_where_their_third_copy_ends():
    assert loop([1, 2, 3] * 3, widths=range(2, 5)) == (9, 3)
    assert loop([9, 9, *[1, 2] * 3, 7], widths=range(2, 5)) == (8, 2)
    assert loop([1, 2, 3, 1, 2, 3, 1, 2], widths=range(2, 5)) is None
    assert loop(list(range(40))) is None


def test_a_looping_reply_is_rolled_back_told_and_continued(make):
    """A random model whose head repeats what it reads goes round for ever; two repairs, then it may."""
    policy = make(max_new=60)
    with torch.no_grad():  # the same token again and again, whatever the prompt
        policy.head.out.weight.copy_(policy.body.get_input_embeddings().weight)
    asks = [pt.Ask((pt.user("hello"),), temperature=0.0), pt.Ask((pt.user("well"),), seed=5)]
    plain = policy.sample(asks)
    assert loop(plain[0].trace.reply, range(2, 9))
    mended = Repaired(policy, widths=range(2, 9))
    found = mended.sample(asks)
    assert found[0].content.count(NOTE.strip()) == 2
    assert mended.repairs >= 1
    assert len(policy.chat.encode(found[0].content)) <= 62
    assert len(found[0].logp) == 0, "what was put in has no log-probability: it cannot be trained on as it is"
    unbroken = Repaired(policy).sample([pt.Ask((pt.user("hello"),), temperature=1.0, max_new=6)])
    assert unbroken[0].content == policy.sample([pt.Ask((pt.user("hello"),), temperature=1.0, max_new=6)])[0].content


# ---- worlds


def test_gold_answers_of_the_worlds_earn_most():
    world = chains.Chains(3)
    draw = random.Random(0)
    for _ in range(50):
        problem = world.draw_problem(draw, held_out=True)
        for mode, slow in (("fast", False), ("slow", True)):
            one = pt.Rollout(world.task(problem, mode), said(world.reply(problem, slow)).turns)
            assert chains.is_right(one) == 1.0
            assert chains.answers_at_once(one) == (not slow)
        wrong = said("<think> </think> d10").turns
        assert chains.is_right(pt.Rollout(world.task(problem, "fast"), wrong)) == 0.0
        assert (
            chains.is_right(pt.Rollout(world.task(problem, "fast"), said(f"d{world.states(problem)[-1]}").turns)) == 0.0
        )
    states = world.states((3, "rr"))
    assert states == [world.tables["r"][0]] * 2
    short = [chains.WeakStudent(1).demonstration(random.Random(i)).messages[0]["content"].count("N") for i in range(20)]
    assert min(short) >= 4


def test_the_three_sources_grade_on_three_scales():
    world = three.Sources(2)
    tasks = world.tasks()
    code = tasks["code"][0]
    assert three.share_passed(pt.Rollout(code, said(" ".join(code.truth)).turns)) == 1.0
    assert three.share_passed(pt.Rollout(code, said(" ".join([*code.truth[:2], "w0", "w0"])).turns)) == 0.5
    liked = tasks["general"][0]
    best = liked.truth.index(max(liked.truth))
    assert three.liking(pt.Rollout(liked, said(f"w{best} w{best} w{best}").turns)) == pytest.approx(max(liked.truth))
    assert three.liking(pt.Rollout(liked, said("w0").turns)) == min(liked.truth)
    assert three.way_to_best(liked.truth, max(liked.truth)) == 1.0
    trained = {one.key for part in tasks.values() for one in part}
    assert not trained & {one.key for part in world.tasks(held_out=True).values() for one in part}
    thirds = three.EvenSource(tasks, 0)
    assert [three.kind_of(one) for one in thirds.take(7)] == ["math"] * 3 + ["code"] * 2 + ["general"] * 2
    again = three.EvenSource(tasks, 0)
    again.load_state_dict(thirds.state_dict())
    assert [one.key for one in again.take(6)] == [one.key for one in thirds.take(6)]


# ---- stages


def test_a_curriculum_draws_around_medium_and_remembers_its_place():
    tasks = [task(str(i)) for i in range(40)]
    source = ByComplexity(tasks, {str(i): i / 39 for i in range(40)}, seed=1)
    taken = [float(one.key) / 39 for one in source.take(200)]
    assert statistics.fmean(abs(c - 0.5) for c in taken) < 0.22  # evenly: 0.25
    assert len({one.key for one in source.take(20)}) == 20, "no task twice in an epoch"
    other = ByComplexity(tasks, {str(i): i / 39 for i in range(40)}, seed=1)
    other.load_state_dict(source.state_dict())
    assert [one.key for one in other.take(30)] == [one.key for one in source.take(30)]


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": f"What is {i}+1?", "answer": str(i + 1)}) for i in range(12)))
    return path


def test_sources_are_named_and_mistakes_in_them_explained(questions):
    from posttrain.cli.options import TaskOptions

    task = TaskOptions(str(questions))
    tasks, router = sources(task, f"chat={questions}=exact")
    assert len(tasks) == 24
    assert router.scaling == {"main": "zscore", "chat": "zscore"}
    for also, message in (
        ("chat", "`also=chat`: a source is written name=file=grade"),
        (f"chat={questions}=exat", "did you mean exact?"),
        ("chat=none.jsonl=exact", "there is no such file"),
    ):
        with pytest.raises(ValueError, match=message):
            sources(task, also)


def test_complexity_is_measured_by_right_answers_and_held_out_tasks_by_their_own_grade(questions, tmp_path):
    """Where most answers are right, a right one is little above the mean: z-scores do not say what is right."""
    router = Router({"main": TRUTH}, three.kind_of, {"main": "zscore"})
    assert values(router(grouped("main", [1.0, 1.0, 1.0, 0.0])))[0] == pytest.approx(1 / math.sqrt(3), abs=1e-5)
    assert values(router(grouped("main", [1.0] * 8)))[0] < 0.5
    plain = router.on_scales({})
    assert values(plain(grouped("main", [1.0] * 2))) == [1.0, 1.0]
    assert len(router.seen["main"]) == 12, "what another router grades is not remembered"
    command = ["run", "pangu-embedded", "--scale", "full", "--data", str(questions), "--held-out", f"own={questions}"]
    out = tmp_path / "run"
    size = ["--max-new", "6", "--steps", "1", "--tasks", "2", "--curriculum", "--samples", "2", "--quiet"]
    main([*command, *size, "--model", "tiny", "--out", str(out)])
    line = pt.read_metrics(out)[0]
    assert 0 <= line["held_out/own/reward"] <= 1
    assert {"part/format", "part/repetition", "part/task"} <= set(line), "every reply is paid its auxiliary rewards"


def test_a_dry_run_asks_nobody(questions, tmp_path, capsys):
    nobody = ["--teacher", "http://127.0.0.1:9/v1"]
    plain = ["--data", str(questions), "--max-new", "6", "--model", "tiny", "--out", str(tmp_path / "run"), "--dry-run"]
    for stage in (["reinforce", "--curriculum"], ["distil", *nobody], ["fuse", *nobody]):
        main(["run", "pangu-embedded", *plain, "--stage", *stage])
        assert "nothing was trained or written" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_a_server_s_loops_are_not_repaired():
    with pytest.raises(ValueError, match="`repair=True`: the replies of a server cannot be cut"):
        TeacherOptions("http://teacher:8000/v1", repair=True)


@pytest.mark.slow
def test_the_stages_follow_one_another_on_a_checkpoint(questions, tmp_path, capsys):
    """Distil from itself in two merged iterations, then fuse its modes; each writes a model that the next one loads."""
    plain = ["--data", str(questions), "--max-new", "24", "--steps", "4", "--tasks", "4", "--quiet"]
    first = tmp_path / "distilled"
    options = ["--stage", "distil", "--iterations", "2", "--model", "tiny", "--out", str(first), "--repair"]
    main(["run", "pangu-embedded", *plain, *options])
    names = {p.name for p in first.iterdir()}
    assert names == {"iteration-1", "iteration-2", "model", "answers.json", "distillation.json"}

    def weights(where):
        return torch.cat([p.flatten() for p in pt.text(str(where)).model.parameters()])

    before, after = weights(first / "iteration-1" / "model"), weights(first / "model")
    assert not torch.equal(before, after)
    main(["run", "pangu-embedded", *plain, *options, "--resume"])  # of what is done nothing is asked or learned again
    assert torch.equal(weights(first / "model"), after)
    second = tmp_path / "fused"
    main(["run", "pangu-embedded", *plain, "--stage", "fuse", "--model", str(first / "model"), "--out", str(second)])
    about = json.loads((second / "run.json").read_text())["run"]["settings"]
    assert about["tasks_labelled"] == 12
    assert len(pt.read_metrics(second)) == 4
    (tmp_path / "odd.jsonl").write_text(json.dumps({"prompt": "hi", "answer": "no such answer"}))
    plain[1] = str(tmp_path / "odd.jsonl")
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["run", "pangu-embedded", *plain, "--stage", "distil", "--model", "tiny", "--out", str(tmp_path / "none")])
    assert "not one of 1 tasks was answered right by the teacher" in capsys.readouterr().err


def test_claims_name_arms_that_are_there():
    for claim in lab.CLAIMS:
        assert set(claim.arms) <= set(lab.ARMS), claim.name
