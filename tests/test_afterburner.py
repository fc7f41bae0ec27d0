"""Code that is rewritten by its measured performance: katas, measuring, the loop, the reward, problems of one's own."""

from __future__ import annotations

import json
import math
import random
import statistics
import time
import warnings
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from conftest import said as replied
from hypothesis import given, settings
from hypothesis import strategies as st

import posttrain as pt
from posttrain import tiny
from posttrain.cli import main
from posttrain.core import EpisodeFailed, Failure, Invalid, Score
from posttrain.lab.world.kata import Kata, Katas, performance_words, python, reply
from posttrain.lab.world.kata_programs import BOUNDS, EDGES, FAMILIES, HOLDS
from posttrain.lab.world.words import Size, base
from posttrain.records import Place
from posttrain.run.memory import stateful_parts
from posttrain.sandbox import CallResults, Outcome, Program, ReturnedValue, sandbox
from posttrain.step import train_in_memory
from posttrain.systems import afterburner
from posttrain.systems.afterburner import evaluation, measurement, stages, venus
from posttrain.systems.afterburner.iterate import Best, Rewrite, course, courses, curve, is_improvement, iterate
from posttrain.systems.afterburner.lab import (
    InWords,
    demonstrations,
    held_out_tasks,
    pairs,
    passed_solutions,
    rewritings,
)
from posttrain.systems.afterburner.measurement import CAPS, Bench, Performance, beyond, resampled_mean
from posttrain.systems.afterburner.reward import (
    Weights,
    efficiency,
    is_well_formed,
    recipe,
    rewriting_reward,
    score_of,
)
from posttrain.systems.afterburner.venus import InMarkdown, problem, problems

PASS, FAIL = Performance(True, 2.0, 100.0), Performance(False)
KATA = Kata("pairs", "small", "closed")
SLOW, FAST = "loop lazy closed whole", "march lazy closed whole"


@pytest.fixture(scope="module")
def box():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where nothing isolates
        made = sandbox()
    with made:
        yield made


class Shelf:
    """A bench that knows what it is told of each code, and counts the batches."""

    def __init__(self, known):
        self.known, self.batches = known, []

    def __call__(self, trials):
        self.batches.append([code for _, code in trials])
        return [measurement.NO_CODE if code is None else self.known[code] for _, code in trials]


class Plain:
    """A dialogue in which a reply is code, and `-` is none."""

    def prompt(self, task, best):
        told = best.performance
        return (pt.user(f"{best.code} {told.passed} {told.seconds}"),)

    def code(self, text):
        return None if text == "-" else text


def rewrite(original=None, metric="time"):
    return pt.Task("t", (pt.user("?"),), Rewrite(KATA, metric, original))


def answered(task, texts: Sequence[str]) -> list[pt.Rollout]:
    return [pt.Rollout(task, replied(text).turns) for text in texts]


# ---- katas


@pytest.mark.parametrize("family", FAMILIES)
def test_every_way_comes_to_the_same_and_only_the_choices_that_count_change_it(family):
    for size in ("small", "medium", "large"):
        kata = Kata(family, size, "open")
        arguments = kata.calls(f"{next(iter(FAMILIES[family].ways))} list open whole").arguments[0]
        found: dict[tuple[str, str], set] = {}
        for way in FAMILIES[family].ways:
            if way in ("loop", "trial", "recurse") and size != "small":
                continue  # the slow ones once
            for hold in HOLDS:
                for edge in EDGES:
                    for bound in BOUNDS:
                        names: dict = {}
                        exec(python(family, f"{way} {hold} {edge} {bound}"), names)
                        found.setdefault((edge, bound), set()).add(names["solve"](*arguments))
        assert all(len(values) == 1 for values in found.values())
        assert len(set.union(*found.values())) == 4
        for edge in EDGES:
            [value] = found[edge, "whole"]
            assert kata.verdict([ReturnedValue(value)]) == edge
            [value] = found[edge, "short"]
            assert kata.verdict([ReturnedValue(value)]) == ""


@pytest.mark.parametrize("family", FAMILIES)
def test_the_slowest_way_takes_three_times_as_long_as_the_fastest(family):
    arguments = Kata(family, "small", "open").calls(f"{next(iter(FAMILIES[family].ways))} lazy open whole").arguments[0]
    seconds = []
    for way in FAMILIES[family].ways:
        names: dict = {}
        exec(python(family, f"{way} lazy open whole"), names)
        clocks = [time.thread_time()]
        for _ in range(4):
            names["solve"](*arguments)
            clocks.append(time.thread_time())
        seconds.append(min(late - early for early, late in pairwise(clocks)))
    assert max(seconds) >= 3 * min(seconds)
    assert max(seconds) < 0.02


def test_what_is_no_template_s_words_is_no_code():
    for words in ("", "loop lazy open", "march lazy open whole whole", "sieve lazy open whole", "loop open lazy whole"):
        assert python("pairs", words) is None
        assert KATA.calls(words) is None


@given(st.text(max_size=30))
@settings(max_examples=50, deadline=None)
def test_only_words_of_templates_become_code(text):
    code = InWords(Katas()).code(text)
    assert code is None or code in text


