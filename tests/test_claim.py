"""Claims: verdicts from paired seeds, controls and margins, and the laboratory that runs and keeps them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_systems import shrink

from posttrain import systems
from posttrain.cli import main
from posttrain.lab import arms as laboratory
from posttrain.lab.arms import Job, Notebook, run_all, run_job
from posttrain.lab.claim import (
    Claim,
    as_json,
    as_table,
    claims,
    paired_interval,
    stored_finding,
    student_quantile,
)
from posttrain.lab.headline import headline_table
from posttrain.lab.page import DOCS, sections_of
from posttrain.lab.picture import dots, ticks

SHARE = (0.0, 1.0)
NAMES = [one.name for one in systems.every()]


def values(new, old, measure: str = "accuracy"):
    return {
        arm: {seed: {"measures": {measure: value}, "cpu_s": 30.0} for seed, value in enumerate(found)}
        for arm, found in (("new", new), ("old", old))
    }


def judged(new, old, **options):
    return Claim("gain", "Table 1", "accuracy", "new", "old", **options).finding(values(new, old), range(len(new)))


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


ONES, ZEROS = [1.0] * 5, [0.0] * 5
NEARLY = [0.99, 1.0, 1.0, 0.98, 1.0]


@pytest.mark.parametrize(
    ("new", "old", "options", "verdict"),
    [
        (ONES, ONES, {}, "not testable here"),
        (ZEROS, ZEROS, {"larger": False}, "not testable here"),
        (ONES, ONES, {"margin": 0.05}, "not testable here"),  # no worse than an arm that could not be better
        (ONES, ONES, {"margin": -0.05}, "not testable here"),
        (ONES, ZEROS, {}, "holds"),  # at either bound, and different
        (LEVEL, LEVEL, {}, "not separated"),  # equal, and not at a bound: seeds differ
        (LEVEL, LEVEL, {"margin": 0.05}, "holds"),
        (NEARLY, ONES, {}, "not separated"),  # nobody said that there is a ceiling
        (NEARLY, ONES, {"bounds": SHARE}, "not testable here"),
        (NEARLY, ONES, {"bounds": SHARE, "margin": 0.05}, "not testable here"),
        (NEARLY, ONES, {"bounds": (0.0, 2.0)}, "not separated"),
        ([100 * v for v in NEARLY], [100.0] * 5, {"bounds": (0.0, 100.0)}, "not testable here"),
        ([0.01, 0.0, 0.0, 0.02, 0.0], ZEROS, {"bounds": SHARE}, "not testable here"),
        ([0.5] * 5, [0.5] * 5, {"bounds": SHARE}, "not separated"),
        ([0.985, 0.984, 0.986, 0.985, 0.985], ONES, {"bounds": SHARE}, "reversed"),  # they can differ: they do
        ([0.985, 0.984, 0.986, 0.985, 0.985], ONES, {"bounds": SHARE, "margin": 0.05}, "holds"),
        ([0.97, 0.99, 0.95, 0.97, 1.0], ONES, {"bounds": SHARE}, "not separated"),  # 2.4 % below the ceiling
    ],
)
def test_arms_that_cannot_differ_are_not_testable(new, old, options, verdict):
    assert judged(new, old, **options).verdict == verdict


def test_against_a_number_there_is_always_a_verdict():
    solver = Claim("exact", "Theorem 1", "accuracy", "new", 0.0, margin=1e-12).finding(values(ZEROS, ZEROS), range(5))
    assert solver.verdict == "holds"
    assert Claim("all", "Table 1", "accuracy", "new", 1.0).finding(values(ONES, ONES), range(5)).verdict != "holds"


def test_one_seed_separates_nothing():
    found = judged([0.9], [0.1])
    assert found.verdict == "not separated"
    assert found.detectable == math.inf
    assert "| – | **not separated**" in as_table([found])
    row = json.loads(as_json({"s": [found]}))[0]
    assert (row["low"], row["detectable"]) == (None, None)


@pytest.mark.parametrize(
    ("level", "freedom", "value"),  # printed tables of Student's t
    [
        (0.975, 1, 12.7062),
        (0.975, 2, 4.3027),
        (0.975, 3, 3.1824),
        (0.975, 4, 2.7764),
        (0.975, 9, 2.2622),
        (0.975, 30, 2.0423),
        (0.975, 120, 1.9799),
        (0.8, 1, 1.3764),
        (0.8, 2, 1.0607),
        (0.8, 4, 0.9410),
        (0.8, 9, 0.8834),
        (0.995, 5, 4.0321),
    ],
)
def test_quantiles_are_students(level, freedom, value):
    assert student_quantile(level, freedom) == pytest.approx(value, abs=6e-5)


def test_the_interval_is_students():
    # 1, 2, 3: mean 2, standard error 0.5774, t(2) = 4.3027
    half = 4.3027 / math.sqrt(3)
    assert paired_interval([1.0, 2.0, 3.0]) == (pytest.approx(2 - half, abs=1e-4), pytest.approx(2 + half, abs=1e-4))


@pytest.mark.parametrize("options", [{}, {"larger": False}, {"margin": 0.05}])
def test_the_detectable_difference_is_that_of_the_paired_test(options):
    # differences 0.1, 0.2, 0.3, 0.4, 0.5: deviation 0.15811, standard error 0.07071, t(4) = 2.7764 and 0.9410
    new = [value + 0.1 * (i + 1) for i, value in enumerate(LEVEL)]
    found = judged(new, LEVEL, **options)
    assert found.detectable == pytest.approx((2.7764 + 0.9410) * 0.0707107, abs=1e-5)
    assert "| 0.263 | **" in as_table([found])
    assert json.loads(as_json({"s": [found]}))[0]["detectable"] == pytest.approx(0.26286, abs=1e-5)


def test_a_difference_that_is_detectable_is_found_four_times_out_of_five():
    import random

    draw = random.Random(0)
    noise = [[draw.gauss(0, 0.1) for _ in range(5)] for _ in range(2000)]
    size = 3.7174 * 0.1 / math.sqrt(5)
    found = sum(paired_interval([size + v for v in one])[0] > 0 for one in noise)
    assert 0.75 < found / 2000 < 0.85


def test_nothing_is_detectable_where_arms_cannot_differ():
    found = judged(ONES, ONES)
    assert "| – | **not testable here**" in as_table([found])
    assert json.loads(as_json({"s": [found]}))[0]["detectable"] is None


def test_a_number_or_another_measure_as_the_baseline():
    against = Claim("law", "Eq. 6", "accuracy", "new", 0.4, control=True).finding(values(LEVEL, LEVEL), range(5))
    assert against.verdict == "holds"
    assert against.cpu_s == 150.0  # of one arm
    assert "*control:* law" in as_table([against])
    both = {"new": {0: {"measures": {"peak": 0.9, "end": 0.2}, "cpu_s": 1.0}}}
    falls = Claim("falls", "Fig. 4", "peak", "new", "new", against="end").finding(both, [0])
    assert falls.difference()[0] == pytest.approx(0.7)
    assert falls.cpu_s == 1.0


def test_the_table_tells_what_was_measured():
    table = as_table([judged([v + 0.1 for v in LEVEL], LEVEL, margin=0.02)])
    for part in ("gain", "accuracy, within 0.02", "new 0.620", "old 0.520", "+0.100", "**holds**", "5.0"):
        assert part in table


def test_every_claim_names_arms_that_its_system_has():
    for found in systems.every():
        for claim in found.claims:
            assert set(claim.arms) <= set(found.arms), (found.name, claim.name)
        assert len({claim.name for claim in found.claims}) == len(found.claims)


def arms(*names: str) -> Any:
    """GRPOVI with arms of these names."""
    return SimpleNamespace(name="grpovi", file=systems.system("grpovi").file, arms=names)


def test_what_is_known_is_not_run_again(tmp_path, monkeypatch):
    asked: list[Job] = []

    def outcomes(jobs, workers):
        for job in jobs:
            asked.append(job)
            if len(asked) == 3:
                raise KeyboardInterrupt
            yield job, {"measures": {"m": float(job.seed)}, "cpu_s": 0.1}

    monkeypatch.setattr(laboratory, "outcomes", outcomes)
    with pytest.raises(KeyboardInterrupt):
        run_all([arms("a", "b")], range(2), tmp_path)
    found = run_all([arms("a", "b")], range(2), tmp_path)
    assert found["grpovi"]["b"][1]["measures"] == {"m": 1.0}
    assert [(job.arm, job.seed) for job in asked] == [("a", 0), ("a", 1), ("b", 0), ("b", 0), ("b", 1)]


def test_values_of_other_code_are_not_taken(tmp_path):
    book = Notebook(tmp_path, systems.system("grpovi"), quick=False)
    book.write(Job("grpovi", "a", 0, False), {"measures": {}, "cpu_s": 1.0})
    assert Notebook(tmp_path, systems.system("grpovi"), quick=False).values == {
        "a": {0: {"measures": {}, "cpu_s": 1.0}}
    }
    written = json.loads(book.path.read_text())
    book.path.write_text(json.dumps(written | {"code": "another"}))
    again = Notebook(tmp_path, systems.system("grpovi"), quick=False)
    assert (again.values, again.stale) == ({}, True)


def test_an_arm_that_raises_is_named(tmp_path):
    with pytest.raises(KeyError) as raised:
        run_all([arms("no such arm")], [3], tmp_path, quick=True, workers=1)
    assert "raised by the arm 'no such arm' of grpovi, seed 3" in raised.value.__notes__


SLOW = {  # more than about eight seconds of a core for all arms together
    "afterburner",
    "diversity",
    "entropy",
    "mm-upt",
    "pangu-embedded",
    "q-rm",
    "reward-fairness",
    "rl-wall",
    "srrl",
}


def test_claims_are_read_as_they_are_written():
    text = """
        KL-Cov beats GRPO
            paper: 7B average 40.6 against 38.6
            accuracy: kl_cov > grpo
        a second look costs no accuracy
            ours: nobody measured it; here within 0.05,
            over all questions
            accuracy in [0, 1]: SFT + RL, twice > SFT + RL - 0.05
        it takes fewer tokens, by at least ten
            paper: Fig. 3
            tokens: auto < all tokens: slow - 10
        it may take a few more
            paper: Fig. 3
            tokens: auto < slow + 10
        the law holds
            paper: Eq. 6
            law R2: grpo > 0.4 + 0.1
    """
    nobody = "nobody measured it; here within 0.05, over all questions"
    assert claims(text) == (
        Claim("KL-Cov beats GRPO", "7B average 40.6 against 38.6", "accuracy", "kl_cov", "grpo"),
        Claim(
            *("a second look costs no accuracy", nobody, "accuracy", "SFT + RL, twice", "SFT + RL"),
            margin=0.05,
            control=True,
            bounds=SHARE,
        ),
        Claim(
            *("it takes fewer tokens, by at least ten", "Fig. 3", "tokens", "auto", "slow"),
            against="all tokens",
            larger=False,
            margin=-10.0,
        ),
        Claim("it may take a few more", "Fig. 3", "tokens", "auto", "slow", larger=False, margin=10.0),
        Claim("the law holds", "Eq. 6", "law R2", "grpo", 0.4, margin=-0.1),
    )
    for wrong in ("it is so\n  Table 1\n  accuracy: a > b", "it is so\n  paper: Table 1\n  accuracy: a beats b"):
        with pytest.raises(ValueError, match=r"the claim 'it is so': below it stand `paper: WHAT IT SAYS`"):
            claims(wrong)


@pytest.mark.parametrize("name", NAMES)
def test_claims_compare_arms_that_there_are(name):
    system = systems.system(name)
    assert {arm for claim in system.claims for arm in claim.arms} <= set(system.arms)


ALIKE = (  # as another arm is, with another number
    "pangu-embedded synchronous",
    *(
        f"emotion-o1 {arm}"
        for arm in ("fixed long", "without structure", "without redundancy", "structure alone, gated")
    ),
)


def every_arm() -> Iterator[Any]:
    for name in NAMES:
        for arm in systems.system(name).arms:
            if f"{name} {arm}" in ALIKE:
                continue
            yield pytest.param(name, arm, id=f"{name} {arm}", marks=pytest.mark.slow if name in SLOW else ())


@pytest.mark.parametrize(("name", "arm"), every_arm())
def test_every_arm_runs_quickly_and_has_what_claims_compare(name, arm, monkeypatch):
    """As by `posttrain claims --quick`, in this process, and with the system's constants for a smoke test."""
    shrink(monkeypatch, systems.system(name))
    found = run_job(Job(name, arm, 0, quick=True))["measures"]
    for claim in systems.system(name).claims:
        wanted = [claim.measure] if claim.better == arm else []
        wanted += [claim.against or claim.measure] if claim.baseline == arm else []
        assert all(math.isfinite(found[measure]) for measure in wanted), claim.name


