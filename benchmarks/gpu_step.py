"""A part of `gpu.py`: GRPO steps of a Qwen-shaped model in one precision, or (`head`) how many logits to hold at once.

Precisions: float32 (no TF32), tf32 (float32, whose products may be TF32), bfloat16 (autocast; logits in float32 without
TF32), bfloat16+tf32.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from gpu_model import (
    SHAPES,
    Shape,
    about,
    decoding_bytes,
    distinct_operations,
    even,
    learning_operations,
    model,
    options,
    parsed,
    peak,
    peaks,
    prompts,
    reset_peak,
    tokenizer,
    wait,
    writer,
)

import posttrain as pt
from posttrain.policy.fast import head
from posttrain.policy.fast.generate import ROWS
from posttrain.policy.text import Sampling, TextPolicy

WARM, STEPS = 1, 3


def main() -> None:
    parser = options()
    parser.add_argument("size", choices=SHAPES)
    parser.add_argument("how", choices=("float32", "tf32", "bfloat16", "bfloat16+tf32", "head"))
    given = parsed(parser)
    torch.backends.cuda.matmul.fp32_precision = "tf32" if "tf32" in given.how else "ieee"
    shape = SHAPES[given.size].quick() if given.quick else SHAPES[given.size]
    (heads if given.how == "head" else steps)(shape, given)


def steps(shape: Shape, given: Any) -> None:
    """Warm-up steps, then those that count; results are written after each."""
    write, device = writer(given.to), given.device
    words = tokenizer(shape)
    bf16 = given.how.startswith("bfloat16")
    policy = TextPolicy(model(shape, device, words), words, Sampling(shape.new), bf16=bf16)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-6, weight_decay=0.0, fused=True)
    tasks = [pt.Task(str(i), (pt.user(text),), None) for i, text in enumerate(prompts(shape, 2 * shape.tasks))]
    recipe = pt.grpo(pt.each(lambda rollout: even(rollout.text)), samples=shape.samples)
    source = pt.ShuffledSource(tasks, 0)
    taken: list[dict[str, float]] = []
    facts = {**about(device), "fast_sampling": policy.dense, "lines": policy.lines, "warm": WARM}
    for number in range(WARM + STEPS):
        reset_peak(device)
        wait(device)
        start = time.perf_counter()
        experience = pt.gather(policy, source, recipe, shape.tasks, seed=number)
        wait(device)
        middle, sampling = time.perf_counter(), peak(device)
        reset_peak(device)
        metrics = pt.update(policy, optimizer, experience.rows, recipe.loss, recipe.reduce)
        wait(device)
        end = time.perf_counter()
        said = sum(len(row.advantage) for row in experience.rows)
        names = ("sampler_gap", "grad_norm", "micro_tokens", "rows_skipped")
        step = {"sampling_s": middle - start, "learning_s": end - middle, "tokens": float(said)}
        step |= {f"sampling_{name}": value for name, value in sampling.items()}
        step |= {f"learning_{name}": value for name, value in peak(device).items()}
        taken.append(step | {name: metrics[name] for name in names})
        counted = taken[WARM:] or taken
        write({**facts, "counted_steps": len(taken) - WARM, "steps": taken, **rates(shape, counted, given.how, facts)})


def rates(shape: Shape, taken: list[dict[str, float]], how: str, facts: dict[str, Any]) -> dict[str, float]:
    """Medians, and what they are of the device's peaks, where those are known."""
    found = {name: statistics.median(step[name] for step in taken) for name in taken[0]}
    rows = min(shape.tasks * shape.samples, ROWS)
    waves = shape.tasks * shape.samples / rows  # the queue is sampled so many rows at a time
    read = decoding_bytes(shape, rows, 2 if how.startswith("bfloat16") else 4) * shape.new * waves
    found["sampling_tokens_s"] = found["tokens"] / found["sampling_s"]
    found["learning_tokens_s"] = (shape.prompt + shape.new) * shape.tasks * shape.samples / found["learning_s"]
    found["learning_flops"] = learning_operations(shape) / found["learning_s"]
    found["learning_flops_distinct"] = distinct_operations(shape) / found["learning_s"]
    found["decoding_bytes_s"] = read / found["sampling_s"]
    known = peaks(facts["device_name"])
    if known:
        top = known[0] if how.startswith("bfloat16") else known[1] if how == "tf32" else known[2]
        found |= {"mfu": found["learning_flops"] / top, "mfu_distinct": found["learning_flops_distinct"] / top}
        found["bandwidth_share"] = found["decoding_bytes_s"] / known[3]
    return found


def heads(shape: Shape, given: Any) -> None:
    """Seconds of log-probabilities with their gradient, by logits held at once, with and without TF32."""
    write, device = writer(given.to), given.device
    count = 64 if given.quick else 16384
    torch.manual_seed(0)
    hidden = torch.randn(count, shape.hidden, device=device, requires_grad=True)
    weight = (0.02 * torch.randn(shape.vocabulary, shape.hidden, device=device)).requires_grad_()
    chosen = torch.randint(shape.vocabulary, (count,), device=device)
    warmth = torch.ones(count, device=device)
    cases: dict[str, float] = {}
    for precision in ("ieee", "tf32"):
        torch.backends.cuda.matmul.fp32_precision = precision
        for elements in (2**23, 2**25, head.ELEMENTS_GPU, 2**28, 2**30):
            size, times = max(elements // shape.vocabulary, 1), []
            for _ in range(WARM + STEPS):
                wait(device)
                clock = time.perf_counter()
                logp, _ = head.Linear.apply(hidden, weight, chosen, warmth, size)
                torch.autograd.grad(logp.mean(), [hidden, weight])
                wait(device)
                times.append(time.perf_counter() - clock)
            cases[f"{precision} 2^{elements.bit_length() - 1}"] = statistics.median(times[WARM:])
            write({**about(device), "decisions": count, "seconds_by_case": cases})


if __name__ == "__main__":
    main()
