"""Every example runs as it stands, and the README's Python does too."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import processes
import pytest

ROOT = Path(__file__).parent.parent
ELSEWHERE = ("make_questions.py", "gsm8k_notes.py", "own_system.py")  # the last runs in test_bridge.py
OWN = sorted(p.name for p in (ROOT / "examples").glob("*.py") if p.name not in ELSEWHERE)
pytestmark = pytest.mark.slow


def python(*arguments: str, cwd: Path) -> str:
    found = processes.ran([sys.executable, *arguments], cwd=cwd, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert found.returncode == 0, found.stderr
    return found.stderr


def test_the_issue_of_examples_is_covered():
    assert set(OWN) == {
        "own_reward.py",
        "own_advantage.py",
        "own_loss.py",
        "own_recipe.py",
        "tool_environment.py",
        "judge.py",
        "owned_loop.py",
        "curriculum.py",
    }


@pytest.mark.parametrize("name", OWN)
def test_examples_run(name, tmp_path):
    assert "step 2/2" in python(str(ROOT / "examples" / name), "2", cwd=tmp_path)
    [out] = (tmp_path / "runs").iterdir()
    assert (out / "model" / "config.json").is_file()


def test_the_readmes_python_runs(tmp_path):
    block = re.search(r"```python\n(import posttrain as pt\n.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block is not None
    program = block.group(1).replace("Qwen/Qwen2.5-0.5B-Instruct", "tiny").replace("steps=200", "steps=2")
    (tmp_path / "questions.jsonl").write_text('{"question": "What is 4+5?", "answer": "9"}\n')
    (tmp_path / "program.py").write_text(program)
    python("program.py", cwd=tmp_path)
    assert (tmp_path / "runs" / "first" / "model" / "model.safetensors").is_file()


def test_gsm8k_notes_become_questions(tmp_path):
    line = (
        '{"question": "q", "answer": "Sold 48/2 = <<48/2=24>>24.\\nIn all <<48+24=72>>72 and <<5*12=60>>.\\n#### 72"}\n'
    )
    (tmp_path / "train.jsonl").write_text(line)
    python(str(ROOT / "examples" / "gsm8k_notes.py"), "train.jsonl", "out", cwd=tmp_path)
    text = (tmp_path / "out" / "questions.jsonl").read_text()
    assert '"What is 48+24?", "answer": "72"' in text
    assert "48/2" not in text
