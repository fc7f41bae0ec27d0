"""The benchmark of a GPU, tried on the CPU: its parts run, are written down, and count what they should."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(HERE))


def test_a_step_is_measured_and_written_down(tmp_path):
    command = [sys.executable, str(HERE / "gpu.py"), "--device", "cpu", "--quick", "--out", str(tmp_path)]
    done = subprocess.run([*command, "--parts", "step 1.5B bfloat16+tf32"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    parts = results["parts"]
    assert {name: part["ended"] for name, part in parts.items()} == dict.fromkeys(parts, "ok")
    step = parts["step 1.5B bfloat16+tf32"]
    assert (step["fast_sampling"], step["lines"], step["counted_steps"]) == (True, True, 3)
    assert step["tokens"] == 3 * 4 * 6  # tasks, samples, tokens: no reply ends early
    assert "tests: not asked for" in results["not run"]
    assert "| step 1.5B bfloat16+tf32 | 3 |" in (tmp_path / "report.md").read_text()


def test_what_is_counted():
    from gpu_model import SHAPES, Shape, decoding_bytes, distinct_operations, learning_operations, peaks

    assert SHAPES["0.5B"].parameters == pytest.approx(0.494e9, rel=1e-3)  # as published
    assert SHAPES["1.5B"].parameters == pytest.approx(1.544e9, rel=1e-3)
    one = Shape(2, 1, 1, 1, 2, vocabulary=10, tasks=1, samples=1, prompt=0, new=4)
    # trunk 16 + 12 = 28, logits 20, pairs 4 * 4 / 2 = 8
    assert learning_operations(one) == distinct_operations(one) == 6 * 48 * 4 + 12 * 1 * 2 * 8
    # weights 28 numbers of 2 bytes, logits 20 of 4, keys and values of 2 tokens, 4 numbers each
    assert decoding_bytes(one, 1, 2) == 56 + 80 + 16
    assert peaks("NVIDIA H200") == (989e12, 495e12, 67e12, 4.8e12)
    assert peaks("a GPU of tomorrow") is None


def test_tests_that_were_cut_short_are_counted():
    from gpu import tested

    log = "tests/test_a.py::test_x PASSED [ 3%]\ntests/test_a.py::test_y[a b] FAILED [ 6%]\n"
    assert tested(log) == {"passed": 1, "failed": 1, "skipped": 0, "failures": {"tests/test_a.py::test_y[a b]": ""}}
    whole = log + "FAILED tests/test_a.py::test_y[a b] - AssertionError: cuda:0 != cpu\n"
    assert tested(whole)["failures"] == {"tests/test_a.py::test_y[a b]": "AssertionError: cuda:0 != cpu"}
