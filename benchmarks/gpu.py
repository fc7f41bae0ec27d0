"""What of posttrain works on one GPU, and how fast: at most eight minutes, every result written as soon as it is known.

    python benchmarks/gpu.py                          all parts, on CUDA; results in runs/gpu
    python benchmarks/gpu.py --parts correct,step     some of them
    python benchmarks/gpu.py --device cpu --quick     the same code on tiny shapes, to try it without a GPU

Every part is a process of its own with a deadline: a crash, a wait without end or memory that runs out loses that part
alone. results.json is written anew after each (and within a part after each case), so that a kill loses little.
`--minutes` stops starting new parts.

On a lent machine in one command: everything but torch travels as wheels where that machine has no internet. Here,
once, into a folder that the machine is given along with the repository (the versions of Python and of the platform are
the machine's; --no-deps where torch is there already):

    pip download --only-binary=:all: --no-deps --python-version 3.12 --platform manylinux_2_28_x86_64 \
        --platform manylinux2014_x86_64 -d .whl transformers==5.24.0 tokenizers huggingface-hub safetensors \
        lazy-loader tyro shtab docstring-parser math-verify latex2sympy2-extended antlr4-python3-runtime==4.13.2 \
        plotly narwhals peft diffusers hypothesis sortedcontainers datasets dill multiprocess trl==1.16.0

and there:

    python3 -m pip install -q --no-index --no-deps --upgrade --target /tmp/site .whl/*.whl
    PYTHONPATH=/tmp/site:. PYTHONUNBUFFERED=1 python3 benchmarks/gpu.py --minutes 8 --out ${OUT:-runs/gpu}

The parts are ordered by what is least wanted to be lost; all of them take longer than eight minutes, so that a second
machine may be given the rest: --parts "step 0.5B tf32,step 0.5B bfloat16+,step 0.5B float32,step 1.5B bfloat16+".

With internet: `pip install -e .[test]` in place of the first. What is missing (peft, diffusers, trl, pytest) is said of
the part that needs it, and the others run. Nothing is downloaded: models are made on the device, from random weights.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_report import markdown

HERE = Path(__file__).parent
TESTS = ("core", "fast", "generate", "descent", "loss", "vision", "diffusion", "entropy", "q_rm", "preference")


@dataclass(frozen=True)
class Part:
    """A process to run, at most so many seconds."""

    name: str
    program: str  # beside this file; "tests": pytest
    arguments: tuple[str, ...]
    seconds: float


def steps(size: str, dtypes: tuple[str, ...], seconds: float) -> list[Part]:
    return [Part(f"step {size} {dtype}", "gpu_step.py", (size, dtype), seconds) for dtype in dtypes]


def parts() -> list[Part]:
    """In the order of what is least wanted to be lost."""
    return [
        Part("correct", "gpu_correct.py", (), 100),
        *steps("0.5B", ("bfloat16",), 75),
        *steps("1.5B", ("bfloat16",), 90),
        Part("trl 0.5B bfloat16", "gpu_trl.py", ("0.5B", "bfloat16"), 100),
        Part("head", "gpu_step.py", ("0.5B", "head"), 40),
        Part("tests", "tests", (), 120),
        *steps("0.5B", ("tf32", "bfloat16+tf32"), 75),
        *steps("0.5B", ("float32",), 100),
        *steps("1.5B", ("bfloat16+tf32", "tf32"), 90),
        Part("trl 1.5B bfloat16", "gpu_trl.py", ("1.5B", "bfloat16"), 120),
        *steps("1.5B", ("float32",), 180),
    ]


def command(part: Part, given: argparse.Namespace, file: Path) -> list[str]:
    if part.program == "tests":
        files = [str(HERE.parent / "tests" / f"test_{name}.py") for name in given.tests.split(",")]
        plain = ("-o", "addopts=--strict-markers", "-W", "default", "-p", "no:cacheprovider")  # warnings fail no test
        return [sys.executable, "-m", "pytest", "-v", "--tb=short", "-rfE", *plain, *files]
    quick = ("--quick",) if given.quick else ()
    return [
        sys.executable,
        str(HERE / part.program),
        *part.arguments,
        "--device",
        given.device,
        *quick,
        "--to",
        str(file),
    ]


def run(part: Part, given: argparse.Namespace, work: Path, seconds: float) -> dict[str, Any]:
    """What the part wrote, and how it ended: `ok`, `failure`, `out of memory`, or `out of time`."""
    name = part.name.replace(" ", "-")
    file, log = work / f"{name}.json", work / f"{name}.log"
    path = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    more = {"PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    more |= {"POSTTRAIN_TEST_DEVICE": given.device, "COLUMNS": "240"}
    clock = time.perf_counter()
    with log.open("w") as stream:
        process = subprocess.Popen(
            command(part, given, file),
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**os.environ, **more},
            cwd=HERE.parent,
            start_new_session=True,
        )
        try:
            code = process.wait(seconds)
            ended = "ok" if code == 0 else "failed"
        except subprocess.TimeoutExpired:
            ended = "out of time"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    text = log.read_text(errors="replace")
    if ended == "failed" and "OutOfMemoryError" in text:
        ended = "out of memory"
    found: dict[str, Any] = {"ended": ended, "seconds": round(time.perf_counter() - clock, 1)}
    if ended != "ok":
        found["log"] = text[-1500:]
    return found | (tested(text) if part.program == "tests" else written(file))


def written(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return {}


def tested(log: str) -> dict[str, Any]:
    """Counts of the tests by pytest's lines, also of a run that was cut short; why those that failed did."""
    ends = dict(re.findall(r"^(\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED)\b", log, re.MULTILINE))
    counts = Counter(ends.values())
    why = {name: text[:200] for name, text in re.findall(r"^(?:FAILED|ERROR) (\S+::.+?) - (.*)$", log, re.MULTILINE)}
    failures = {name: why.get(name, "") for name, end in ends.items() if end in ("FAILED", "ERROR")}
    return {"passed": counts["PASSED"], "failed": len(failures), "skipped": counts["SKIPPED"], "failures": failures}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/gpu", help="folder of results.json and report.md")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny shapes and two steps: whether the code runs")
    parser.add_argument("--minutes", type=float, default=8.0, help="after which no part is started, or goes on")
    parser.add_argument(
        "--parts", default="", help="names, or beginnings of names, with commas between them; empty: all"
    )
    parser.add_argument("--tests", default=",".join(TESTS), help="test files of the part `tests`")
    given = parser.parse_args()
    out, end = Path(given.out).absolute(), time.perf_counter() + 60 * given.minutes
    out.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="posttrain-gpu-"))  # of the parts' own files: a lent machine returns a few
    print(f"logs of the parts: {work}", flush=True)
    wanted = tuple(filter(None, given.parts.split(",")))
    results: dict[str, Any] = {"device": given.device, "quick": given.quick, "parts": {}, "not run": []}
    for part in parts():
        left = end - time.perf_counter()
        if wanted and not part.name.startswith(wanted):
            results["not run"].append(f"{part.name}: not asked for")
        elif left < min(20, part.seconds):
            results["not run"].append(f"{part.name}: the {given.minutes:g} minutes were over")
        else:
            found = run(part, given, work, min(part.seconds, left))
            results["parts"][part.name] = found
            print(f"{part.name}: {found['ended']}, {found['seconds']} s", flush=True)
        scratch = out / ".results.json"
        scratch.write_text(json.dumps(results, indent=1))
        scratch.replace(out / "results.json")
        (out / "report.md").write_text(markdown(results))
    print(markdown(results))


if __name__ == "__main__":
    main()
