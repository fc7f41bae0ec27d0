"""Claims: verdicts from paired seeds, resumable, printed with intervals."""

from __future__ import annotations

import json
import math

import pytest

from posttrain.claim import Claim, as_json, as_table, paired_interval, run_claim


def claim(gap: float, noise=lambda seed: 0.0, larger: bool = True) -> Claim:
    arms = {"new": lambda seed: 0.5 + gap + 0.01 * seed + noise(seed), "old": lambda seed: 0.5 + 0.01 * seed}
    return Claim("gain", "new beats old (Table 1)", "accuracy", "new", "old", arms, larger)


@pytest.mark.parametrize(
    ("gap", "noise", "larger", "verdict"),
    [
        (0.1, lambda seed: 0.0, True, "holds"),
        (0.1, lambda seed: 0.0, False, "reversed"),
        (-0.1, lambda seed: 0.01 * (-1) ** seed, True, "reversed"),
        (0.01, lambda seed: 0.2 * (-1) ** seed, True, "not separated"),
    ],
)
def test_verdicts(gap, noise, larger, verdict):
    assert run_claim(claim(gap, noise, larger), range(5)).verdict == verdict


def test_one_seed_separates_nothing():
    found = run_claim(claim(0.1), [0])
    assert found.verdict == "not separated"
    assert "not separated" in as_table([found])
    assert json.loads(as_json([found]))[0]["low"] is None


def test_the_interval_is_students():
    # 1, 2, 3: mean 2, standard error 0.5774, t(2) = 4.303
    low, high = paired_interval([1.0, 2.0, 3.0])
    assert (low, high) == (pytest.approx(2 - 4.303 * 1 / math.sqrt(3)), pytest.approx(2 + 4.303 * 1 / math.sqrt(3)))


def test_an_interrupted_claim_computes_nothing_twice(tmp_path):
    calls: list[tuple[str, int]] = []

    def arm(name, fail_at):
        def run(seed):
            if (name, seed) == fail_at:
                raise RuntimeError("killed")
            calls.append((name, seed))
            return float(seed)

        return run

    def build(fail_at):
        return Claim("c", "s", "m", "new", "old", {name: arm(name, fail_at) for name in ("new", "old")})

    out = tmp_path / "deep" / "c.json"
    with pytest.raises(RuntimeError):
        run_claim(build(("old", 1)), range(3), out)
    found = run_claim(build(None), range(3), out)
    assert len(calls) == len(set(calls)) == 6
    assert found.values == {"new": [0.0, 1.0, 2.0], "old": [0.0, 1.0, 2.0]}


def test_the_table_reads():
    table = as_table([run_claim(claim(0.1), range(3))])
    assert "| gain | accuracy, 3 seeds | new 0.610" in table
    assert "+0.100 [0.100, 0.100] | **holds**" in table
    with pytest.raises(ValueError, match="compares the arm 'newer'"):
        Claim("c", "s", "m", "newer", "old", {"new": float, "old": float})
