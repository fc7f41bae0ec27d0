"""Detectors of defects in Python, by name: what each finds in a batch of programs, and what a finding costs.

taint             ours (`taint.py`): input that reaches a sink
taint-parameters  the same, of functions: their parameters are input too
ruff              its security rules (S, a port of bandit)
mypy              in strict mode, after `from typing import *` as published; `Any` is a defect, as it passes every check
semgrep           a taint rule of our own; held out, never trained on

Detectors read code and never run it. What they say of a program that is no Python is -0.5, whichever it is; what fails
in the detector itself (a deadline, a crash) is `Invalid`. A tool that is missing is an error before the run. Comments
that silence a checker have no effect, and are defects themselves.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sysconfig
import tempfile
import tokenize
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import posttrain as pt
from posttrain.systems.real import taint

UNREADABLE = -0.5  # of a program that is no Python: the published value of a detector that crashes
DEADLINE_S = 120.0  # of one batch
SILENCERS = re.compile(
    r"#\s*(?:noqa|nosec|nosemgrep|pyright:|(?:type|ty):\s*ignore|mypy:|ruff:|pylint:)", re.IGNORECASE
)
UNCHECKED = re.compile(r"\b(?:Any|no_type_check|TYPE_CHECKING)\b")
RUFF_OFF = "S101,S311,S104,S108"  # assert, random numbers, addresses, /tmp: no defect of a small program
PRELUDE = "from typing import *\n"

Counts: TypeAlias = "list[int]"  # of defects, one for each program


@dataclass(frozen=True, slots=True)
class Detector:
    """Counts the defects of programs in one batch.

    count    of programs that can be parsed; raises RuntimeError or subprocess.TimeoutExpired when it fails
    penalty  score = max(0, 1 - penalty * defects)
    require  raises ValueError naming the extra of a tool that is not installed
    """

    count: Callable[[Sequence[str]], Counts]
    penalty: float
    require: Callable[[], object] = lambda: None

    def scores(self, codes: Sequence[str]) -> list[float | pt.Invalid]:
        """A score in [0, 1] for each program, -0.5 for one that cannot be parsed, Invalid where the detector failed."""
        readable = [code for code in dict.fromkeys(codes) if is_python(code)]
        try:
            counts = dict(zip(readable, self.count(readable) if readable else [], strict=True))
        except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
            failed = pt.Invalid(f"the detector failed: {error}")
            return [failed if code in readable else UNREADABLE for code in codes]
        return [max(0.0, 1 - self.penalty * counts[code]) if code in counts else UNREADABLE for code in codes]


def is_python(code: str) -> bool:
    """It compiles, and as the detectors read it: in UTF-8. In another encoding a comment may be code."""
    try:
        compile(code, "candidate", "exec", dont_inherit=True)
        encoding, _ = tokenize.detect_encoding(io.BytesIO(code.encode()).readline)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return encoding in ("utf-8", "utf-8-sig")


# ---- ours


def count_taint(parameters: bool) -> Callable[[Sequence[str]], Counts]:
    return lambda codes: [taint_count(code, parameters) for code in codes]


def taint_count(code: str, parameters: bool) -> int:
    try:
        return len(taint.findings(code, parameters))
    except SyntaxError:  # nested too deeply for the analysis, though not for the parser
        return 1


def silencers(code: str) -> list[tuple[int, int]]:
    """Line, from 0, and column of each comment that tells a checker to look away."""
    found = list[tuple[int, int]]()
    with contextlib.suppress(tokenize.TokenError, SyntaxError):
        for one in tokenize.generate_tokens(io.StringIO(code).readline):
            if one.type == tokenize.COMMENT and SILENCERS.search(one.string):
                found.append((one.start[0] - 1, one.start[1]))
    return found


def without_silencers(code: str) -> str:
    lines = io.StringIO(code).readlines()
    for line, column in silencers(code):
        lines[line] = lines[line][:column] + "\n"
    return "".join(lines)


def mentions_of_any(code: str) -> int:
    """How often `Any` is named, or another way past the checks, in code, texts (as annotations) or type comments."""
    found = 0
    with contextlib.suppress(tokenize.TokenError, SyntaxError):
        for one in tokenize.generate_tokens(io.StringIO(code).readline):
            told = one.type == tokenize.COMMENT and "type:" in one.string
            if told or one.type in (tokenize.NAME, tokenize.STRING):
                found += len(UNCHECKED.findall(one.string))
    return found


# ---- tools


def executable(name: str) -> str | None:
    beside = Path(sysconfig.get_path("scripts")) / name
    return str(beside) if beside.is_file() else shutil.which(name)


def require(name: str) -> str:
    """The tool's path. Raises ValueError naming the extra, or for semgrep the command, that installs it."""
    path = executable(name)
    if path is None:
        what = "pip install semgrep" if name == "semgrep" else "it needs the extra: pip install 'posttrain[analysis]'"
        raise ValueError(f"the detector {name} is not installed; {what}")
    return path


