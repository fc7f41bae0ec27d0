"""Claims: verdicts from paired seeds, controls and margins, and the laboratory that runs and keeps them."""

from __future__ import annotations

import json
import math

import pytest

from posttrain import systems
from posttrain.lab.claim import Claim, as_json, as_table, paired_interval
from posttrain.cli import laboratory, main
from posttrain.lab.arms import Job, Notebook, run_all
from posttrain.lab.picture import dots, ticks


def values(new, old, measure: str = "accuracy"):
    return {
        arm: {seed: {"measures": {measure: value}, "cpu_s": 30.0} for seed, value in enumerate(found)}
        for arm, found in (("new", new), ("old", old))
    }


def judged(new, old, **options):
    return Claim("gain", "Table 1", "accuracy", "new", "old", **options).judged(values(new, old), range(len(new)))


LEVEL = [0.50, 0.51, 0.52, 0.53, 0.54]


@pytest.mark.parametrize(
    ("gap", "noise", "options", "verdict"),
    [
        (0.1, 0.0, {}, "holds"),
        (0.1, 0.0, {"larger": False}, "reversed"),
        (-0.1, 0.01, {}, "reversed"),
        (0.01, 0.2, {}, "not separated"),
        (-0.01, 0.001, {"margin": 0.05}, "holds"),  # no worse than
        (0.03, 0.001, {"margin": -0.05}, "not separated"),  # by 0.05 at least: it leads by less
        (-0.03, 0.001, {"margin": -0.05}, "reversed"),
        (0.07, 0.001, {"margin": -0.05}, "holds"),
    ],
)
def test_verdicts(gap, noise, options, verdict):
    new = [value + gap + noise * (-1) ** i for i, value in enumerate(LEVEL)]
    assert judged(new, LEVEL, **options).verdict == verdict


def test_one_seed_separates_nothing():
    found = judged([0.9], [0.1])
    assert found.verdict == "not separated"
    assert "**not separated**" in as_table([found])
    assert json.loads(as_json({"s": [found]}))[0]["low"] is None


def test_the_interval_is_students():
    # 1, 2, 3: mean 2, standard error 0.5774, t(2) = 4.303
    low, high = paired_interval([1.0, 2.0, 3.0])
    assert (low, high) == (pytest.approx(2 - 4.303 * 1 / math.sqrt(3)), pytest.approx(2 + 4.303 * 1 / math.sqrt(3)))


def test_a_number_or_another_measure_as_the_baseline():
    against = Claim("law", "Eq. 6", "accuracy", "new", 0.4, control=True).judged(values(LEVEL, LEVEL), range(5))
    assert against.verdict == "holds"
    assert against.cpu_s == 150.0  # of one arm
    assert "*control:* law" in as_table([against])
    both = {"new": {0: {"measures": {"peak": 0.9, "end": 0.2}, "cpu_s": 1.0}}}
    falls = Claim("falls", "Fig. 4", "peak", "new", "new", against="end").judged(both, [0])
    assert falls.difference()[0] == pytest.approx(0.7)
    assert falls.cpu_s == 1.0


def test_the_table_tells_what_was_measured():
    table = as_table([judged([v + 0.1 for v in LEVEL], LEVEL, margin=0.02)])
    for part in ("gain", "accuracy, within 0.02", "new 0.620", "old 0.520", "+0.100", "**holds**", "5.0"):
        assert part in table


def test_every_claim_names_arms_that_its_system_has():
    for name in systems.names():
        module = systems.load(name)
        for claim in module.CLAIMS:
            assert set(claim.arms) <= set(module.ARMS), (name, claim.name)
        assert len({claim.name for claim in module.CLAIMS}) == len(module.CLAIMS)


def test_what_is_known_is_not_run_again(tmp_path, monkeypatch):
    asked: list[Job] = []

    def outcomes(jobs, workers):
        for job in jobs:
            asked.append(job)
            if len(asked) == 3:
                raise KeyboardInterrupt
            yield job, {"measures": {"m": float(job.seed)}, "cpu_s": 0.1}

    monkeypatch.setattr(laboratory, "outcomes", outcomes)
    arms = {"grpovi": ["a", "b"]}
    with pytest.raises(KeyboardInterrupt):
        run_all(arms, range(2), tmp_path)
    found = run_all(arms, range(2), tmp_path)
    assert found["grpovi"]["b"][1]["measures"] == {"m": 1.0}
    assert [(job.arm, job.seed) for job in asked] == [("a", 0), ("a", 1), ("b", 0), ("b", 0), ("b", 1)]


