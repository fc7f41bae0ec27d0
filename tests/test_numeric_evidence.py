"""Numeric evidence: numbers as they are written, effects against statsmodels, rewards, readers, measures, stages."""

from __future__ import annotations

import contextlib
import json
import math
import random
from dataclasses import replace

import numpy as np
import pytest
from conftest import broken_rows, refusal, said
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import posttrain as pt
from posttrain.cli import main
from posttrain.lab.world.trials import reply
from posttrain.records import Place
from posttrain.systems.numeric_evidence import PARTS, by_field, recipe
from posttrain.systems.numeric_evidence.effect import CONCLUSIONS, effect
from posttrain.systems.numeric_evidence.lab import KIND, record_of_counts, task, world_of
from posttrain.systems.numeric_evidence.measures import measures, prediction
from posttrain.systems.numeric_evidence.record import is_whole, names, number_of, record_of, same, yaml_text
from posttrain.systems.numeric_evidence.reward import (
    Truth,
    conclusion_is_right,
    is_thought,
    reward,
    score_parts,
    stated_conclusion,
)
from posttrain.systems.numeric_evidence.stages import demonstrations, right_trace
from posttrain.systems.numeric_evidence.trials import question, questions

pytest.importorskip("yaml")
pytest.importorskip("sklearn")

TABLE = {
    "intervention_events": 12.0,
    "intervention_group_size": 101.0,
    "comparator_events": 20.0,
    "comparator_group_size": 99.0,
}
MEANS = dict(zip(names("continuous"), (50.6, 8.0, 30.0, -0.7, 9.5, 31.0), strict=True))
REPLY = f"<think>from table 2</think>\n```yaml\n{yaml_text(TABLE, 'dichotomous')}\n```"


# ---- numbers and records


@pytest.mark.parametrize(
    ("written", "number"),
    [
        ("012", 12),  # not octal 10
        ("1e3", 1000),
        ("1_000", 1000),
        ("1,200", 1200),
        ("1 200", 1200),
        ("12 patients", 12),
        ("+7", 7),
        ("12.0", 12),
        ("0", 0),
        (7, 7),
        (7.0, 7),
        ("x", None),
        ("", None),
        ("~", None),
        ("null", None),
        ("Not  Reported", None),
        ("N/A", None),
        (None, None),
        (math.nan, None),
    ],
)
def test_counts_are_read_as_people_write_them(written, number):
    assert number_of(written, "events") == number


@pytest.mark.parametrize(
    "written",
    ["no", "yes", "on", "1:30", "12 %", "12/40", "30/30", "-3", "1e400", ".inf", "inf", "12 of 40", "about ten", True,
     math.inf, pytest.param(10**400, id="huge"), [1], {"a": 1}, "9" * 50, "1e13"],
)  # fmt: skip
def test_what_is_no_count_is_neither_a_number_nor_unknown(written):
    found = number_of(written, "events")
    assert found is not None
    assert math.isnan(found)
    assert not same(found, 0.0, "events")
    assert not same(found, None, "events")


def test_means_may_be_negative_and_percentages():
    assert number_of("-0.7", "mean") == pytest.approx(-0.7)
    assert number_of("−0.7", "mean") == pytest.approx(-0.7)
    assert number_of("12 %", "mean") == 12
    assert number_of("3.1 kg", "mean") == pytest.approx(3.1)


def test_unknown_is_matched_by_unknown_alone():
    assert same(None, None, "events")
    assert not same(0.0, None, "events")
    assert not same(None, 0.0, "events")
    assert same(2.3504, 2.35, "standard_deviation")
    assert not same(2.352, 2.35, "standard_deviation")
    assert not same(12.0005, 12.0, "events"), "counts are exact"


@pytest.mark.parametrize(
    "text",
    [
        REPLY,
        yaml_text(TABLE, "dichotomous"),
        f"I found this:\n{yaml_text(TABLE, 'dichotomous')}\nThat is: all [of it.",
        "{intervention: {events: '12', group_size: 101}, comparator: {Events: 020, Group size: 99}}",
        f"```\nintervention: {{events: 1}}\n```\nNo, rather\n```yaml\n{yaml_text(TABLE, 'dichotomous')}\n```",
        f"<think>```yaml\nintervention: {{events: 9}}\n```</think>{yaml_text(TABLE, 'dichotomous')}",
        f"```yaml\n{yaml_text(TABLE, 'dichotomous')}",
        json.dumps({"intervention": {"events": 12, "group_size": 101}, "comparator": {"events": 20, "group_size": 99}}),
    ],
)
def test_a_record_is_found_wherever_it_stands(text):
    assert record_of(text, "dichotomous") == TABLE


BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nintervention: {events: *c}"
ENDLESS = "&a\nintervention: *a"


@pytest.mark.parametrize(
    "text",
    ["", "none", "<think>intervention:\n  events: 12", "- 1\n- 2", "intervention: 12", "intervention:\n  mean: 3", BOMB, ENDLESS,
     pytest.param("[" * 5000, id="brackets"), pytest.param("{a: " * 500, id="braces"), pytest.param("? " * 900, id="keys"), '"\\UFFFFFFFF"', "%YAML 9.9\n---\na: 1", "intervention: {events: !!python/object:os.system 1",
     pytest.param("```yaml\n" * 3000, id="fences"), pytest.param("intervention:\n" * 5000, id="arms"),
     pytest.param("\ud800: 1", id="surrogate"), pytest.param("intervention:\n" + " \n" * 5000, id="blank")],
)  # fmt: skip
def test_what_is_no_record_is_one_error(text):
    with pytest.raises(ValueError, match="record|YAML"):
        record_of(text, "dichotomous")


YAML_LIKE = st.text(
    alphabet="intervention:comparator events_group_size\n {}[]&*!%|>-'\"#?,.0123456789ex`<>/\\U", max_size=300
)


@settings(deadline=None, max_examples=60)
@given(st.one_of(st.text(max_size=200), YAML_LIKE), st.sampled_from(["dichotomous", "continuous"]))
def test_no_text_however_broken_is_more_than_a_score(text, kind):
    truth = Truth(kind, TABLE if kind == "dichotomous" else MEANS)
    for wrapped in (
        text,
        f"<think></think>\n```yaml\n{text}\n```",
        f"intervention:\n  {text}\ncomparator:\n  events: {text}",
    ):
        with contextlib.suppress(ValueError):
            record_of(wrapped, kind)
        for density in ("dense", "exact"):
            assert 0 <= reward(density)([said(wrapped, truth)])[0].value <= 1
        assert stated_conclusion(wrapped) in (*CONCLUSIONS, "none")
        json.dumps(prediction("t", wrapped, truth).line(), allow_nan=False)


NUMBERS = st.one_of(st.none(), st.integers(0, 10**9).map(float), st.floats(0, 1e9).filter(lambda x: x == 0 or x > 1e-3))


@given(st.lists(NUMBERS, min_size=6, max_size=6), st.sampled_from(["dichotomous", "continuous"]))
def test_what_is_written_is_read(values, kind):
    given = zip(names(kind), values, strict=False)
    counts = ("events", "group_size")
    record = {name: value if value is None or not name.endswith(counts) else float(int(value)) for name, value in given}
    found = record_of(yaml_text(record, kind), kind)
    assert is_whole(found, kind)
    assert all(same(found[name], record[name], name) for name in names(kind))


# ---- effects