@pytest.mark.slow
def test_claims_are_run_in_processes_and_written(tmp_path, capsys):
    page = tmp_path / "docs" / "claims.md"
    page.parent.mkdir()
    options = ["claims", "grpovi", "--quick", "--out", str(tmp_path / "values")]
    main([*options, "--write", str(page)])
    assert systems.system("grpovi").first_line in capsys.readouterr().out
    assert (page.parent / "systems" / "grpovi.svg").read_text().startswith("<svg")
    assert "not separated" in page.read_text()
    rows = json.loads(page.with_suffix(".json").read_text())
    assert [row["claim"] for row in rows] == [claim.name for claim in systems.system("grpovi").claims]
    main(options)  # from what is kept
    kept, (_, _, written) = capsys.readouterr().out, page.read_text().partition("\n## ")
    assert [line for line in kept.splitlines() if line.startswith("|")] == [
        line for line in written.splitlines() if line.startswith("|")
    ]


@pytest.mark.parametrize("name", NAMES)
def test_the_documents_say_what_today_s_claims_say_of_the_kept_values(name, tmp_path):
    """After a rewording or another rule of verdicts: `posttrain claims --rejudge --write docs/claims.md`."""
    docs = Path(__file__).parent.parent / "docs"
    page = tmp_path / "claims.md"
    for path in (page, page.with_suffix(".json")):
        path.write_text((docs / path.name).read_text())
    main(["claims", name, "--rejudge", "--write", str(page)])
    for path in (page, page.with_suffix(".json")):
        assert path.read_text() == (docs / path.name).read_text()


