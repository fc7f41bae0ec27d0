"""The grid's figures as one picture: where the seconds of a step go on each side, and the floor.

python benchmarks/picture.py grid.json docs/performance.html     then a screenshot of it is docs/performance.png
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

import plotly.graph_objects as go
from floor import Machine, floor
from plotly.subplots import make_subplots
from workloads import WORKLOADS

COLOURS = {"sampling": "#4c78a8", "learning": "#f58518", "scoring": "#54a24b"}
PARTS = {"sampling": "cpu_sample", "scoring": "cpu_grade", "learning": "cpu_learn"}


def picture(results: dict) -> go.Figure:
    works = [work for work in WORKLOADS if work in results]
    figure = make_subplots(
        rows=1, cols=len(works), subplot_titles=[f"({work}) {WORKLOADS[work].name}" for work in works]
    )
    machine = Machine(**results["machine"])
    for column, work in enumerate(works, 1):
        steps = results[work]["steps"]
        theirs = min((n for n in steps if n.startswith("TRL")), key=lambda n: median(steps[n], "cpu"))
        arms = {"TRL": theirs, "ours, float32": "posttrain float32", "ours, bfloat16": "posttrain bfloat16"}
        for part, key in PARTS.items():
            heights = [median(steps[name], key) for name in arms.values()]
            figure.add_bar(
                x=list(arms),
                y=heights,
                name=part,
                marker_color=COLOURS[part],
                showlegend=column == 1,
                row=1,
                col=column,
            )
        facts = steps["posttrain float32"]
        sizes = {name: statistics.fmean(step[name] for step in facts) for name in facts[0]}
        low = [floor(WORKLOADS[work], sizes, machine, mixed) for mixed in (False, True)]
        figure.add_scatter(
            x=list(arms)[1:],
            y=low,
            mode="markers",
            name="floor",
            marker={"symbol": "line-ew", "size": 26, "line": {"width": 3, "color": "black"}},
            showlegend=column == 1,
            row=1,
            col=column,
        )
    figure.update_layout(
        barmode="stack",
        template="plotly_white",
        width=1500,
        height=430,
        title=f"CPU seconds of a GRPO step, one thread ({results['processor']}); TRL in its fastest setting",
        legend={"orientation": "h", "y": -0.25},
    )
    return figure


def median(steps: list[dict[str, float]], name: str) -> float:
    return statistics.median(step.get(name, 0.0) for step in steps)


if __name__ == "__main__":
    picture(json.loads(Path(sys.argv[1]).read_text())).write_html(sys.argv[2])