COUNTS = st.integers(2, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@settings(deadline=None)
@given(COUNTS, COUNTS)
def test_risk_ratios_are_those_of_statsmodels(first, second):
    tables = pytest.importorskip("statsmodels.stats.contingency_tables")
    (a, n1), (c, n2) = first, second
    assume(0 < a + c < n1 + n2)
    found = effect(record_of_counts((a, n1, c, n2)), KIND)
    shift = 0.5 if 0 in (a, n1 - a, c, n2 - c) else 0  # by itself it adds 0.5 to the zero alone
    table = tables.Table2x2(np.array([[a, n1 - a], [c, n2 - c]]) + shift)
    assert found.point == pytest.approx(table.riskratio)
    low, high = table.riskratio_confint()
    assert math.log(found.low) == pytest.approx(math.log(low), abs=1e-4)  # 1.96 against 1.959964
    assert math.log(found.high) == pytest.approx(math.log(high), abs=1e-4)
    assert math.log(found.high / found.low) == pytest.approx(2 * 1.96 * table.log_riskratio_se)
    if min(abs(math.log(low)), abs(math.log(high))) > 1e-4:
        assert found.conclusion == ("intervention" if low > 1 else "comparator" if high < 1 else "inconclusive")


SAMPLE = st.lists(st.integers(-50, 50).map(lambda n: n / 4), min_size=2, max_size=12).filter(
    lambda xs: len(set(xs)) > 1
)


@settings(deadline=None)
@given(SAMPLE, SAMPLE)
def test_mean_differences_are_those_of_statsmodels(first, second):
    weights = pytest.importorskip("statsmodels.stats.weightstats")
    one, two = weights.DescrStatsW(first), weights.DescrStatsW(second)
    values = [number for x in (one, two) for number in (x.mean, x.std_mean * math.sqrt(x.nobs), x.nobs)]
    # a sample's standard deviation divides by n - 1, as std_mean does and std does not
    found = effect(dict(zip(names("continuous"), values, strict=True)), "continuous")
    low, high = weights.CompareMeans(one, two).zconfint_diff(usevar="unequal")
    assert found.point == pytest.approx(one.mean - two.mean)
    assert found.low == pytest.approx(low, abs=1e-3 + 1e-4 * (high - low))
    assert found.high == pytest.approx(high, abs=1e-3 + 1e-4 * (high - low))


def counted(*values):
    return effect(record_of_counts(values), KIND)


def test_effects_at_the_edges():
    assert counted(0, 20, 0, 20).conclusion == counted(20, 20, 30, 30).conclusion == "inconclusive"
    assert counted(0, 20, 0, 20).point is None
    assert counted(0, 10, 5, 10).point == pytest.approx((0.5 / 11) / (5.5 / 11)), "0.5 in every cell"
    assert counted(10, 10, 5, 10).point == pytest.approx((10.5 / 11) / (5.5 / 11)), "a full arm has a zero cell too"
    assert counted(30, 40, 5, 40).conclusion == "intervention"
    assert effect(record_of_counts((30, 40, 5, 40)), KIND, event_is_good=False).conclusion == "comparator"
    assert effect(MEANS, "continuous").conclusion == "intervention"
    assert effect(MEANS, "continuous", event_is_good=False).conclusion == "comparator"


@pytest.mark.parametrize(
    "values", [(5, 1, 1, 9), (0, 1, 1, 9), (10, 9, 1, 9), (1, 9, 1, 0), (-1, 9, 1, 9), (math.nan, 9, 1, 9)]
)
def test_impossible_counts_have_no_effect(values):
    assert counted(*values) is None


@pytest.mark.parametrize(
    "changed", [{"intervention_group_size": 1.0}, {"comparator_standard_deviation": 0.0}, {"comparator_mean": None}]
)
def test_impossible_means_have_no_effect(changed):
    assert effect(MEANS | changed, "continuous") is None


@given(
    st.lists(
        st.one_of(st.none(), st.floats(-1e12, 1e12), st.sampled_from([math.nan, 0.0, 1.0])), min_size=6, max_size=6
    )
)
def test_no_numbers_break_the_effect(values):
    for kind in ("dichotomous", "continuous"):
        found = effect(dict(zip(names(kind), values, strict=False)), kind)
        assert found is None or found.conclusion in CONCLUSIONS


# ---- rewards


def graded(text, truth, density="dense"):
    return reward(density)([said(text, truth)])[0]


def test_the_dense_reward_by_hand():
    truth = Truth("dichotomous", TABLE)
    assert graded(REPLY, truth).value == pytest.approx(1.0)
    assert graded(REPLY.partition("</think>")[2], truth).value == pytest.approx(0.9), "no thinking"
    one_wrong = REPLY.replace("events: 20", "events: 21")
    assert graded(one_wrong, truth).value == pytest.approx(0.8 * 3 / 4 + 0.2)
    assert graded(one_wrong, truth, "exact").value == 0
    assert graded(REPLY, truth, "exact").value == 1
    assert graded(one_wrong, truth).parts == {"fields": 0.75, "form": 1.0, "thinking": 1.0, "exact": 0.0}
    easy = "<think>a</think>\nintervention:\n  group_size: 101"
    assert graded(easy, truth).value == pytest.approx(0.8 / 4 + 0.1), "one easy field of four, and no whole form"
    garbled = REPLY.replace("events: 20", "events: some")
    assert graded(garbled, truth).parts == {"fields": 0.75, "form": 0.0, "thinking": 1.0, "exact": 0.0}
    assert graded("<think>a</think> I do not know.", truth).value == pytest.approx(0.1)
    assert graded("<think>never closed\n" + yaml_text(TABLE, "dichotomous"), truth).value == 0
    with pytest.raises(ValueError, match="without numbers"):
        graded(REPLY, Truth("dichotomous", None))


def test_unknown_in_the_truth_is_matched_by_unknown_and_not_by_zero():
    truth = Truth("dichotomous", dict.fromkeys(names("dichotomous")))
    unknown = "<think>a</think>\n" + yaml_text(truth.record, "dichotomous")
    assert graded(unknown, truth).value == pytest.approx(1.0)
    assert graded(unknown.replace("x", "0"), truth).parts["fields"] == 0
    assert graded("<think>a</think>\nintervention:\n  events:", truth).parts["fields"] == 0.25, (
        "left out is not unknown"
    )


def test_thinking_stands_once_and_first():
    assert is_thought("<think>a</think> b")
    for text in ("a", "a <think>b</think>", "<think>a", "<think>a</think><think>b</think>", "a</think>"):
        assert not is_thought(text)


@pytest.mark.parametrize(
    ("text", "conclusion"),
    [
        ("conclusion: intervention", "intervention"),
        ("<think>conclusion: comparator</think> **Conclusion:** `inconclusive`", "inconclusive"),
        ("conclusion: intervention\nconclusion: comparator", "comparator"),
        ("It is inconclusive.", "inconclusive"),
        ("The intervention is better than the comparator.", "none"),
        ("conclusion: both", "none"),
        ("", "none"),
    ],
)
def test_stated_conclusions(text, conclusion):
    assert stated_conclusion(text) == conclusion


def test_the_recipe_is_the_published_one(make):
    policy = make()
    made = recipe(reward())
    assert (made.samples, made.reference) == (16, None)
    assert recipe(reward(), kl=0.04, reference=policy.frozen_copy()).reference is not None


def test_the_part_pays_json_field_by_field():
    truth = {"a": 1, "b": {"c": "x", "d": [1, 2]}, "e": None}
    for text, share in (
        (json.dumps(truth), 1.0),
        ('{"a": 1}', 0.25),
        ('{"a": true, "b": {"c": "x", "d": [1, 2, 3]}, "e": 0, "more": 1}', 0.25),
        ('{"b": "x"}', 0.0),
        ("no JSON", 0.0),
        ("[" * 3000, 0.0),
    ):
        assert by_field([said(text, truth)])[0].value == share
        assert by_field([said(text, json.dumps(truth))])[0].value == share
    for wrong in ("no JSON", [1], {}, 7):
        with pytest.raises(ValueError, match="by_field"):
            by_field([said("{}", wrong)])
    plain = pt.grpo(pt.grade.json, samples=2)
    made = PARTS["fields"](plain, True)
    assert (made.reward, made.evaluation) == (by_field, plain.reward)


# ---- data


ROW = {
    "outcome": "death",
    "intervention": "drug",
    "comparator": "placebo",
    "outcome_type": "binary",
    "text": "Of 101 ...",
}


@pytest.fixture
def write(tmp_path):
    def file(*rows):
        path = tmp_path / "trials.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        return path

    return file


def test_missing_numbers_are_unknown_and_never_zero(write, tmp_path):
    (tmp_path / "trial.md").write_text("# Results\nOf 101 ...")
    empty = dict.fromkeys([*names("dichotomous"), *names("continuous")], "")
    own = {name: value for name, value in ROW.items() if name != "text"}
    path = write(
        ROW | empty | {"id": 7},
        ROW | empty | {"intervention_events": "x", "intervention_group_size": 101, "comparator_events": "1,020"},
        ROW | {"outcome_type": "Continuous", "intervention_mean": "50.6", "comparator_group_size": None},
        own | {"file": "trial.md", "event_is_good": False} | {name: int(value) for name, value in TABLE.items()},
        ROW,
    )
    found = questions(path)
    assert [one.key for one in found] == ["7", "2", "3", "4", "5"]
    assert found[0].record == dict.fromkeys(names("dichotomous"))
    assert [*found[1].record.values()] == [None, 101, 1020, None]
    assert [*found[2].record.values()] == [50.6, None, None, None, None, None]
    assert found[3].record == TABLE
    assert found[3].text == "# Results\nOf 101 ..."
    assert found[4].record is None, "no column of numbers: not labelled"
    assert [one.task().truth.conclusion for one in found] == [None, None, None, "inconclusive", None]
    prompt = found[3].task().prompt[0]["content"]
    assert all(part in prompt for part in ("# Results", "death", "drug", "placebo", "events: ...", "<think>"))
    assert "<think>" not in found[3].task("numbers").prompt[0]["content"]
    assert "less of the outcome is better" in found[3].task("conclusion").prompt[0]["content"]
    assert "standard_deviation: ..." in found[2].task().prompt[0]["content"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"outcome_type": "ordinal"}, "line 1: the outcome_type 'ordinal' is none of binary"),
        ({"outcome": ""}, "line 1: the column 'outcome' is empty"),
        ({"text": ""}, "line 1: there is no trial: give `text`"),
        ({"text": "", "file": "no.md"}, "line 1: there is no file .*no.md"),
        ({"text": "", "file": "trial.pdf"}, "line 1: .*trial.pdf is no text in UTF-8"),
        ({"intervention_events": "many"}, "line 1: 'intervention_events' is 'many', neither its number nor unknown"),
        ({"intervention_events": True}, "line 1: 'intervention_events' is True"),
        ({"comparator_group_size": -3}, "line 1: 'comparator_group_size' is -3"),
        ({"event_is_good": "maybe"}, "line 1: `event_is_good` is 'maybe'"),
    ],
)
def test_bad_rows_are_named(changed, message, write, tmp_path):
    (tmp_path / "trial.pdf").write_bytes(b"%PDF\xff\xfe")
    with pytest.raises(ValueError, match=message):
        questions(write(ROW | changed))