def test_words_of_a_performance():
    assert performance_words(False, 1.0, 1.0) == "failed tx mx"
    assert performance_words(True, 5e-6, 0.5) == "passed t0 m0"
    assert performance_words(True, 1.1e-5, 3.5) == "passed t1 m2"
    assert performance_words(True, 90.0, 1e9) == "passed t7 m7"


def test_held_out_sizes_are_never_demonstrated_nor_trained():
    world = Katas(3)
    shut = {(kata.family, kata.size) for kata in world.katas(held_out=True)}
    assert len(shut) == len(FAMILIES)
    assert not shut & {(kata.family, kata.size) for kata in world.katas()}
    draw = random.Random(0)
    known = set(world.vocabulary)
    for _ in range(300):
        prompt, answer = (message["content"] for message in world.demonstration(draw).messages)
        assert tuple(prompt.split()[:2]) not in shut
        assert set(prompt.split()) | set(answer.split()) <= known
        assert len(answer.split()) <= world.longest - 1
    for task in rewritings(world):
        assert (task.truth.exercise.family, task.truth.exercise.size) not in shut
    assert {task.truth.original for task in held_out_tasks(world)} == {None}


# ---- measuring


def test_code_is_really_executed_and_slow_is_told_from_fast(box):
    bench = Bench(box, 10.0, repeats=1, laps=3, at_once=2)
    slow, fast, wrong, mistaken, no_words, none = bench(
        [(KATA, code) for code in (SLOW, FAST, "march lazy open whole", "march lazy closed short", "x", None)]
    )
    assert slow.passed
    assert fast.passed
    assert slow.seconds > 3 * fast.seconds  # measured: 15 times
    assert 0 < fast.seconds < 0.1  # seconds, not milliseconds
    assert not wrong.passed
    assert not mistaken.passed
    assert no_words.why == "it cannot be executed"
    assert none.why == "the reply holds no code"
    listed = bench([(KATA, "loop list closed whole")])[0]
    assert listed.kib > 10 * slow.kib  # the list of all pairs


def test_within_a_run_the_same_code_always_earns_the_same(box):
    bench = Bench(box, 10.0, repeats=1)
    once = bench([(KATA, FAST)])
    known = dict(bench.known)
    assert bench([(KATA, FAST), (KATA, FAST)]) == once * 2
    assert bench.known == known
    [other] = bench([(Kata("pairs", "small", "open"), FAST)])  # other tests of the same execution
    assert bench.known == known
    assert not other.passed
    resumed = Bench(box)
    resumed.load_state_dict(json.loads(json.dumps(bench.state_dict())))
    assert resumed([(KATA, FAST)]) == once
    assert list(stateful_parts(recipe(bench, Plain())).values()) == [bench]  # checkpoints hold it, once


def test_endless_code_has_failed(box):
    exercise = case(runner="==Code Submission==")
    [found] = Bench(box, 0.5, repeats=1)([(exercise, "while True: pass")])
    assert not found.passed
    assert "timeout" in found.why


def test_no_limit_of_cpu_seconds_blunts_the_clock(box):
    """With RLIMIT_CPU set, process_time counts in ticks of 4 ms (trap h)."""
    source = "import resource; print(resource.getrlimit(resource.RLIMIT_CPU))"
    assert box.run(Program(source)).stdout.split() == ["(-1,", "-1)"]
    fine = [Bench(box, 5.0, repeats=1)([(KATA, code)])[0].seconds for code in (FAST, "search lazy closed whole")]
    ticks = [seconds / 4e-3 for seconds in fine]
    assert all(abs(count - round(count)) > 1e-9 for count in ticks)


def test_a_sandbox_that_fails_is_not_the_code_s_fault(monkeypatch, box):
    def broken(*arguments):
        raise RuntimeError("the sandbox's process has died twice")

    monkeypatch.setattr("posttrain.systems.afterburner.measurement.run_calls", broken)
    bench = Bench(box)
    [found] = bench([(KATA, FAST)])
    assert isinstance(found, Invalid)
    assert "died twice" in found.reason
    assert not bench.known
    scores = rewriting_reward(bench, Plain())(answered(rewrite(SLOW), [FAST, FAST]))
    assert all(isinstance(score, Invalid) for score in scores)
    with pytest.raises(EpisodeFailed, match="died twice"):
        course(bench, Rewrite(KATA, "time"), [FAST])


def test_the_least_of_several_laps_counts_and_they_must_agree(monkeypatch, box):
    def called(box, calls, limits, at_once):
        [one] = calls
        assert one.repeats == 2
        assert one.arguments == KATA.calls(FAST).arguments * 3
        right = ReturnedValue(values[0])
        outcome = Outcome("finished", 0, "", "", 1.0, 1.0, 1)
        return [CallResults(outcome, (right, ReturnedValue(values[1]), right), (0.3, 0.1, 0.2), (5.0, 7.0, 6.0), None)]

    names: dict = {}
    exec(python("pairs", FAST), names)
    right = names["solve"](*KATA.calls(FAST).arguments[0])
    monkeypatch.setattr("posttrain.systems.afterburner.measurement.run_calls", called)
    values = [right, right]
    assert Bench(box, repeats=2, laps=3)([(KATA, FAST)]) == [Performance(True, 0.1, 7.0)]
    values = [right, right + 1]
    [found] = Bench(box, repeats=2, laps=3)([(KATA, FAST)])
    assert found.why == "the same call came out differently"