def test_values_of_other_code_are_not_taken(tmp_path):
    book = Notebook(tmp_path, "grpovi", quick=False)
    book.write(Job("grpovi", "a", 0, False), {"measures": {}, "cpu_s": 1.0})
    assert Notebook(tmp_path, "grpovi", quick=False).values == {"a": {0: {"measures": {}, "cpu_s": 1.0}}}
    written = json.loads(book.path.read_text())
    book.path.write_text(json.dumps(written | {"code": "another"}))
    again = Notebook(tmp_path, "grpovi", quick=False)
    assert (again.values, again.stale) == ({}, True)


def test_an_arm_that_raises_is_named(tmp_path):
    with pytest.raises(KeyError) as raised:
        run_all({"grpovi": ["no such arm"]}, [3], tmp_path, quick=True, workers=1)
    assert "raised by the arm 'no such arm' of grpovi, seed 3" in raised.value.__notes__


@pytest.mark.slow
def test_every_arm_of_every_system_runs_quickly(tmp_path, capsys):
    """`posttrain claims --quick`: one seed of everything, in processes of their own; and again, from what is kept."""
    page = tmp_path / "docs" / "claims.md"
    page.parent.mkdir()
    main(["claims", "--quick", "--out", str(tmp_path / "values"), "--write", str(page)])
    shown = capsys.readouterr().out
    for name in systems.names():
        assert systems.first_line(name) in shown
        assert (page.parent / "systems" / f"{name.replace('_', '-')}.svg").read_text().startswith("<svg")
    assert "not separated" in page.read_text()
    found = json.loads(page.with_suffix(".json").read_text())
    assert len(found) == sum(len(systems.load(name).CLAIMS) for name in systems.names())
    main(["claims", "--quick", "--out", str(tmp_path / "values")])


def test_an_unknown_system_is_named(capsys):
    with pytest.raises(SystemExit):
        main(["claims", "entropi"])
    assert "did you mean entropy?" in capsys.readouterr().err


def test_the_picture_shows_every_arm():
    shown = dots("accuracy", {"a <b>": [0.1, 0.2, 0.3], "c": [0.5], "none": [math.nan]})
    assert "a &lt;b&gt;" in shown
    assert shown.count("<circle") == 3 + 1 + 2  # seeds, and means
    assert ">none<" not in shown
    assert ticks(0.0, 1.0) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]


def test_the_page_of_claims_keeps_what_other_systems_say():
    from posttrain.systems import claims_page

    def values(cpu_s):
        return {"arm": {0: {"measures": {}, "cpu_s": cpu_s}}}

    first = claims_page({"q_rm": "| q |", "rl_wall": "| r |"}, {"q_rm": values(60), "rl_wall": values(120)}, 5)
    assert first.index("## q-rm") < first.index("## rl-wall")
    assert "in 3 CPU minutes" in first
    assert "posttrain claims q-rm rl-wall --seeds 5" in first
    again = claims_page({"entropy": "| e |"}, {"entropy": values(600)}, 5, first)
    renewed = claims_page({"entropy": "| e2 |"}, {"entropy": values(30)}, 5, again)
    for page, kept in ((again, "| e |"), (renewed, "| e2 |")):
        assert [text in page for text in (kept, "| q |", "| r |")] == [True] * 3
        assert page.count("## ") == 3
    assert "| e |" not in renewed
    assert claims_page({}, {}, 5, renewed) == renewed, "and writing it again changes nothing"
    assert "in 4 CPU minutes" in renewed


def test_rows_of_other_systems_stay_in_the_json():
    before = [{"system": "z", "claim": "old"}, {"system": "s", "claim": "stale"}]
    found = Claim("c", "says", "m", "a", 0.0).judged({"a": {0: {"measures": {"m": 1.0}, "cpu_s": 1.0}}}, [0])
    rows = json.loads(as_json({"s": [found]}, before))
    assert [(row["system"], row["claim"]) for row in rows] == [("s", "c"), ("z", "old")]
