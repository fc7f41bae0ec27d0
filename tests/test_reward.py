"""Rewards, graders and measures."""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import statistics
import threading
import time
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
import torch
from conftest import Bandit, digits, said, task, values
from hypothesis import given, settings
from hypothesis import strategies as st

import posttrain as pt
import posttrain.deadline
import posttrain.episode
import posttrain.reward
from posttrain.deadline import CallLimit, DeadlinePassed, deadline
from posttrain.grade import waiting
from posttrain.grade.own import own, reward_file
from posttrain.grade.verify import Checker
from posttrain.group import play_and_grade
from posttrain.reward import as_score, group_scores

length = pt.each(lambda rollout: float(len(rollout.text)))
has_a = pt.each(lambda rollout: float("a" in rollout.text))


def test_weighted_keeps_the_parts():
    both = pt.weighted(long=(1.0, length), a=(0.5, has_a))
    scores = both([said("aa"), said("b")])
    assert values(scores) == [2.5, 1.0]
    assert scores[0].parts == {"long": 2.0, "a": 1.0}


def test_reshaped_sees_the_group_and_keeps_the_raw_value():
    ranked = pt.reshaped(length, lambda v: [float(sorted(v).index(x)) for x in v])
    scores = ranked([said("aaa"), said("b"), said("cc")])
    assert values(scores) == [2.0, 0.0, 1.0]
    assert [score.parts["raw"] for score in scores] == [3.0, 1.0, 2.0]


def test_gated_and_first_that_applies():
    assert values(pt.gated(has_a, length)([said("aa"), said("bb")])) == [2.0, 0.0]
    picky = pt.each(lambda rollout: 1.0 if "a" in rollout.text else pt.Invalid("no a"))
    assert values(pt.first(picky, length)([said("a"), said("bbb")])) == [1.0, 3.0]
    left = pt.first(picky, picky)([said("b")])[0]
    assert left == pt.Invalid("no a")
    assert pt.weighted(x=(1.0, picky), y=(1.0, length))([said("b")]) == [pt.Invalid("no a")]
    assert values(pt.reshaped(picky, lambda v: [x * 2 for x in v])([said("a")])) == [2.0]


def test_cached_asks_once():
    calls = []
    reward = pt.cached(lambda rollout: calls.append(rollout.text) or 1.0)
    reward([said("x"), said("x"), said("y")])
    reward([said("x")])
    assert calls == ["x", "y"]


def test_soft_overlong_by_hand():
    """DAPO Eq. 13 with limit 20 and buffer 10: nothing to 10, -0.5 at 15, -1 at 20 and beyond."""
    reward = pt.overlong(pt.each(lambda rollout: 1.0), limit=20, buffer=10)
    found = reward([said("", decisions=n) for n in (5, 10, 15, 20, 25)])
    assert values(found) == [1.0, 1.0, 0.5, 0.0, 0.0]
    assert found[2].parts["overlong"] == -0.5


@pytest.mark.parametrize(
    ("returned", "error", "match"),
    [
        (lambda group: [1.0], ValueError, "returned 1 scores for a group of 2"),
        (lambda group: ["good", "bad"], TypeError, r"must be a number, a Score or Invalid\(reason\), not 'good'"),
        (lambda group: [None, 1.0], TypeError, "not None"),
        (lambda group: [math.nan, 1.0], ValueError, "a reward of nan"),
        (lambda group: [math.inf, 1.0], ValueError, "a reward of inf"),
        (lambda group: [group[0].task.truth["gold"], 1], TypeError, "not subscriptable"),
    ],
)
def test_broken_rewards_stop_the_run_and_show_the_sample(returned, error, match):
    with pytest.raises(error, match=match) as caught:
        group_scores(returned, [said("the reply"), said("x")])
    [note] = caught.value.__notes__
    assert "raised by the reward on task 't'" in note
    assert "the reply" in note


def test_numbers_of_all_kinds_are_scores():
    import numpy as np
    import torch

    for value in (1, True, 1.0, np.float32(1), torch.tensor(1.0)):
        assert as_score(value).value == 1.0


# ---- graders