def test_the_integral_is_seconds_times_peak_however_often_one_looks():
    assert Performance(True, 2.0, 100.0).of("integral") == 200.0  # trap c
    assert CAPS["integral"] == CAPS["time"] * CAPS["memory"]


def test_beyond_is_the_share_of_people_who_are_no_better():
    people = [1.0, 2.0, 3.0, 4.0]
    assert [beyond(own, people) for own in (0.5, 1.0, 1.5, 4.0, 9.0)] == [1.0, 1.0, 0.75, 0.25, 0.0]
    assert math.isnan(beyond(1.0, []))


def test_the_paper_s_interval():
    assert resampled_mean([0.5] * 16) == (0.5, 0.5, 0.5)
    runs = [i / 16 for i in range(16)]
    mean, low, high = resampled_mean(runs)
    assert low < mean < high
    assert mean == pytest.approx(sum(runs) / 16, abs=0.05)
    # means of 4 have a deviation of about 0.288 / 2; of 128 of them a t interval has half a width of 1.979 * 0.144 / 11.3
    assert high - mean == pytest.approx(0.0252, rel=0.2)
    with pytest.raises(ValueError, match="no measurement"):
        resampled_mean([])
    assert all(map(math.isnan, resampled_mean([math.nan] * 16)))  # BEYOND without people


# ---- the reward


@pytest.mark.parametrize(
    ("before", "after", "wanted"),
    [(FAIL, PASS, 0.5), (PASS, PASS, 0.25), (FAIL, FAIL, -0.25), (PASS, FAIL, -0.5)],
)
def test_correctness_in_four_cases(before, after, wanted):
    bare, whole = "x", "<thinking>a</thinking><solution>b</solution>"
    assert score_of(bare, before, after, "time").value == pytest.approx(wanted)
    assert score_of(whole, before, after, "time").value == pytest.approx(wanted + 0.2)


def test_the_gain_by_hand():
    half, double = Performance(True, 1.0, 100.0), Performance(True, 4.0, 50.0)
    # 0.5 * (0.5 + 0.5 tanh 0.5), and the same of -1
    assert score_of("", PASS, half, "time").value == pytest.approx(0.25 + 0.25 * math.tanh(0.5))
    assert score_of("", PASS, double, "time").value == pytest.approx(0.25 - 0.25 * math.tanh(1.0))
    assert score_of("", PASS, double, "memory").value == pytest.approx(0.25 + 0.25 * math.tanh(0.5))
    assert score_of("", PASS, double, "integral").value == pytest.approx(0.25)  # 200 to 200
    best = score_of("<thinking></thinking><solution></solution>", FAIL, PASS, "time", Weights(repaired=True))
    assert best.value == pytest.approx(0.5 + 0.25 * math.tanh((90 - 2) / 90) + 0.2)
    assert best.value < 0.9


@given(st.floats(0, 200), st.floats(0, 200))
def test_the_gain_is_bounded_and_grows_with_speed(before, after):
    found = efficiency(before, after, 90.0)
    assert abs(found) <= math.tanh(1)
    assert found >= efficiency(before, after + 1, 90.0)


def test_slow_code_has_a_gradient_beyond_ninety_milliseconds():
    """Trap a: with milliseconds under a cap of 90 both of these would be clipped to the same."""
    assert efficiency(0.5, 0.25, CAPS["time"]) == pytest.approx(math.tanh(0.5))
    assert efficiency(500.0, 250.0, CAPS["time"]) == 0.0


def test_a_repair_earns_nothing_for_being_faster_than_a_failure():
    """Trap f."""
    assert score_of("", FAIL, PASS, "time").parts["efficiency"] == 0.0
    assert score_of("", FAIL, PASS, "time", Weights(repaired=True)).parts["efficiency"] > 0.7
    assert score_of("", PASS, FAIL, "time", Weights(repaired=True)).parts["efficiency"] == 0.0


def test_small_gains_are_noise():
    """Trap g."""
    assert efficiency(1.0, 0.91, 90.0, zone=0.1) == 0.0
    assert efficiency(1.0, 1.09, 90.0, zone=0.1) == 0.0
    assert efficiency(1.0, 0.85, 90.0, zone=0.1) == pytest.approx(math.tanh(0.15))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("<thinking> a </thinking> <solution> b </solution>", True),
        ("<thinking>\n</thinking>\n<solution>\n```python\nx\n```\n</solution>\n", True),
        ("<solution> b </solution>", False),
        ("<solution> b </solution> <thinking> a </thinking>", False),
        ("well: <thinking> a </thinking> <solution> b </solution>", False),
        ("<thinking> a </thinking> <solution> b </solution> that is it", False),
        ("<thinking> a </thinking> <solution> b", False),
        ("<thinking> a </thinking> <thinking> a </thinking> <solution> b </solution>", False),
        ("<thinking> a </thinking> <solution> b </solution> <solution> c </solution>", False),
    ],
)
def test_the_form_of_a_reply(text, wanted):
    assert is_well_formed(text) is wanted