def test_counts_of_replies_are_whole_and_published_ones_may_be_estimates(write):
    assert math.isnan(number_of("12.5", "events"))
    assert math.isnan(number_of("1e-6", "events"))
    assert all(
        math.isnan(number_of(text, "mean")) for text in ("1.2 million", "5k", "12 hundred", "3 trillion", "1.2M")
    )
    assert (number_of("5 m", "mean"), number_of("$5", "mean")) == (5.0, 5.0)
    assert math.isnan(number_of("$5", "events"))
    [one] = questions(write(ROW | TABLE | {"intervention_events": 12.5}))
    assert one.record is not None
    assert one.record["intervention_events"] == 12.5


def test_a_fence_that_never_ends_keeps_nobody_busy():
    with contextlib.suppress(ValueError):
        record_of("```" + " " * 64_000 + "x", "dichotomous")


def test_ids_are_unique(write):
    with pytest.raises(ValueError, match="line 2: the id '1' was already used in line 1"):
        questions(write(ROW | {"id": 1}, ROW | {"id": 1}))


# ---- measures


def test_measures_by_hand():
    truth = Truth("dichotomous", record_of_counts((30, 40, 5, 40)))  # intervention
    undecided = Truth("dichotomous", record_of_counts((10, 40, 11, 40)))
    replies = [
        (truth, (30, 40, 5, 40)),  # right
        (truth, (29, 40, 5, 40)),  # one field wrong, the same conclusion
        (truth, (5, 40, 30, 40)),  # two wrong, and the other side
        (undecided, (10, 40, 11, 40)),
        (undecided, (50, 40, 11, 40)),  # impossible: no conclusion
    ]
    made = [prediction(str(i), yaml_text(record_of_counts(n), KIND), t) for i, (t, n) in enumerate(replies)]
    made.append(prediction("unknown", yaml_text({}, KIND), Truth("dichotomous", dict.fromkeys(names(KIND)))))
    made.append(prediction("unlabelled", REPLY, Truth("dichotomous", None)))
    found = measures(made)
    assert (found["predictions"], found["concluded"]) == (6, 5)
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["F1"] == pytest.approx(
        (2 * 2 / (2 * 2 + 1) + 2 / 3) / 2
    )  # 2 of 3, none too many; 1 of 2, none too many
    assert found["no conclusion"] == pytest.approx(1 / 5)
    assert found["exact"] == pytest.approx(3 / 6)
    assert found["exact but one"] == pytest.approx(5 / 6)
    assert found["fields"] == pytest.approx((4 + 3 + 2 + 4 + 3 + 4) / 24)
    assert found["known"] == pytest.approx((4 + 3 + 2 + 4 + 3) / 20)
    assert found["invented"] == 0
    guessed = [prediction("g", yaml_text(record_of_counts((0, 9, 0, 9)), KIND), made[-2].truth)]
    assert (measures(guessed)["fields"], measures(guessed)["invented"]) == (0, 1), "zero is not unknown"
    assert found["error impact"] == pytest.approx(2 / 3)
    errors = [0, math.log(29 / 30) ** 2, (2 * math.log(6)) ** 2, 0]
    assert found["squared error"] == pytest.approx(sum(errors) / 4)
    assert "squared error, means" not in found
    textual = measures([prediction("a", "conclusion: intervention", truth, textual=True)], textual=True)
    assert textual == {"predictions": 1, "concluded": 1, "accuracy": 1, "F1": 1, "no conclusion": 0}
    assert measures([made[-1]]) == {"predictions": 0, "concluded": 0}