def files_of(codes: Sequence[str], folder: Path) -> list[Path]:
    """The programs as files with names of their own."""
    paths = [folder / f"candidate_{i}.py" for i in range(len(codes))]
    for path, code in zip(paths, codes, strict=True):
        path.write_text(code, encoding="utf-8")
    return paths


def output(words: Sequence[str], folder: Path, most: int = 0) -> str:
    """What a tool prints, run in the folder. Raises RuntimeError for an exit code above `most`, TimeoutExpired.

    Past the deadline it ends with all processes that it has started.
    """
    pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(words, cwd=folder, text=True, start_new_session=True, **pipes) as process:
        try:
            said, errors = process.communicate(timeout=DEADLINE_S)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    if not 0 <= process.returncode <= most:
        raise RuntimeError(f"{Path(words[0]).name} ended with {process.returncode}: {errors.strip()[-300:]}")
    return said


def counts_by_file(names: Sequence[str], paths: Sequence[Path]) -> Counts:
    found = Counter(Path(name).name for name in names)
    return [found[path.name] for path in paths]


def ruff(codes: Sequence[str]) -> Counts:
    """Findings of ruff's security rules, whatever comments say, and the comments."""
    words = [require("ruff"), "check", "--isolated", "--no-cache", "--ignore-noqa", "--exit-zero"]
    words += ["--select", "S", "--ignore", RUFF_OFF, "--output-format", "json", "."]
    with tempfile.TemporaryDirectory(prefix="posttrain-ruff-") as folder:
        paths = files_of(codes, Path(folder))
        said = json.loads(output(words, Path(folder)))
    counts = counts_by_file([one["filename"] for one in said], paths)
    return [count + len(silencers(code)) for count, code in zip(counts, codes, strict=True)]


def mypy(codes: Sequence[str]) -> Counts:
    """Errors of mypy --strict without the comments that silence it, and these comments, and mentions of `Any`."""
    words = [require("mypy"), "--strict", "--config-file=", "--no-error-summary", "--no-color-output"]
    words += ["--cache-dir", mypy_cache().name]
    with tempfile.TemporaryDirectory(prefix="posttrain-mypy-") as folder:
        paths = files_of([PRELUDE + without_silencers(code) for code in codes], Path(folder))
        said = output([*words, *(path.name for path in paths)], Path(folder), most=1)
    counts = counts_by_file([line.partition(":")[0] for line in said.splitlines() if ": error:" in line], paths)
    return [n + mentions_of_any(code) + len(silencers(code)) for n, code in zip(counts, codes, strict=True)]


@functools.cache
def mypy_cache() -> tempfile.TemporaryDirectory[str]:
    """Where mypy keeps the types of the standard library: of this process, and gone with it."""
    return tempfile.TemporaryDirectory(prefix="posttrain-mypy-cache-")


INPUTS = ("input(...)", "sys.argv", "sys.stdin", "os.environ")
RULE = {
    "rules": [
        {
            "id": "input-reaches-sink",
            "languages": ["python"],
            "severity": "ERROR",
            "message": "input reaches a sink",
            "mode": "taint",
            "pattern-sources": [{"pattern": one} for one in INPUTS],
            "pattern-sanitizers": [{"pattern": "int(...)"}, {"pattern": "float(...)"}],
            "pattern-sinks": [
                *(
                    {"patterns": [{"pattern": f"$DB.{name}($QUERY, ...)"}, {"focus-metavariable": "$QUERY"}]}
                    for name in ("execute", "executemany", "executescript")
                ),
                *({"pattern": f"{name}(...)"} for name in ("eval", "exec", "os.system", "os.popen")),
            ],
        }
    ]
}


def semgrep(codes: Sequence[str]) -> Counts:
    """Findings of a taint rule from input to sinks, whatever comments say."""
    words = [require("semgrep"), "scan", "--metrics", "off", "--disable-version-check", "--disable-nosem", "--quiet"]
    with tempfile.TemporaryDirectory(prefix="posttrain-semgrep-") as folder:
        paths = files_of(codes, Path(folder))
        rule = Path(folder, "rule.json")
        rule.write_text(json.dumps(RULE))
        options = ["--no-git-ignore", "--config", str(rule), "--json", *(path.name for path in paths)]
        said = json.loads(output([*words, *options], Path(folder)))
    return counts_by_file([one["path"] for one in said["results"]], paths)


DETECTORS: Mapping[str, Detector] = {
    "taint": Detector(count_taint(parameters=False), 1.0),
    "taint-parameters": Detector(count_taint(parameters=True), 0.3),
    "ruff": Detector(ruff, 0.3, lambda: require("ruff")),
    "mypy": Detector(mypy, 0.5, lambda: require("mypy")),
    "semgrep": Detector(semgrep, 1.0, lambda: require("semgrep")),
}


def detectors_of(names: Sequence[str]) -> dict[str, Detector]:
    """Detectors by name. Raises ValueError for an unknown one, and one whose tool is not installed."""
    for name in names:
        pt.check_choice(name, DETECTORS, "detectors")
        DETECTORS[name].require()
    return {name: DETECTORS[name] for name in names}