def test_a_reply_without_code_has_failed_and_the_original_is_measured_in_the_same_batch():
    """Trap d: nothing that was recorded elsewhere is compared with."""
    bench = Shelf({"old": PASS, "new": Performance(True, 1.0, 100.0)})
    none, gained = rewriting_reward(bench, Plain())(answered(rewrite("old"), ["-", "new"]))
    assert bench.batches == [["old", None, "new"]]
    assert none.value == -0.5
    assert none.parts["format"] == 0.0
    assert gained.value == pytest.approx(0.25 + 0.25 * math.tanh(0.5))
    [first] = rewriting_reward(bench, Plain())(answered(rewrite(None), ["new"]))
    assert first.parts["correctness"] == 1.0  # from nothing, as from what fails


# ---- the loop


def test_what_is_accepted():
    better, worse = Performance(True, 1.0, 300.0), Performance(True, 3.0, 1.0)
    assert is_improvement(FAIL, FAIL, "time")  # anything takes the place of what fails
    assert is_improvement(FAIL, PASS, "time")
    assert not is_improvement(PASS, FAIL, "time")
    assert is_improvement(PASS, better, "time")
    assert not is_improvement(PASS, better, "memory")
    assert not is_improvement(PASS, PASS, "time")  # strictly
    assert not is_improvement(PASS, better, "integral")  # 300 is not less than 200: trap b
    assert is_improvement(PASS, worse, "integral")


def test_the_loop_by_hand():
    bench = Shelf({"a": FAIL, "b": PASS, "c": Performance(True, 3.0, 1.0), "d": Performance(True, 1.0, 1.0)})
    episode = iterate(5, bench, Plain(), temperature=0.0)(rewrite())
    [ask] = next(episode)
    assert ask.temperature == 0.0
    prompts = [ask.messages[0]["content"]]
    facts = None
    for text in ("a", "b", "-", "c", "d"):
        try:
            [ask] = episode.send([replied(text).turns[0].reply])
            prompts.append(ask.messages[0]["content"])
        except StopIteration as over:
            facts = over.value
    assert prompts == ["None False 90.0", "a False 90.0", "b True 2.0", "b True 2.0", "b True 2.0"]
    assert facts == ["a", "b", None, "c", "d"]
    path = course(bench, rewrite().truth, facts)
    assert [best.code for best in path] == [None, "a", "b", "b", "b", "d"]
    with pytest.raises(ValueError, match="rounds=0"):
        iterate(0, bench, Plain())


def test_one_round_leaves_the_execution_of_replies_to_the_reward():
    bench = Shelf({"a": PASS})
    episode = iterate(1, bench, Plain())(rewrite("a"))
    next(episode)
    with pytest.raises(StopIteration):
        episode.send([replied("unknown").turns[0].reply])
    assert bench.batches == [["a"]]


def test_the_curve_by_hand():
    bench = Shelf({"a": FAIL, "b": PASS, "c": Performance(True, 1.0, 100.0)})
    tasks = [rewrite(metric="time"), rewrite(metric="memory")]
    rollouts = [pt.Rollout(tasks[0], [], ["a", "c"]), pt.Rollout(tasks[1], [], ["b", "b"])]
    people = [PASS, Performance(True, 4.0, 200.0)]
    first, second = curve(courses(bench, rollouts), lambda exercise: people)
    assert first["pass"] == 0.5
    assert first["beyond time"] == 0.0  # it failed
    assert first["beyond memory"] == 1.0
    assert math.isnan(first["beyond integral"])  # nobody was asked for it
    assert second["pass"] == 1.0
    assert second["beyond time"] == 1.0


def test_an_episode_that_could_not_be_played_is_left_out_of_the_curve_and_said():
    bench = Shelf({"a": PASS, "b": Invalid("it died twice")})
    rollouts = [
        pt.Rollout(rewrite(), [], facts) for facts in (["a"], Failure("EpisodeFailed: the sandbox failed"), ["b"])
    ]
    with pytest.warns(UserWarning, match="2 of 3 episodes could not be .* because: EpisodeFailed: the sandbox failed"):
        assert len(courses(bench, rollouts)) == 1
    with pytest.raises(ValueError, match="none of 1 episodes could be played and measured"):
        courses(bench, rollouts[1:2])


def test_the_ablations_leave_out_what_they_say():
    world, task = Katas(), rewrite(SLOW)
    best = Best(SLOW, Performance(True, 1e-3, 1.0))
    shown = {
        (feedback, original): InWords(world, feedback, original).prompt(task, best)[0]["content"]
        for feedback in (True, False)
        for original in (True, False)
    }
    assert shown[True, True] == f"pairs small time : {SLOW} : passed t5 m1 =>"
    assert shown[False, True] == f"pairs small time : {SLOW} : untested =>"
    assert shown[True, False] == "pairs small time : empty : passed t5 m1 =>"
    assert shown[False, False] == InWords(world).prompt(task, Best(None))[0]["content"]
    one = pt.Task("t", (), Rewrite(case(runner="==Code Submission=="), "memory"))
    texts = {
        flags: InMarkdown(*flags).prompt(one, Best("print(1)", PASS))[0]["content"]
        for flags in ((True, True), (False, True), (True, False))
    }
    assert "print(1)" in texts[True, True]
    assert "Passed: True / Time: 2.000000 s / Memory: 100.0 KiB / Integral: 200.000000" in texts[True, True]
    assert "Passed:" not in texts[False, True]
    assert "print(1)" not in texts[True, False]
    assert texts[True, True].count("memory efficient") == 2