@pytest.mark.parametrize(
    ("grade", "truth", "right", "wrong"),
    [
        (pt.grade.math, "72", ["72", r"so \boxed{72}", "48+24=72 #### 72", "72.0"], ["73", "", "#### 7"]),
        (pt.grade.math, r"\frac{1}{2}", ["0.5", r"$\frac{2}{4}$", r"\boxed{1/2}"], ["2", "none"]),
        (pt.grade.math, "She sold 24.\n#### 1,200", ["#### 1200", r"\boxed{1200}"], ["1,201"]),
        (pt.grade.exact, "Paris", ["paris", " Paris. ", "I think so. Answer: Paris"], ["Paris is it", "Rome"]),
        (pt.grade.contains, "Paris", ["It is Paris, yes"], ["Parisian", "Rome"]),
        (pt.grade.choice, "B", ["B", "(B)", "The Answer is B, because A is wrong.", r"\boxed{B}", "Option B. I am sure."], ["A", "A, not B: answer A", "x"]),
        (pt.grade.json, '{"a": [1, 2]}', ['{"a":[1,2]}', 'so\n```json\n{"a": [1, 2]}\n```'], ['{"a": [2, 1]}', "nope", "[" * 100_000]),
    ],
)  # fmt: skip
def test_graders_know_right_from_wrong(grade, truth, right, wrong):
    assert values(grade([said(text, truth) for text in right])) == [1.0] * len(right)
    assert values(grade([said(text, truth) for text in wrong])) == [0.0] * len(wrong)


