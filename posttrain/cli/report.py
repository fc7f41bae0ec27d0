"""What a run looks like: a table in the terminal, and one self-contained HTML file."""

from __future__ import annotations

import ast
import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.chat import readable_content
from posttrain.core import Metrics
from posttrain.measure import entropy_law
from posttrain.run.directory import Directory, read_json, read_metrics
from posttrain.run.rollouts import ROLLOUTS, by_reward_spread, read_rollouts

FIRST = ("reward", "held_out/reward", "accuracy", "loss", "entropy", "length", "groups_flat", "grad_norm", "truncated")
SHOWN = 6  # curves shown at once; the others are folded away
SMOOTHED = 10  # steps in a moving average
LAW_STEPS = 10  # steps from which on the law of entropy is worth fitting
STEPS_SHOWN = 12  # in the browser of rollouts


# ---- runs


def summary(path: Path) -> None:
    """The run in the terminal: what it was, its numbers at the start and the end. Raises ValueError for no run."""
    about, metrics = read_run(path)
    run = about["run"]
    steps = f", {len(metrics)} of {run['steps']} steps" if "steps" in run else ""
    print(f"{path}: {about['kind']}, started {about['started']}{steps}")
    settings = {**run["settings"], **{name: run[name] for name in ("tasks", "seed") if name in run}}
    settings |= {"lr": about["lr"]} if "lr" in about else {}
    known = {
        name: f"{value:g}" if isinstance(value, float) else value
        for name, value in settings.items()
        if value is not None and value is not False and value not in ("", [], {}) and not name.endswith("_sha256")
    }
    print("  " + ", ".join(f"{name} {value}" for name, value in known.items()))
    names = [name for name in FIRST if any(name in line for line in metrics)]
    part = max(min(len(metrics) // 5, 20), 1)
    print(f"  {'':16} {'first ' + str(part):>12} {'last ' + str(part):>12}")
    for name in names:
        series = [line[name] for line in metrics if name in line]
        print(f"  {name:16} {statistics.fmean(series[:part]):12.3f} {statistics.fmean(series[-part:]):12.3f}")
    if metrics:
        print(f"  {sum(line.get('seconds', 0.0) for line in metrics):.0f} s in steps")


def read_run(path: Path) -> tuple[dict[str, Any], list[Metrics]]:
    about = Directory(path).about
    if not about.is_file():
        raise ValueError(f"{path} holds no run: there is no run.json in it")
    return read_json(about), read_metrics(path)


def write_report(path: Path) -> Path:
    """Write `report.html` into the run directory: curves, a browser of rollouts, the settings."""
    from jinja2 import Template
    from plotly.offline import get_plotlyjs

    about, metrics = read_run(path)
    template = Template((Path(__file__).parent / "report.html.jinja").read_text(), autoescape=True)
    page = template.render(
        title=path.name,
        about=json.dumps(about, indent=2),
        plotly=get_plotlyjs(),
        figures=safe_json(list(figures(metrics))),
        shown=SHOWN,
        rollouts=safe_json(list(browser_rollouts(path, metrics))),
        lines=headline(about, metrics),
    )
    target = Directory(path).report
    target.write_text(page, encoding="utf-8")
    return target


def safe_json(value: Any) -> str:
    """JSON that can stand inside a script element."""
    return json.dumps(value).replace("</", "<\\/").replace("<!--", "<\\!--")


def headline(about: dict[str, Any], metrics: Sequence[Metrics]) -> list[str]:
    if not metrics:
        return ["no step was finished"]
    lines = [f"{about['kind']}, {len(metrics)} steps, started {about['started']}"]
    rewards = [line["reward"] for line in metrics if "reward" in line]
    if rewards:
        part = max(min(len(rewards) // 5, 20), 1)
        first, last = statistics.fmean(rewards[:part]), statistics.fmean(rewards[-part:])
        lines.append(f"reward {first:.3f} over the first {part} steps, {last:.3f} over the last {part}")
    both = [line for line in metrics if "entropy" in line and "reward" in line]
    if len(both) >= LAW_STEPS and len({line["entropy"] for line in both}) > 1:
        law = entropy_law([line["entropy"] for line in both], [line["reward"] for line in both])
        lines.append(
            f"law of entropy: reward = {-law.a:.3g} exp(entropy) + {law.b:.3g}, R2 {law.r_squared:.2f}, so that "
            f"{law.ceiling:.3f} would be left when no entropy is (arXiv:2505.22617)"
        )
    return lines


def figures(metrics: Sequence[Metrics]) -> Iterator[dict[str, Any]]:
    """A plotly figure per metric, the ones people look at first in front."""
    names = list(dict.fromkeys([*FIRST, *sorted({name for line in metrics for name in line})]))
    for name in names:
        points = [(line["step"], line[name]) for line in metrics if name in line and math.isfinite(line[name])]
        if name == "step" or not points:
            continue
        steps, values = [p[0] for p in points], [p[1] for p in points]
        thin = {"x": steps, "y": values, "mode": "lines", "line": {"width": 1, "color": "#9db4c8"}, "name": name}
        thick = {
            "x": steps,
            "y": trailing_mean(values),
            "mode": "lines",
            "line": {"width": 2, "color": "#1f5f8b"},
            "name": f"mean of {SMOOTHED}",
        }
        yield {"name": name, "data": [thin, thick], "constant": min(values) == max(values)}


# ---- several runs


def write_comparison(paths: Mapping[str, Sequence[Path]], folder: Path) -> Path:
    """One page with a curve for every run of every name, each name in one colour."""
    from plotly.colors import qualitative
    from plotly.graph_objects import Figure

    names = [name for name in FIRST if any(name in line for runs in paths.values() for line in read_metrics(runs[0]))]
    parts = []
    for metric in names:
        figure = Figure(layout={"title": metric, "xaxis_title": "step", "height": 380})
        for colour, (name, runs) in enumerate(paths.items()):
            for number, run in enumerate(runs):
                points = [(line["step"], line[metric]) for line in read_metrics(run) if metric in line]
                figure.add_scatter(
                    x=[p[0] for p in points],
                    y=trailing_mean([p[1] for p in points]),
                    name=name,
                    legendgroup=name,
                    showlegend=number == 0,
                    line={"color": qualitative.D3[colour % len(qualitative.D3)], "width": 2},
                )
        parts.append(figure.to_html(full_html=False, include_plotlyjs=not parts))
    target = folder / "comparison.html"
    table = f"<pre>{comparison_table(paths)}</pre>"
    target.write_text(f"<!doctype html><meta charset=utf-8><title>comparison</title>{table}{''.join(parts)}")
    return target


def comparison_table(paths: Mapping[str, Sequence[Path]], last: int = 10) -> str:
    """Final values of every name, means over its runs with 95 % intervals; the first name is the baseline."""
    from posttrain.lab.claim import interval_text, paired_interval

    lines = [f"{'':44} {'reward, last ' + str(last):>16} {'held out':>10}   held out against the first"]
    first: list[float] = []
    for name, runs in paths.items():
        metrics = [read_metrics(run) for run in runs]
        reward = statistics.fmean(line["reward"] for run in metrics for line in run[-last:] if "reward" in line)
        held = [[line["held_out/reward"] for line in run if "held_out/reward" in line] for run in metrics]
        final = [values[-1] for values in held if values]
        first = first or final
        gains = [a - b for a, b in zip(final, first, strict=True)]
        gain = (
            f"{statistics.fmean(gains):+.3f}{interval_text(paired_interval(gains))}" if gains and gains != [0.0] else ""
        )
        shown = f"{statistics.fmean(final):10.3f}" if final else f"{'':10}"
        lines.append(f"{name:44} {reward:16.3f} {shown}   {gain}")
    return "\n".join(lines)


def trailing_mean(values: Sequence[float]) -> list[float]:
    return [statistics.fmean(values[max(0, i - SMOOTHED + 1) : i + 1]) for i in range(len(values))]


def browser_rollouts(path: Path, metrics: Sequence[Metrics]) -> Iterator[dict[str, Any]]:
    """Rollouts for the browser: of every few steps from the first to the last, the groups that differ most."""
    steps = [int(line["step"]) for line in metrics]
    chosen = (
        sorted({steps[round(i * (len(steps) - 1) / (STEPS_SHOWN - 1))] for i in range(STEPS_SHOWN)}) if steps else []
    )
    for step in chosen:
        records = list(read_rollouts(path, step))
        for record in (records[i] for i in by_reward_spread(records)[:ROLLOUTS]):
            turns = [
                {
                    "asked": [f"{m['role']}: {readable_content(m['content'])}" for m in turn["messages"]],
                    "pieces": turn.get("pieces") or [str(turn["content"])],
                    "advantage": round_values(turn["advantage"]),
                    "entropy": round_values(turn.get("entropy")),
                    "logp": round_values(turn["logp"]),
                    "stop": turn["stop"],
                    "picture": turn.get("picture"),
                }
                for turn in record["turns"]
            ]
            yield {
                "step": step,
                "task": record["task"],
                "truth": str(record["truth"]),
                "reward": record["reward"],
                "parts": record.get("parts", {}),
                "invalid": record.get("invalid"),
                "turns": turns,
                "drawing": record.get("drawing"),
                "undrawn": record.get("undrawn"),
            }


def round_values(values: Sequence[float] | None) -> list[float]:
    return [round(value, 3) for value in values or []]


def method_lines() -> Iterator[tuple[str, str]]:
    """Named methods with the first line of their docstrings, read without importing torch."""
    tree = ast.parse((Path(__file__).parent.parent / "method.py").read_text())
    for node in tree.body:
        doc = ast.get_docstring(node) if isinstance(node, ast.FunctionDef) else None
        if doc and isinstance(node, ast.FunctionDef) and node.name not in ("needing", "with_kl"):
            yield node.name, doc.partition("\n")[0]