# ---- what teaches


def test_people_teach_sft_the_best_and_dpo_which_is_better(box, monkeypatch):
    world, bench = Katas(5), Bench(box, 10.0, repeats=1, at_once=2)
    some = [Kata("pairs", size, "closed", 5) for size in ("small",)]
    monkeypatch.setattr(Katas, "katas", lambda self, held_out=False: some)
    solutions = passed_solutions(world, bench, some)[some[0]]
    assert all(found.passed for _, found in solutions)
    fastest = min(found.seconds for _, found in solutions)
    taught = demonstrations(world, bench)
    shown = [one for one in taught if " time :" in one.messages[0]["content"]]
    assert {one.messages[0]["content"] for one in shown} == {"pairs small time : empty : untested =>"}
    speeds = {reply(code): found.seconds for code, found in solutions}
    assert speeds[shown[0].messages[1]["content"]] == fastest
    for pair in pairs(world, bench):
        metric = pair.prompt[0]["content"].split()[2]
        of = {reply(code): found.of(metric) for code, found in solutions}
        assert of[pair.chosen] < of[pair.rejected]


@pytest.mark.slow
def test_grpo_learns_to_repair_code(box, monkeypatch, tmp_path):
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path))
    world, bench = Katas(101), Bench(box, 10.0, repeats=1, laps=3, at_once=4)
    policy = base(world, 101, Size(steps=200))
    made = recipe(bench, InWords(world))
    history = train_in_memory(policy, rewritings(world), made, steps=30, per_step=16, lr=1e-3, seed=101)
    first, last = (statistics.fmean(step["part/passed"] for step in part) for part in (history[:5], history[-5:]))
    assert last > first + 0.03  # measured: 0.06 to 0.15


# ---- problems of one's own

RUNNER = "==Code Submission==\nprint(Solution().doubled(int(input())))"
STARTER = "class Solution:\n    def doubled(self, n: int) -> int:"
RIGHT = "class Solution:\n    def doubled(self, n):\n        return 2 * n"
WASTEFUL = "class Solution:\n    def doubled(self, n):\n        return sum([2 for _ in range(100 * n)]) // 100"
WRONG = RIGHT.replace("2 *", "3 *")


def case(**changes):
    record = {
        "problem_id": 1,
        "question_content": "Double a number.",
        "code_prompt": STARTER,
        "test_case_runners": RUNNER,
        "test_cases": json.dumps([{"input": "1", "output": "2"}, {"input": "50", "output": "100"}]),
        "solutions": [
            {"code": code, "passed": True, "time": time, "memory": 1.0, "integral": time}
            for code, time in ((RIGHT, 900.0), (WASTEFUL, 1.0))  # recorded elsewhere, the wrong way round
        ]
        + [{"code": WRONG, "passed": False, "time": 0.0, "memory": 0.0, "integral": 0.0}],
    }
    names = {"runner": "test_case_runners", "evaluator": "test_case_evaluator"}
    return problem(record | {names.get(name, name): value for name, value in changes.items()}, Place("f.jsonl", 7))


def test_programs_with_a_placeholder_and_functions_are_graded(box):
    bench = Bench(box, 5.0, repeats=1)
    for exercise in (
        case(),
        case(runner="", function="doubled", test_cases=[{"input": [1], "output": 2}, {"input": [50], "output": 100}]),
    ):
        right, wasteful, wrong, broken = bench(
            [(exercise, code) for code in (RIGHT, WASTEFUL, WRONG, "class Solution: (")]
        )
        bench.known.clear()
        assert right.passed
        assert wasteful.kib > 4 * right.kib  # measured here, whatever was recorded: trap d
        assert wrong.why == "a test failed: test 1"
        assert not broken.passed


def test_answers_never_enter_the_sandbox_with_the_submission():
    exercise = case(test_cases=[{"input": "17", "output": "5555"}])
    calls = exercise.calls(RIGHT)
    assert "5555" not in calls.source + json.dumps(calls.arguments)


def test_an_evaluator_of_the_data_grades_what_differs(box):
    near = "def evaluate(expected, printed):\n    return abs(float(expected) - float(printed)) < 0.5"
    bench = Bench(box, 5.0, repeats=1)
    close = RIGHT.replace("return 2 * n", "return 2 * n + 0.25")
    assert bench([(case(evaluator=near), code) for code in (close, WRONG)])[0].passed
    assert bench.known
    assert [one.passed for one in bench([(case(evaluator=near), code) for code in (close, WRONG)])] == [True, False]
    assert not Bench(box, 5.0, repeats=1)([(case(), close)])[0].passed
    missing = case(evaluator="import nothing_of_that_name")
    [found] = Bench(box, 5.0, repeats=1)([(missing, close)])
    assert isinstance(found, Invalid)
    assert "evaluator of problem 1" in found.reason
    with pytest.raises(ValueError, match="f.jsonl, line 7: test_case_evaluator cannot be executed: ModuleNotFound"):
        venus.check_evaluators([case(), case(evaluator=near), missing], bench.execute)
    venus.check_evaluators([case(), case(evaluator=near)], bench.execute)