def test_kept_values_are_found_by_what_is_compared():
    rows = json.loads(as_json({"s": [judged(ONES, LEVEL)]}))
    reworded = Claim("another name", "other words", "accuracy", "new", "old", bounds=SHARE)
    again = stored_finding(reworded, "s", rows)
    assert (again.claim, again.ours, again.theirs, again.cpu_s) == (reworded, ONES, LEVEL, 300.0)
    assert stored_finding(replace(reworded, margin=0.1), "s", rows).ours == ONES, "a margin changes no value"
    for other in (Claim("g", "T", "accuracy", "old", "new"), Claim("g", "T", "loss", "new", "old")):
        with pytest.raises(ValueError, match="s: no values are kept for the claim 'g"):
            stored_finding(other, "s", rows)
    with pytest.raises(ValueError, match="no values are kept"):
        stored_finding(reworded, "another system", rows)


def test_rejudging_needs_a_page(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["claims", "--rejudge", "--write", str(tmp_path / "none.md")])
    assert "--rejudge needs the page whose JSON file lies beside it" in capsys.readouterr().err


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
    from posttrain.lab.page import claims_page

    lines = {"q-rm": "Q", "rl-wall": "Wall", "entropy": "Entropy"}
    first = claims_page({"q-rm": "| q |", "rl-wall": "| r |"}, lines, {"q-rm": 1.0, "rl-wall": 2.0}, 5)
    assert first.index("## q-rm") < first.index("## rl-wall")
    assert "in 3 CPU minutes" in first
    assert "posttrain claims q-rm rl-wall --seeds 5" in first
    again = claims_page({"entropy": "| e |"}, lines, {"entropy": 10.0}, 5, first)
    renewed = claims_page({"entropy": "| e2 |"}, lines, {"entropy": 0.5}, 5, again)
    for page, kept in ((again, "| e |"), (renewed, "| e2 |")):
        assert [text in page for text in (kept, "| q |", "| r |")] == [True] * 3
        assert page.count("## ") == 3
    assert "| e |" not in renewed
    assert claims_page({}, lines, {}, 5, renewed) == renewed, "and writing it again changes nothing"
    assert "in 4 CPU minutes" in renewed


def test_the_page_begins_with_one_line_for_each_paper():
    """Its first claim, the verdict as its section has it, and what was seen where it does not hold."""
    ours = [systems.system(name) for name in systems.names()]
    page = (DOCS / "claims.md").read_text()
    table = headline_table(sections_of(page), {one.name: (one.headline, one.claims) for one in ours})
    assert table in page.partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.split(" | ")] for line in table.splitlines()[2:]]
    assert len(rows) == len(ours)
    for name, _, says, verdict, why in rows:
        assert says, name
        assert verdict.startswith("**holds**") or why.strip("| "), name


def test_rows_of_other_systems_stay_in_the_json():
    before = [{"system": "z", "claim": "old"}, {"system": "s", "claim": "stale"}]
    found = Claim("c", "says", "m", "a", 0.0).finding({"a": {0: {"measures": {"m": 1.0}, "cpu_s": 1.0}}}, [0])
    rows = json.loads(as_json({"s": [found]}, before))
    assert [(row["system"], row["claim"]) for row in rows] == [("s", "c"), ("z", "old")]
