"""The results of `gpu.py` as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Results = Mapping[str, Any]
COLUMNS = {  # of a step: heading, name, format
    "sampling s": ("sampling_s", "{:.2f}"),
    "learning s": ("learning_s", "{:.2f}"),
    "sampled tokens/s": ("sampling_tokens_s", "{:,.0f}"),
    "learned tokens/s": ("learning_tokens_s", "{:,.0f}"),
    "learning TFLOP/s": ("learning_flops", "{:.3g}"),
    "MFU": ("mfu", "{:.1%}"),
    "MFU, prompts once": ("mfu_distinct", "{:.1%}"),
    "decoding GB/s": ("decoding_bytes_s", "{:.3g}"),
    "of bandwidth": ("bandwidth_share", "{:.1%}"),
    "peak GiB sampling / learning": ("", ""),
    "sampler gap": ("sampler_gap", "{:.2g}"),
}
SCALES = {"learning_flops": 1e12, "decoding_bytes_s": 1e9}


def markdown(results: Results) -> str:
    parts = results["parts"]
    known = next((part for part in parts.values() if "device_name" in part), {})
    lines = [
        f"# posttrain on {known.get('device_name', results['device'])}"
        + (" (quick: tiny shapes, no measurement)" if results["quick"] else ""),
        "",
        f"torch {known.get('torch', '?')}, transformers {known.get('transformers', '?')}; medians of counted steps",
    ]
    steps = {name: part for name, part in parts.items() if "sampling_s" in part or "wall_s" in part}
    if steps:
        lines += ["", row(["", "steps", *COLUMNS]), row(["---"] * (len(COLUMNS) + 2))]
        lines += [row([name, str(part["counted_steps"]), *cells(part)]) for name, part in steps.items()]
    for part in parts.values():
        if "cases" in part:
            lines += ["", "| correctness | | |", "|---|---|---|"]
            lines += [
                row([name, "ok" if case["ok"] else "**FAILED**", facts(case)]) for name, case in part["cases"].items()
            ]
        if "decisions" in part:
            lines += [
                "",
                f"Log-probabilities of {part['decisions']} decisions with gradient, by logits held at once:",
                "",
            ]
            lines += ["| | seconds |", "|---|---|"]
            lines += [row([name, f"{seconds:.4f}"]) for name, seconds in part["seconds_by_case"].items()]
        if "failures" in part:
            lines += ["", f"Tests: {part['passed']} passed, {part['failed']} failed, {part['skipped']} skipped.", ""]
            lines += [f"- `{name}`: {why}" for name, why in part["failures"].items()]
    lines += ["", "| part | ended | seconds |", "|---|---|---|"]
    lines += [row([name, part["ended"] + said(part), str(part["seconds"])]) for name, part in parts.items()]
    if results["not run"]:
        lines += ["", "Not run: " + "; ".join(results["not run"]) + "."]
    return "\n".join(lines) + "\n"


def cells(part: Results) -> list[str]:
    out = []
    for name, form in COLUMNS.values():
        if not name:
            pair = [part.get(f"{half}_peak_gib") for half in ("sampling", "learning")]
            out.append(" / ".join("" if one is None else f"{one:.1f}" for one in pair))
        else:
            out.append("" if name not in part else form.format(part[name] / SCALES.get(name, 1)))
    return out


def facts(case: Results) -> str:
    shown = {name: value for name, value in case.items() if name not in ("ok", "seconds")}
    return ", ".join(f"{n} {v:.2g}" if isinstance(v, float) else f"{n} {v}" for n, v in shown.items())


def said(part: Results) -> str:
    return f": {part['missing']}" if "missing" in part else ""


def row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