def test_a_reply_that_ends_the_data_s_evaluator_has_failed_its_test_and_harms_no_other(box):
    careless = "def evaluate(expected, printed):\n    return eval(printed) == eval(expected)"
    exercise = case(evaluator=careless, test_cases=[{"input": "1", "output": "2"}, {"input": "50", "output": "100"}])
    ends = RIGHT.replace("return 2 * n", "return '2.0' if n == 1 else '__import__(\"os\")._exit(0)'")
    lasts = RIGHT.replace("return 2 * n", "return 'sum(range(10**12))'")
    right = RIGHT.replace("return 2 * n", "return 2.0 * n")
    found = Bench(box, 1.0, repeats=1)([(exercise, code) for code in (ends, lasts, right)])
    assert [one.why for one in found] == ["a test failed: test 2", "a test failed: test 1", ""]


def test_problems_of_two_files_with_the_same_line_are_not_mixed(tmp_path, box):
    bench = Bench(box, 5.0, repeats=1)
    for factor, passes in ((2, True), (3, False)):
        path = tmp_path / f"{factor}.jsonl"
        tests = [{"input": str(n), "output": str(factor * n)} for n in (1, 7)]
        record = {"question_content": "?", "test_case_runners": RUNNER, "test_cases": tests}
        path.write_text(json.dumps(record))
        [one] = problems(str(path))
        assert one.key == "1"
        assert bench([(one, RIGHT)])[0].passed is passes


TABLE = "TABLE = [0]\nfor i in range(300_000):\n    TABLE.append(TABLE[-1] + i)\n\n"
LOOKED_UP = TABLE + "def summed(n):\n    return TABLE[n + 1]"
ADDED = "def summed(n):\n    total = 0\n    for i in range(n + 1):\n        total += i\n    return total"


def test_work_that_is_done_while_code_is_loaded_counts(box):
    tests = [{"input": [n], "output": n * (n + 1) // 2} for n in (10, 200_000)]
    exercise = case(runner="", function="summed", code_prompt="", test_cases=tests)
    table, honest = Bench(box, 20.0, repeats=2)([(exercise, code) for code in (LOOKED_UP, ADDED)])
    assert table.passed
    assert table.seconds > 1e-3  # measured: 0.02; of the calls alone 1e-6
    assert honest.passed
    assert table.seconds > honest.seconds


def test_long_code_is_not_slow_for_its_length(box):
    tests = [{"input": [1], "output": 2}]
    long = "\n".join(f"def unused_{i}(n):\n    return [x + {i} for x in range(n)]" for i in range(100)) + "\n"
    exercise = case(runner="", function="doubled", code_prompt="", test_cases=tests)
    [found] = Bench(box, 20.0, repeats=3)([(exercise, long + "def doubled(n):\n    return 2 * n")])
    assert found.seconds < 1e-4


def test_memory_has_the_limit_that_is_asked_for(box):
    big = "def doubled(n):\n    return len(bytearray(n << 20)) >> 19"
    exercise = case(runner="", function="doubled", code_prompt="", test_cases=[{"input": [600], "output": 1200}])
    assert Bench(box, 20.0, repeats=1)([(exercise, big)])[0].passed
    [found] = Bench(box, 20.0, memory_mib=256, repeats=1)([(exercise, big)])
    assert not found.passed
    assert "MemoryError" in found.why


@pytest.mark.parametrize("starter", [STARTER, ""])
@pytest.mark.parametrize("code", [RIGHT, "def doubled(n):\n    return 2 * n"])
def test_a_function_may_be_a_method_whatever_the_starter(starter, code, box):
    exercise = case(runner="", function="doubled", code_prompt=starter, test_cases=[{"input": [4], "output": 8}])
    assert Bench(box, 5.0, repeats=1)([(exercise, code)])[0].passed


def test_programs_may_use_the_names_of_the_release_s_prelude(box):
    code = "class Solution:\n    def doubled(self, n):\n        return min(2 * n + int(stdin.readline()), maxsize)"
    exercise = case(test_cases=[{"input": "1\n5", "output": "7"}, {"input": "2\n-1", "output": "3"}])
    assert Bench(box, 5.0, repeats=1)([(exercise, code)])[0].passed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"runner": "print(1)"}, "f.jsonl, line 7: test_case_runners has no ==Code Submission=="),
        ({"runner": ""}, "line 7: there is no column 'function'"),
        ({"test_cases": "[{"}, "line 7: test_cases is not JSON"),
        ({"test_cases": [{"input": "1"}]}, "line 7: test case 1 has no input and output"),
        ({"test_cases": "[]"}, "line 7: there are no test cases"),
        ({"test_cases": '{"input": 1}'}, "line 7: test_cases is a dict, not a list"),
        ({"runner": "", "function": "f", "test_cases": [{"input": "x", "output": "1"}]}, "is not JSON"),
        ({"runner": "", "function": "f", "test_cases": [{"input": "1", "output": "1"}]}, "not a list of arguments"),
        ({"solutions": [{"passed": True}]}, "line 7: a solution has no code"),
        ({"question_content": ""}, "line 7: the column 'question_content' is empty"),
        ({"evaluator": "def evaluate("}, "line 7: test_case_evaluator is no Python"),
        ({"runner": "", "function": "a b"}, "line 7: function is 'a b', which is no name of a function"),
    ],
)
def test_bad_records_are_named(changes, message):
    with pytest.raises(ValueError, match="(?s).*") as caught:
        case(**changes)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("<solution>\n```python\nx = 1\n```\n</solution>", "x = 1"),
        ("<solution>```python\na\n```</solution> <solution>\n```\nb\n```\nor\n```py\nc\n```\n</solution>", "c"),
        ("```python\nx\n```", None),
        ("<solution> x </solution>", None),
        ("<solution>\n```python\nx\n```", None),
        ("<solution>\n```python\n```\n</solution>", None),
    ],
)
def test_code_is_the_last_fenced_block_of_the_last_solution(text, wanted):
    assert InMarkdown().code(text) == wanted
    assert InMarkdown().code(venus.reply_text("a = 1\n")) == "a = 1"
    assert is_well_formed(venus.reply_text("a = 1"))


