"""posttrain beside TRL on the same work: the same checkpoint, prompts, lengths, sampling and optimizer.

    python benchmarks/against_trl.py                     the whole grid, about 15 minutes on two cores
    python benchmarks/against_trl.py --work b,d          some of it
    python benchmarks/against_trl.py --ablation d        our tricks switched off one at a time
    python benchmarks/against_trl.py --learning          that both learn the same task: reward against step

TRL is installed in an environment of its own (under --cache) the first time. Every side is a process that takes one
step when it is told to; the sides take turns, so that whatever the machine does meets all of them. TRL is given what
is best for it on a CPU: gradient checkpointing off, one batch a step, its fused head, AdamW fused, freed memory kept
(by environment variables; ours does it by itself). It is run in float32 and in bfloat16, its default, and compared by
the faster.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from floor import Machine, floor, measured
from our_side import TRICKS
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from workloads import WORKLOADS, build

HERE = Path(__file__).parent
WARM = 1  # steps that are not counted
TRL = "trl==1.16.0"
KEEPING = {"MALLOC_MMAP_THRESHOLD_": str(2**27), "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1), "MALLOC_ARENA_MAX": "1"}
Steps = list[dict[str, float]]


@dataclass(frozen=True)
class Arm:
    """One side with its settings."""

    name: str
    side: str  # "trl" or "our"
    options: tuple[str, ...] = ()
    keeping: bool = False  # freed memory, by environment variables of glibc


GRID = (
    Arm("TRL float32", "trl", keeping=True),
    Arm("TRL bfloat16", "trl", ("--bf16",), keeping=True),
    Arm("posttrain float32", "our"),
    Arm("posttrain bfloat16", "our", ("--bf16",)),
)


class Side:
    """A running process that takes a step when told to."""

    def __init__(self, arm: Arm, python: str, work: str, folder: Path, options: Sequence[str]):
        self.arm, self.log = arm, folder / f"{arm.name.replace(' ', '-')}.log"
        command = [python, str(HERE / f"{arm.side}_side.py"), work, str(folder), *arm.options, *options]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log.open("w"),
            text=True,
            env={**os.environ, "TOKENIZERS_PARALLELISM": "false", **(KEEPING if arm.keeping else {})},
        )

    def steps(self, count: int) -> dict[str, float]:
        """The mean of some steps, one after another."""
        taken = [self.step() for _ in range(count)]
        return {name: statistics.fmean(step[name] for step in taken) for name in taken[0]}

    def step(self) -> dict[str, float]:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("@"):
                return json.loads(line[1:])
        raise SystemExit(f"{self.arm.name} ended: see {self.log}")

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(60)


def run(work: str, arms: Sequence[Arm], given: argparse.Namespace, progress: Any) -> dict[str, Steps]:
    """Every arm's steps, taken in turn; each round begins with another arm."""
    folder = Path(given.cache) / "benchmark" / work
    if not (folder / "prompts.jsonl").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        build(WORKLOADS[work], folder)
    options = ["--threads", str(given.threads), "--lr", str(given.lr), "--seed", str(given.seed)]
    pythons = {"trl": given.trl_python or str(trl_environment(Path(given.cache))), "our": sys.executable}
    sides = [Side(arm, pythons[arm.side], work, folder, options) for arm in arms]
    steps: dict[str, Steps] = {arm.name: [] for arm in arms}
    bar = progress.add_task(f"{work} {WORKLOADS[work].name}", total=(given.steps + WARM) * len(arms))
    for turn in range(given.steps + WARM):
        first = turn % len(sides)
        for side in (*sides[first:], *sides[:first]):
            steps[side.arm.name].append(side.steps(1 if given.learning else WORKLOADS[work].together))
            progress.advance(bar)
    for side in sides:
        side.close()
    return {name: taken[WARM:] for name, taken in steps.items()}