# ---- at both scales


def test_the_world_s_clean_replies_earn_everything_and_its_mistakes_do_not():
    world, draw = world_of(0), random.Random(0)
    for _ in range(30):
        report = world.report(draw)
        one, text = task(report, "t"), reply(report.outcome, report.numbers)
        assert graded(text, one.truth).value == pytest.approx(1.0)
        assert conclusion_is_right(said(text, one.truth)) == 1
        assert set(text.split()) | set(report.prompt("conclude").split()) <= set(world.vocabulary)
        assert len(text.split()) < world.longest
    wrong = [
        graded(reply(one.outcome, one.misread(draw, 0.3)), task(one, "t").truth).parts
        for one in world.reports(300, "a")
    ]
    assert 0.15 < sum(parts["exact"] for parts in wrong) / 300 < 0.4
    assert all(parts["form"] == parts["thinking"] == 1 for parts in wrong)


def test_a_teacher_s_right_replies_become_traces(write, tmp_path):
    path = write(ROW | TABLE | {"id": "a"})
    [one] = [question.task() for question in questions(path)]
    wrong, bare = REPLY.replace("20", "21"), yaml_text(TABLE, "dichotomous")
    replies = {text: replace(said(text), task=one) for text in (wrong, bare, REPLY)}
    assert right_trace([*replies.values()])["response"] == REPLY
    assert right_trace([replies[wrong], replies[bare]])["response"] is None, "wrong, and right without thinking"
    traces = tmp_path / "traces.jsonl"
    traces.write_text(json.dumps({"id": "a", **right_trace([replies[REPLY]])}))
    assert pt.read_demonstrations(traces)[0].messages[-1]["content"] == REPLY