def test_recorded_numbers_order_solutions_and_teach():
    one = case()
    assert [each.code for each in venus.best_first(one, "time")] == [WASTEFUL, RIGHT]  # never what failed
    assert len(stages.demonstrations([one], 24)) == 6
    [pair, *_] = stages.pairs([one], 4, 2, seed=0)
    assert (pair.chosen, pair.rejected, pair.kind) == (venus.reply_text(WASTEFUL), venus.reply_text(RIGHT), "time")
    with pytest.raises(ValueError, match="`least=48`: no problem has so many solutions"):
        stages.pairs([one], 4, 48, seed=0)
    with pytest.raises(ValueError, match="nothing to learn from"):
        stages.demonstrations([case(solutions=[])], 24)


@pytest.fixture
def katas_file(tmp_path):
    path = tmp_path / "venus.jsonl"
    lines = []
    for i in range(3):
        tests = json.dumps([{"input": str(n), "output": str(2 * n)} for n in (1, 7 + i)])
        solutions = [
            {"code": code, "passed": code != WRONG, "time": 1.0 + j, "memory": 9.0 - j, "integral": 5.0 + j}
            for j, code in enumerate((RIGHT, WASTEFUL, WRONG))
        ]
        record = {"problem_id": i, "question_content": f"Double it {i}.", "code_prompt": STARTER}
        lines.append(record | {"test_case_runners": RUNNER, "test_cases": tests, "solutions": solutions})
    path.write_text("\n".join(map(json.dumps, lines)))
    return str(path)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    words = tiny.tokenizer()
    folder = tmp_path_factory.mktemp("qwen")
    tiny.network(words, 0, hidden=32, layers=1, positions=2048).save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("stage", "options"),
    [
        ("sft", []),
        ("dpo", ["--least", "2"]),
        ("grpo", ["--samples", "2", "--repeats", "1", "--held-out", "{file}"]),
        ("evaluate", ["--rounds", "1", "--measurements", "2", "--repeats", "1"]),
    ],
)
def test_every_stage_on_a_checkpoint(stage, options, katas_file, checkpoint, tmp_path, capsys):
    out = tmp_path / "run"
    given = [option.format(file=katas_file) for option in options]
    steps = [] if stage == "evaluate" else ["--steps", "1"]
    size = [*steps, "--tasks", "2", "--max-new", "6", "--out", str(out), "--quiet"]
    arguments = ["--model", checkpoint, "--data", katas_file, "--stage", stage]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the plain sandbox")
        main(["run", "afterburner", *arguments, *given, *size])
    if stage == "evaluate":
        rows = json.loads((out / "iterations.json").read_text())
        assert [row["iteration"] for row in rows] == [0, 1]
        assert rows[1]["pass"] == [0.0, 0.0, 0.0]  # a random model writes no code
        assert "| iteration | pass | beyond time |" in capsys.readouterr().out
    else:
        assert list((out / "model").rglob("*.safetensors"))
    if stage == "grpo":
        assert len(next(iter(pt.read_rollouts(out)))["truth"]) < 300  # not the problem with all its solutions


def evaluated(data, checkpoint, out, *options):
    size = ["--tasks", "2", "--max-new", "6", "--repeats", "1", "--out", str(out), "--quiet"]
    arguments = ["--model", checkpoint, "--data", data, "--stage", "evaluate", "--rounds", "1"]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the plain sandbox")
        try:
            main(["run", "afterburner", *arguments, "--measurements", "2", *size, *options])
        except SystemExit as refused:
            return refused.code
    return 0