def trl_environment(cache: Path) -> Path:
    """The interpreter of an environment with TRL in it, made if there is none."""
    python = cache / "trl" / "bin" / "python"
    if not python.is_file():
        print(f"installing {TRL} in {cache / 'trl'}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(cache / "trl")], check=True)
        pip = [str(python), "-m", "pip", "install", "-q", "-c", str(HERE.parent / "constraints.txt")]
        subprocess.run([*pip, "torch"], check=True)
        subprocess.run([*pip, TRL, "datasets", f"transformers=={version('transformers')}"], check=True)
    return python


def version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


def middle(steps: Steps, name: str) -> float:
    return statistics.median(step.get(name, 0.0) for step in steps)


def ratio(ours: Steps, theirs: Steps, name: str = "cpu") -> tuple[float, float, float]:
    """Median and quartiles of theirs over ours, round by round."""
    found = sorted(b[name] / a[name] for a, b in zip(ours, theirs, strict=True))
    if len(found) < 2:
        return found[0], found[0], found[0]
    low, _, high = statistics.quantiles(found, n=4)
    return statistics.median(found), low, high


def fastest(steps: dict[str, Steps], begins: str) -> str:
    return min((name for name in steps if name.startswith(begins)), key=lambda name: middle(steps[name], "cpu"))


def parts_table(work: str, steps: dict[str, Steps], machine: Machine) -> Table:
    table = Table(
        title=f"({work}) {WORKLOADS[work].name}: seconds a step, medians of {len(next(iter(steps.values())))}"
    )
    for column in ("", "wall", "CPU", "sampling", "scoring", "learning", "peak MiB", "floor", "CPU / floor"):
        table.add_column(column, justify="left" if not column else "right")
    facts = next(taken for name, taken in steps.items() if name.startswith("posttrain"))
    sizes = {name: statistics.fmean(step[name] for step in facts) for name in facts[0]}
    for name, taken in steps.items():
        low = floor(WORKLOADS[work], sizes, machine, mixed="bfloat16" in name)
        cells = [middle(taken, part) for part in ("wall", "cpu", "cpu_sample", "cpu_grade", "cpu_learn")]
        table.add_row(
            name,
            *(f"{cell:.4f}" if cell < 0.1 else f"{cell:.2f}" for cell in cells),
            f"{middle(taken, 'peak_mib'):.0f}",
            f"{low:.4f}" if low < 0.1 else f"{low:.2f}",
            f"{cells[1] / low:.2f}",
        )
    return table


def compared(steps: dict[str, Steps]) -> dict[str, Any]:
    """The ratios that count: float32 against float32, and the fastest of each side."""
    theirs, ours = fastest(steps, "TRL"), fastest(steps, "posttrain")
    alike = ratio(steps["posttrain float32"], steps[fastest(steps, "TRL float32")])
    return {
        "float32": alike,
        "fastest": ratio(steps[ours], steps[theirs]),
        "fastest_wall": ratio(steps[ours], steps[theirs], "wall"),
        "memory": middle(steps[ours], "peak_mib") / middle(steps[theirs], "peak_mib"),
        "arms": [ours, theirs],
    }


def grid(given: argparse.Namespace, console: Console) -> dict[str, Any]:
    machine = measured(given.threads)
    console.print(
        f"{processor()}, {given.threads} thread(s): {machine.float32 / 1e9:.0f} GFLOP/s float32, "
        f"{machine.bfloat16 / 1e9:.0f} bfloat16, {machine.bandwidth / 1e9:.1f} GB/s"
    )
    results: dict[str, Any] = {"machine": asdict(machine), "processor": processor(), "threads": given.threads}
    total = Table(title="CPU seconds of TRL over posttrain's, a step: median (quartiles)")
    for column in ("", "float32, both", "the fastest of each", "wall", "memory, ours / TRL's"):
        total.add_column(column)
    with Progress(console=console) as progress:
        for work in given.work.split(","):
            steps = run(work, GRID, given, progress)
            found = compared(steps)
            results[work] = {"steps": steps, "compared": found}
            if given.out:
                Path(given.out).write_text(json.dumps(results, indent=1))
            console.print(parts_table(work, steps, machine))
            spread = [
                f"{m:.2f} ({a:.2f}-{b:.2f})" for m, a, b in (found["float32"], found["fastest"], found["fastest_wall"])
            ]
            total.add_row(f"({work}) {WORKLOADS[work].name}", *spread, f"{found['memory']:.2f}")
    console.print(total)
    return results


def ablation(given: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Ours with one trick switched off at a time: how much longer a step takes."""
    kind = () if given.float32 else ("--bf16",)
    arms = [Arm("posttrain", "our", kind)]
    arms += [Arm(f"without {trick}", "our", (*kind, "--without", trick)) for trick in TRICKS]
    if kind:
        arms.append(Arm("without bfloat16", "our"))
    results: dict[str, Any] = {}
    with Progress(console=console) as progress:
        for work in given.ablation.split(","):
            steps = run(work, arms, given, progress)
            results[work] = steps
            table = Table(title=f"({work}) {WORKLOADS[work].name}: CPU seconds a step, one trick off at a time")
            for column in ("", "CPU", "times", "quartiles", "peak MiB"):
                table.add_column(column)
            for name, taken in steps.items():
                times, low, high = ratio(steps["posttrain"], taken)
                table.add_row(
                    name,
                    f"{middle(taken, 'cpu'):.3f}",
                    f"{times:.2f}",
                    f"{low:.2f}-{high:.2f}",
                    f"{middle(taken, 'peak_mib'):.0f}",
                )
            console.print(table)
    return results


def learning(given: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Reward against step on the tiny workload, a few seeds: TRL, ours in float32 and in bfloat16."""
    arms = [GRID[0], GRID[2], GRID[3]]
    curves: dict[str, list[list[float]]] = {arm.name: [] for arm in arms}
    with Progress(console=console) as progress:
        for seed in range(given.seeds):
            options = argparse.Namespace(**{**vars(given), "seed": seed, "lr": 1e-3})
            for name, taken in run("a", arms, options, progress).items():
                curves[name].append([step["reward"] for step in taken])
    tenths = max(given.steps // 10, 1)
    table = Table(title=f"mean reward by tenths of {given.steps} steps, {given.seeds} seeds: mean ± standard error")
    table.add_column("")
    for i in range(0, given.steps, tenths):
        table.add_column(f"{i + WARM}-")
    for name, runs in curves.items():
        cells = []
        for i in range(0, given.steps, tenths):
            means = [statistics.fmean(one[i : i + tenths]) for one in runs]
            error = statistics.stdev(means) / len(means) ** 0.5 if len(means) > 1 else 0.0
            cells.append(f"{statistics.fmean(means):.2f} ± {error:.2f}")
        table.add_row(name, *cells)
    console.print(table)
    return curves


def processor() -> str:
    found = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return found[0].partition(":")[2].strip() if found else platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", default=",".join(WORKLOADS), help="letters of the workloads")
    parser.add_argument("--steps", type=int, default=7, help="steps of every side that are counted")
    parser.add_argument("--threads", type=int, default=1, help="torch threads of every side")
    parser.add_argument("--ablation", metavar="WORK", help="switch our tricks off one at a time on these workloads")
    parser.add_argument("--float32", action="store_true", help="in the ablation: without bfloat16 anywhere")
    parser.add_argument("--learning", action="store_true", help="compare rewards instead of seconds")
    parser.add_argument("--seeds", type=int, default=3, help="of --learning")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=1e-5)
    parser.add_argument("--cache", default=os.environ.get("POSTTRAIN_CACHE", str(Path.home() / ".cache" / "posttrain")))
    parser.add_argument("--trl-python", help="an interpreter that has TRL, in place of an environment of its own")
    parser.add_argument("--out", help="write all figures to this JSON file")
    given = parser.parse_args()
    console = Console(width=150)
    task = learning if given.learning else ablation if given.ablation else grid
    results = task(given, console)
    if given.out:
        Path(given.out).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