def test_predictions_are_written_and_rows_without_numbers_are_only_extracted(write, tmp_path, capsys):
    path, out = write(ROW | TABLE | {"text": "Of 101 " * 5}, ROW, ROW | {"text": "too long " * 4000}), tmp_path / "out"
    words = ["run", "numeric-evidence", "--stage", "evaluate", "--model", "tiny", "--max-new", "8", "--quiet"]
    main([*words, "--data", str(path), "--most-prompt", "900", "--out", str(out)])
    shown = capsys.readouterr().out
    assert "2 questions, 1 dropped, their prompts being too long" in shown
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["1", "2"]
    assert lines[0]["wanted"] == TABLE
    assert lines[1]["wanted"] is None
    assert pt.read_json(out / "measures.json")["predictions"] == 1
    with pytest.raises(SystemExit):
        main([*words[:3], "distil", *words[4:], "--data", str(path), "--out", str(tmp_path / "traces")])
    assert "give a stronger --teacher" in " ".join(capsys.readouterr().err.split())


def test_plain_fine_tuning_learns_the_numbers_at_once(write, make):
    from posttrain.systems.numeric_evidence.stages import TrialOptions

    policy = make()
    path = write(ROW | TABLE, ROW)
    trials = TrialOptions(str(path))
    policy.body.config.max_position_embeddings = 5000
    [one] = demonstrations(trials, policy)
    assert record_of(one.messages[-1]["content"], "dichotomous") == TABLE
    assert score_parts(one.messages[-1]["content"], Truth("dichotomous", TABLE))["thinking"] == 0
    with pytest.raises(ValueError, match="not one row has numbers"):
        demonstrations(replace(trials, data=str(write(ROW))), policy)


WHOLE: list[dict] = [
    {**ROW, **TABLE, "event_is_good": True},
    {**ROW, "file": "no.md", "outcome_type": "continuous", "intervention_mean": 1.5},
]


@given(broken_rows(*WHOLE))
@settings(deadline=None)
def test_whatever_a_row_holds_it_is_read_or_refused_by_its_place(row):
    place = Place("rows.jsonl", 3)
    message = refusal(question, row, place)
    assert message is None or str(place) in message