@pytest.mark.parametrize("people", ["none in the data", "--people 0"])
def test_without_people_there_is_no_beyond_and_the_rest_is_there(people, katas_file, checkpoint, tmp_path, capsys):
    data = katas_file
    if people == "none in the data":
        data = str(tmp_path / "alone.jsonl")
        records = [json.loads(line) for line in Path(katas_file).read_text().splitlines()]
        Path(data).write_text("".join(json.dumps(one | {"solutions": []}) + "\n" for one in records))
    options = people.split() if people.startswith("--") else []
    assert not evaluated(data, checkpoint, tmp_path / "run", *options)
    rows = json.loads((tmp_path / "run" / "iterations.json").read_text())
    assert rows[1]["beyond time"] is None
    assert rows[1]["pass"] == [0.0, 0.0, 0.0]
    assert rows[1]["left out"] == 0
    assert "| 1 | 0.000 [0.000, 0.000] | - | - | - | 0.000 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--measurements", "0"], "--measurements 0: it must be at least 1"),
        (["--rounds", "-1"], "--rounds -1: it must be at least 0"),
        (["--people", "-1"], "--people -1: it must be at least 0"),
        (["--repeats", "0"], "--repeats 0: it must be at least 1"),
        (["--memory-mib", "0"], "--memory-mib 0: it must be at least 1"),
        (["--wall-s", "0"], "--wall-s 0.0: it must be above 0"),
        (["--max-new", "2000"], "positions: lower --max-new"),
        (
            ["--max-new", "900"],
            "an iteration of task '0-time' may take 2254 tokens",
        ),  # the first prompt fits, one with code in it may not
        (["--out", "{file}"], "cannot be written"),
        (["--data", "{broken}"], "line 1: test_case_evaluator cannot be executed: ZeroDivisionError"),
    ],
)
def test_what_cannot_be_evaluated_is_said_before_any_work(
    options, message, katas_file, checkpoint, tmp_path, capsys, monkeypatch
):
    def play(*_, **__):
        raise AssertionError("an episode was played")

    monkeypatch.setattr(pt, "play_and_grade", play)
    broken = tmp_path / "broken.jsonl"
    record = json.loads(Path(katas_file).read_text().splitlines()[0])
    broken.write_text(json.dumps(record | {"test_case_evaluator": "1 / 0"}))
    places = {"file": katas_file, "broken": str(broken)}
    assert evaluated(katas_file, checkpoint, tmp_path / "run", *(option.format(**places) for option in options))
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run" / "rollouts").exists()


class Interrupted(Exception):
    pass


def test_an_evaluation_goes_on_where_it_was_stopped_and_replaces_nothing_unasked(
    katas_file, checkpoint, tmp_path, capsys, monkeypatch
):
    out, batches = tmp_path / "run", []
    play, measure = pt.play_and_grade, evaluation.curve

    def play_two(tasks, *rest):
        batches.append([task.key for task in tasks])
        if len(batches) == 3:
            raise Interrupted
        return play(tasks, *rest)

    monkeypatch.setattr(pt, "play_and_grade", play_two)
    with pytest.raises(Interrupted):
        evaluated(katas_file, checkpoint, out)
    assert len(list(pt.read_rollouts(out))) == 4

    def once(*arguments):
        monkeypatch.setattr(evaluation, "curve", killed)
        return measure(*arguments)

    def killed(*arguments):
        raise Interrupted

    monkeypatch.setattr(evaluation, "curve", once)
    people = (out / "people.jsonl").read_text()
    with pytest.raises(Interrupted):
        evaluated(katas_file, checkpoint, out, "--resume")
    assert len(batches) == 5 + 1  # the one in which it was stopped again, and the two that were left
    assert batches[2] == batches[3]
    assert [len(json.loads(line)["passed"]) for line in people.splitlines()] == [2, 2, 2]
    assert (out / "people.jsonl").read_text() == people  # not measured again, which would give other seconds
    with (out / "measured.jsonl").open("a") as file:
        file.write('{"rows": [{"pa')  # cut short by the kill
    monkeypatch.setattr(evaluation, "curve", measure)
    assert not evaluated(katas_file, checkpoint, out, "--resume")
    assert len((out / "measured.jsonl").read_text().splitlines()) == 2
    assert len(batches) == 6
    assert json.loads((out / "run.json").read_text())["run"]["settings"]["rounds"] == 1

    capsys.readouterr()
    written = (out / "iterations.json").read_text()
    assert evaluated(katas_file, checkpoint, out)
    assert "already holds a run" in capsys.readouterr().err
    assert evaluated(katas_file, checkpoint, out, "--resume", "--people", "1")
    assert "was started with people = 100, not 1" in capsys.readouterr().err
    assert (out / "iterations.json").read_text() == written
    assert not evaluated(katas_file, checkpoint, out, "--overwrite", "--measurements", "1")
    assert len((out / "measured.jsonl").read_text().splitlines()) == 1
    assert len(batches) == 6 + 5


def test_the_same_problem_twice_is_refused(katas_file, tmp_path):
    line = Path(katas_file).read_text().splitlines()[0] + "\n"
    twice = tmp_path / "twice.jsonl"
    twice.write_text(line + line)
    with pytest.raises(ValueError, match="line 2: the id '0' was already used in line 1"):
        problems(str(twice))


def test_the_form_of_replies_is_a_part_for_any_recipe():
    plain = pt.grpo(pt.each(lambda rollout: 1.0), samples=2)
    made = afterburner.PARTS["formed"](plain, True)
    right = replied("<thinking> a </thinking> <solution> b </solution>")
    scores = made.reward([right, replied("b")])
    assert [score.value for score in scores if isinstance(score, Score)] == pytest.approx([1.2, 1.0])
    assert made.evaluation is plain.reward