CASES = [json.loads(line) for line in Path(__file__).with_name("graders.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("grade", pt.grade.GRADES)
def test_graders_on_what_models_write(grade):
    """Each line of graders.jsonl: a truth, a reply, and what it should earn."""
    cases = [case for case in CASES if case["grade"] == grade]
    found = values(pt.grade.GRADES[grade]([said(case["reply"], case["truth"]) for case in cases]))
    wrong = [case for case, value in zip(cases, found, strict=True) if value != case["want"]]
    assert len(cases) > 10
    assert not wrong


HOSTILE = {
    "spaces": "the answer" + " " * 20_000 + "x",
    "marks": "#### " * 4_000 + "x",
    "boxes": r"\boxed{" * 2_000 + "1" + "}" * 2_000,
    "announcements": "answer is " * 2_000,
    "digits": "1" * 20_000,
    "numbers": "7 " * 10_000,
    "sum": "1+" * 10_000 + "1",
    "brackets": "[" * 20_000,
}


@pytest.mark.parametrize("reply", HOSTILE.values(), ids=HOSTILE)
def test_no_reply_keeps_a_grader_busy(reply):
    """CPU seconds of this process, for all graders together; a policy finds whatever stops its trainer."""
    start = time.process_time()
    for grade, truth in (("math", "42"), ("exact", "42"), ("choice", "B"), ("contains", "42"), ("json", '{"a": 1}')):
        assert values(pt.grade.GRADES[grade]([said(reply, truth)])) == [0.0]
    assert time.process_time() - start < 4


def test_answers_that_a_grader_cannot_read_are_named():
    with pytest.raises(ValueError, match=r"task 't': `grade=math` cannot parse its answer"):
        pt.grade.math([said("1", "")])
    with pytest.raises(ValueError, match="needs one letter"):
        pt.grade.choice([said("A", "Paris")])
    with pytest.raises(ValueError, match="cannot read its answer"):
        pt.grade.json([said("{}", "{oops")])
    for name in ("math", "exact", "contains"):
        for truth in (None, {"ground_truth": "12"}):
            with pytest.raises(ValueError, match=f"`grade={name}` compares with text or a number, not with"):
                getattr(pt.grade, name)([said("12", truth)])


@pytest.fixture
def checker(monkeypatch):
    monkeypatch.setattr("posttrain.grade.verify.CPU_S", 1)
    checker = Checker()
    yield checker
    checker.stop()


def test_a_grader_that_computes_for_ever_is_killed_and_the_next_question_answered(checker):
    assert checker.check("72", "72") == "right"
    first = checker.process
    assert checker.check("1", r"\boxed{9^{9^{9^{9}}}}") == "timeout"
    assert first.returncode == -signal.SIGXCPU
    assert checker.check("3", "3") == "right"
    assert checker.process is not first


def test_a_grader_that_sleeps_for_ever_is_killed_and_the_next_question_answered(checker, monkeypatch):
    assert checker.check("72", "72") == "right"
    first = checker.process
    os.kill(first.pid, signal.SIGSTOP)
    with monkeypatch.context() as soon:
        soon.setattr("posttrain.grade.verify.STUCK_S", 0.5)
        assert checker.check("1", "2") == "timeout"
    assert first.returncode == -signal.SIGKILL
    assert checker.check("3", "3") == "right"
    assert checker.process is not first


def test_a_grader_that_waits_for_a_core_is_given_the_time(checker):
    assert checker.check("72", "72") == "right"
    os.kill(checker.process.pid, signal.SIGSTOP)  # as good as a machine with more to do
    threading.Timer(2.5, os.kill, (checker.process.pid, signal.SIGCONT)).start()
    assert checker.check("1/2", "0.5") == "right"


def test_every_question_has_cpu_seconds_of_its_own(checker):
    """Together these take more than one, which is the limit."""
    assert {checker.check(f"x + {i + 250}", "x + " + "1+" * 250 + f"{i}") for i in range(12)} == {"right"}
    assert checker.check("1", "1") == "right"


def test_own_rewards_say_what_they_look_at(tmp_path):
    assert values(own(lambda reply, answer: float(reply == answer))([said("7", "7"), said("8", "7")])) == [1.0, 0.0]
    assert values(own(lambda rollout: digits(rollout))([said("7a")])) == [0.5]
    assert values(own(lambda group: [pt.Score(float(len(group)))] * len(group))([said("7"), said("8")])) == [2.0, 2.0]
    file = tmp_path / "rewards.py"
    file.write_text("def brevity(reply):\n    return 1 / (1 + len(reply))\n")
    assert values(reward_file(f"{file}:brevity")([said("")])) == [1.0]
    with pytest.raises(ValueError, match="has no function brevty; did you mean brevity"):
        reward_file(f"{file}:brevty")
    with pytest.raises(ValueError, match="there is no file"):
        reward_file("nowhere.py:f")


def test_own_rewards_get_columns_of_the_data_by_name(tmp_path):
    (tmp_path / "d.jsonl").write_text('{"prompt": "2 m + 1 m?", "answer": "3", "unit": "m", "difficulty": 2}\n')
    [read] = pt.read(tmp_path / "d.jsonl")
    group = [replace(said(text), task=read) for text in ("3 m", "3")]
    assert values(own(lambda reply, unit, difficulty=1, weight=0.5: (unit in reply) * difficulty * weight)(group)) == [
        1.0,
        0.0,
    ]
    assert values(own(lambda reply, **columns: float(columns["unit"] in reply))(group)) == [1.0, 0.0]
    with pytest.raises(
        ValueError, match=r"the reward \S+ asks for `units`, which is neither .* \(there are 'prompt', "
    ):
        own(lambda reply, units: 1.0)(group)


def test_rewards_of_trl_and_rewards_that_wait_work_as_they_are(tmp_path):
    (tmp_path / "d.jsonl").write_text('{"prompt": "q", "answer": "3", "unit": "m"}\n')
    [read] = pt.read(tmp_path / "d.jsonl")
    group = [replace(said(text), task=read) for text in ("3 m", "3")]

    def trl(prompts, completions, unit, **kwargs):
        assert prompts == ["q", "q"]
        return [None if text == "3" else float(one in text) for text, one in zip(completions, unit, strict=True)]

    assert [type(one) for one in own(trl)(group)] == [pt.Score, pt.Invalid]
    waiting, most = 0, 0

    async def asked(reply, answer):
        nonlocal waiting, most
        waiting += 1
        most = max(most, waiting)
        await asyncio.sleep(0.01)
        waiting -= 1
        return float(reply == answer)

    assert values(own(asked)(group)) == [0.0, 1.0]
    assert most == 2, "side by side"


def sleeps(reply):
    time.sleep(60.0 if reply == "slow" else 0.0)
    return 1.0


def computes(reply):
    while reply == "slow":
        try:
            time.sleep(0.01)
        except Exception:  # as rewards of users do: no deadline is lost in it
            return 0.0
    return 1.0


async def waits(reply):
    await asyncio.sleep(60.0 if reply == "slow" else 0.0)
    return 1.0


@pytest.mark.parametrize("function", [sleeps, computes, waits])
def test_a_reward_that_hangs_leaves_its_sample_out_and_is_named(function):
    before = signal.getsignal(signal.SIGALRM)
    first, second = own(function, 0.2)([said("slow"), said("quick")])
    assert first == pt.Invalid(f"the reward {function.__name__} took more than 0.2 s")
    assert second.value == 1.0
    assert signal.getsignal(signal.SIGALRM) == before


def test_a_reward_of_a_group_that_hangs_leaves_the_group_out():
    def whole(group):
        time.sleep(60.0)

    def trl(completions, **columns):
        time.sleep(60.0)

    for function in (whole, trl):
        assert [type(one) for one in own(function, 0.2)([said(""), said("")])] == [pt.Invalid, pt.Invalid]


def test_a_timeout_of_the_reward_s_own_is_its_error_and_none_is_no_limit():
    async def times_out(reply):
        raise TimeoutError("socket")

    with pytest.raises(TimeoutError, match="socket"):
        own(times_out)([said("")])
    assert values(own(sleeps, math.inf)([said("quick")])) == [1.0]


def test_a_deadline_within_the_math_grader_leaves_the_next_question_its_own_answer():
    checker = Checker()
    assert checker.check("7", "7") == "right"
    process = checker.process
    os.kill(process.pid, signal.SIGSTOP)  # it does not answer in time
    with pytest.raises(DeadlinePassed), deadline(CallLimit(0.3, "the reward")):
        checker.check("8", "8")
    assert checker.check("7", "8") == "wrong"
    checker.stop()


def test_what_hangs_where_no_signal_reaches_is_said(capfd):
    thread = threading.Thread(target=own(lambda reply: time.sleep(0.6) or 1.0, 0.2), args=([said("")],))
    thread.start()
    thread.join()
    assert "took more than 0.2 s and has not ended" in capfd.readouterr().err


def test_a_reward_file_is_imported_as_python_imports_one(tmp_path):
    (tmp_path / "beside_it.py").write_text("BONUS = 2.0\n")
    file = tmp_path / "math.py"  # as a module of Python's own
    file.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom beside_it import BONUS\n"
        "@dataclass\nclass Mark:\n    value: float\ndef f(reply):\n    return Mark(BONUS).value\n"
    )
    assert values(reward_file(f"{file}:f")([said("")])) == [2.0]
    import math

    assert math.pi > 3
    for text, line, message in (
        ("x = 1\ny = 1 / 0\n", 2, "ZeroDivisionError"),
        ("x = 1\n\ndef f(:\n", 3, "SyntaxError"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=rf"`grade=.*math\.py.*, line {line}: {message}"):
            reward_file(f"{file}:f")


def test_an_evaluation_leaves_out_what_could_not_be_graded():
    from posttrain.cli.measures import evaluation_values
    from posttrain.evaluation import Evaluation

    bad = pt.Invalid("timeout")
    found = Evaluation(
        [[said("7"), said("8")], [said("7"), said("7")]], [[pt.Score(1.0), bad], [pt.Score(1.0), pt.Score(0.0)]]
    )
    greedy = Evaluation([[said("8")], [said("8")]], [[pt.Score(0.0)], [pt.Score(0.0)]])
    values = evaluation_values(found, [1, 2], greedy)
    assert values["reward"][0] == 0.75
    assert values["pass@2"][0] == 1.0
    assert values["potential@2"] == 1.0
    assert values["invalid"] == 1
    down = pt.each(lambda rollout: pt.Invalid("down"))
    with pytest.raises(ValueError, match="no sample of 1 tasks could be graded; the first because: down"):
        pt.evaluate({"policy": Bandit([0.0])}, [task()], down)


def test_a_reward_between_counts_as_right_and_is_said_to(capsys):
    from posttrain.cli.measures import evaluation_table, evaluation_values
    from posttrain.evaluation import Evaluation

    found = Evaluation([[said("7"), said("8")]], [[pt.Score(0.5), pt.Score(0.0)]])
    values = evaluation_values(found, [1])
    assert values["pass@1"] == [0.5], "a single task has no interval"
    evaluation_table(values, "model on data")
    printed = capsys.readouterr().out
    assert "from 0.5 on a reply counts as right" in printed
    assert "nan" not in printed


def test_the_table_of_confusions_is_what_its_command_writes(tmp_path, capsys):
    from posttrain.cli import main

    root = Path(__file__).parent.parent
    page = tmp_path / "rewards.md"
    page.write_text((root / "docs" / "rewards.md").read_text())
    plain = f"{root / 'benchmarks' / 'plain_graders.py'}:math_verify"
    main(["grade", "--data", str(root / "docs" / "confusions.jsonl"), "--against", plain, "--write", str(page)])
    assert page.read_text() == (root / "docs" / "rewards.md").read_text()
    page.write_text("no table here")
    with pytest.raises(SystemExit):
        main(["grade", "--data", str(root / "docs" / "confusions.jsonl"), "--against", plain, "--write", str(page)])
    assert "between which the table goes" in capsys.readouterr().err


# ---- measures


@given(n=st.integers(1, 8), data=st.data())
@settings(max_examples=40, deadline=None)
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(n, data):
    right, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    marks = [1] * right + [0] * (n - right)
    share = statistics.fmean(any(subset) for subset in combinations(marks, k))
    assert pt.measure.pass_at_k(right, n, k) == pytest.approx(share)


def test_measures_by_hand():
    m = pt.measure
    assert m.mean_pass_at_k([[1, 0], [0, 0]], 1) == 0.25
    assert m.coverage([[1, 0], [0, 0]]) == 0.5
    with pytest.raises(ValueError, match=r"pass@3 cannot be estimated from 2 samples"):
        m.pass_at_k(1, 2, 3)
    answers, marks = [["7", "7", "8"], ["1", None, "2"]], [[1, 1, 0], [0, 0, 1]]
    assert m.majority_at_k(answers, marks, 3) == pytest.approx((1 + 0.5) / 2)  # the second task's vote is a tie
    assert m.majority_at_k([[None, None]], [[0, 0]], 2) == 0.0
    # greedy fails tasks 1 and 2; of their samples, pass@2 is 1 and 0
    assert m.potential_at_k([1, 0, 0], [[1, 1], [0, 1], [0, 0]], 2) == 0.5
    assert math.isnan(m.potential_at_k([1], [[1]], 1))


def test_the_bootstrap_interval_covers_as_it_should():
    import numpy as np

    generator = np.random.default_rng(0)
    inside = 0
    for seed in range(100):
        low, high = pt.measure.interval(generator.normal(3, 1, 40), draws=400, seed=seed)
        inside += low <= 3 <= high
    assert 88 <= inside <= 99
    assert math.isnan(pt.measure.interval([1.0])[0])


# ---- what hangs, and what a reward may not touch


class Constant:
    """Says one word."""

    def __init__(self, word):
        self.word = word

    def sample(self, asks):
        return [pt.Reply(self.word, torch.full((2,), -1.0), None) for _ in asks]


def test_deadlines_stand_within_one_another(capfd, monkeypatch):
    monkeypatch.setattr(posttrain.deadline, "NAMED_S", 0.1)
    outer, inner = CallLimit(0.6, "the outer"), CallLimit(30.0, "the inner")
    with pytest.raises(DeadlinePassed) as passed, deadline(outer), deadline(inner):
        time.sleep(60.0)
    assert passed.value.limit is outer
    said = capfd.readouterr().err
    assert said.count("the inner has been busy for 0.1 s, and is ended after 30 s") == 1
    assert "the outer" not in said  # the innermost says most


def test_a_reward_that_hangs_is_named_with_its_task(capfd, monkeypatch):
    monkeypatch.setattr(posttrain.deadline, "NAMED_S", 0.1)
    monkeypatch.setattr(posttrain.reward, "GRADING", CallLimit(math.inf, "the reward"))
    assert values(group_scores(pt.each(lambda rollout: time.sleep(0.2) or 1.0), [said("")])) == [1.0]
    assert "the reward of task 't' has been busy for 0.1 s" in capfd.readouterr().err


def test_an_environment_that_hangs_fails_its_episode_and_no_other(capfd, monkeypatch):
    monkeypatch.setattr(posttrain.deadline, "NAMED_S", 0.1)
    monkeypatch.setattr(posttrain.episode, "DEADLINE_S", 0.3)

    def slow_tool(task):
        reply = yield from pt.ask(task.prompt)
        time.sleep(60.0 if task.truth == "slow" else 0.0)
        return reply.content

    tasks = [pt.Task(name, (pt.user("?"),), name) for name in ("slow", "quick")]
    first, second = pt.play(tasks, slow_tool, {"policy": Constant("yes")})
    assert first.facts == pt.Failure("EpisodeFailed: the environment slow_tool took more than 0.3 s")
    assert second.facts == "yes"
    assert "the environment slow_tool has been busy for 0.1 s, and is ended after 0.3 s" in capfd.readouterr().err


def sorts_the_answer(rollout):
    rollout.task.truth.sort()


def drops_a_column(rollout):
    rollout.task.columns.pop("level")


def drops_a_turn(rollout):
    rollout.turns.clear()


def writes_into_a_prompt(rollout):
    rollout.turns[0].ask.messages[0]["content"] = "another"


def writes_into_the_logprobs(rollout):
    rollout.turns[0].reply.logp.zero_()


@pytest.mark.parametrize(
    ("alter", "what"),
    [
        (sorts_the_answer, "the answer"),
        (drops_a_column, "the columns of the data"),
        (drops_a_turn, "the turns of an episode, the messages of an episode, a reply"),
        (writes_into_a_prompt, "the prompt, the messages of an episode"),
        (writes_into_the_logprobs, "a reply"),
    ],
)
def test_a_reward_that_alters_what_is_learned_is_refused(alter, what):
    task = pt.Task("t", (pt.user("?"),), [2, 1], {"level": 3})

    def reward(rollout):
        alter(rollout)
        return 1.0

    with pytest.raises(ValueError, match=f"task 't': its reward altered {what}, which would be trained on"):
        play_and_grade([task], pt.single_turn, pt.each(reward), {"policy": Constant("yes")}, 1, 0)
    graded, _ = play_and_grade([task], pt.single_turn, pt.each(lambda one: 1.0), {"policy": Constant("yes")}, 1, 0)
    assert graded[0].scores[0].value == 1.0


class SlowServer:
    """Answers each request half a second later, and counts how many it has at once."""

    def __init__(self):
        self.open = self.most = 0

    async def handle(self, reader, writer):
        self.open += 1
        self.most = max(self.most, self.open)
        await reader.readline()
        await asyncio.sleep(0.5)
        writer.write(b"1\n")
        await writer.drain()
        writer.close()
        self.open -= 1


@pytest.fixture
def slow_server():
    server = SlowServer()
    listening = waiting.result_of(asyncio.start_server(server.handle, "127.0.0.1", 0, backlog=256))
    server.port = listening.sockets[0].getsockname()[1]
    yield server
    listening.close()


@pytest.mark.parametrize("wrap", [lambda reward: reward, lambda reward: pt.weighted(judge=(1.0, reward))])
def test_rewards_that_wait_are_asked_for_all_groups_at_once(slow_server, wrap):
    async def judge(reply):
        reader, writer = await asyncio.open_connection("127.0.0.1", slow_server.port)
        writer.write(b"?\n")
        answer = await reader.readline()
        writer.close()
        return float(answer)

    tasks = [pt.Task(str(i), (pt.user("?"),), None) for i in range(8)]
    graded, _ = play_and_grade(tasks, pt.single_turn, wrap(own(judge)), {"policy": Constant("yes")}, 8, 0)
    assert [score.value for one in graded for score in one.scores] == [1.0] * 64
    assert slow_server.most == 64


def test_a_reward_that_waits_and_fails_stops_the_step_with_its_sample():
    async def judge(reply):
        raise OSError("no judge")

    with pytest.raises(OSError, match="no judge") as raised:
        play_and_grade([task()], pt.single_turn, own(judge), {"policy": Constant("yes")}, 2, 0)
    assert "raised by the reward on task" in raised.value.__notes__[0]
