"""A part of `gpu.py`: whether tiny models do on the device what they do on the CPU. One case after another."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu_model import about, options, parsed, wait, writer

import posttrain as pt
from posttrain import tiny
from posttrain.policy.text import Sampling, TextPolicy

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # where tiny vision and diffusion models are made

Facts = dict[str, Any]
EXACT, ROUNDED = 1e-3, 0.05  # largest difference in float32, mean difference in bfloat16, in nats
LONG = "a question that is long enough for its samples to share its keys, and " * 2
TASKS = [pt.Task(key, (pt.user(f"{key} {text}"),), None) for key in "abc" for text in ("hi", LONG)]


def made(device: str, checkpointing: bool = False, **more: Any) -> TextPolicy:
    words = tiny.tokenizer()
    network = tiny.network(words, 0, hidden=64, layers=2, positions=256).to(device)
    if checkpointing:
        network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return TextPolicy(network, words, Sampling(24), **more)


def played(policy: Any, tasks: list[pt.Task] = TASKS) -> list[pt.Row]:
    groups = pt.rollout(pt.single_turn, tasks, {"policy": policy}, 4)
    return [
        row
        for i, group in enumerate(groups)
        for j, one in enumerate(group)
        for row in pt.rows(policy, one, torch.full((one.decisions,), j - 1.5), group=i)
    ]


def gap(policy: Any, rows: list[pt.Row]) -> tuple[float, float]:
    """Mean and largest difference between what was sampled and what is scored."""
    with torch.no_grad():
        away = (policy.density(rows).logp.cpu() - torch.cat([row.logp for row in rows])).abs()
    return float(away.mean()), float(away.max())


def moved(policy: Any, rows: list[pt.Row]) -> torch.Tensor:
    """The gradient of a step, on the CPU, by what a plain descent changes."""
    before = [p.detach().clone() for p in policy.parameters()]
    pt.update(policy, torch.optim.SGD(policy.parameters(), lr=1.0), rows, pt.clipped(), max_norm=1e9)
    return torch.cat([(b - p.detach()).flatten().cpu() for b, p in zip(before, policy.parameters(), strict=True)])


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


def density(device: str, **more: Any) -> Facts:
    policy = made(device, **more)
    mean, most = gap(policy, played(policy))
    fine = mean < ROUNDED if more.get("bf16") else most < EXACT
    return {"ok": fine, "mean_gap": mean, "largest_gap": most, "fast": policy.dense, "lines": policy.lines}


def as_on_the_cpu(device: str, **more: Any) -> Facts:
    near, far = made("cpu"), made(device, **more)
    rows, again = played(near), played(far)
    same = statistics.fmean(
        a.turns[0].reply.trace.reply == b.turns[0].reply.trace.reply for a, b in zip(rows, again, strict=True)
    )
    difference = apart(moved(far, rows), moved(near, rows))
    return {"ok": difference < 1e-3, "gradient_apart": difference, "same_replies": same}


def checkpointed(device: str) -> Facts:
    plain, saving = made(device), made(device, checkpointing=True)
    rows = played(plain)
    difference = apart(moved(saving, rows), moved(plain, rows))
    return {"ok": difference < 1e-4, "gradient_apart": difference}


def saved(device: str) -> Facts:
    with tempfile.TemporaryDirectory() as folder:
        policy = made(device)
        policy.save(Path(folder))
        rows, again = played(policy), pt.text(folder, max_new=24, device=device)
        _, most = gap(again, rows)
    return {"ok": most < EXACT, "largest_gap": most}


def resumed(device: str) -> Facts:
    """Four steps at once, and two with two after a resume: the same weights, as far as kernels are deterministic."""
    recipe = pt.grpo(pt.each(lambda rollout: float(len(rollout.text))), samples=4)
    ends = []
    with tempfile.TemporaryDirectory() as folder:
        for name, ways in (("once", (4,)), ("twice", (2, 4))):
            for steps in ways:
                policy = made(device)
                run = pt.Run(Path(folder, name), steps=steps, tasks=2, lr=1e-3, quiet=True, resume=steps > ways[0])
                pt.train(policy, TASKS, recipe, run)
            ends.append(torch.cat([p.detach().flatten().cpu() for p in policy.parameters()]))
    difference = apart(ends[1], ends[0])
    return {"ok": difference < 1e-3, "weights_apart": difference}


def lora(device: str) -> Facts:
    with tempfile.TemporaryDirectory() as folder:
        made("cpu").save(Path(folder))
        policy = pt.text(folder, max_new=24, lora=4, device=device)
        rows = played(policy)
        _, most = gap(policy, rows)
        change = float(moved(policy, rows).norm())
        policy.save(Path(folder, "merged"))
        merged = pt.text(str(Path(folder, "merged")), max_new=24, device=device)
        with torch.no_grad():
            after = float((merged.density(rows).logp - policy.density(rows).logp).abs().max())
    return {"ok": most < EXACT and change > 0 and after < EXACT, "largest_gap": most, "merged_gap": after}


def vision(device: str) -> Facts:
    from vision_checkpoints import noise, task
    from vision_checkpoints import policy as seeing

    policy = seeing("qwen2_5_vl")
    policy.model.to(device)
    policy = policy.with_model(policy.model)
    rows = played(policy, [task("a", noise(8, 24)), task("b", noise(16, 16), noise(24, 8)), task("none")])
    _, most = gap(policy, rows)
    change = float(moved(policy, rows).norm())
    return {"ok": most < EXACT and change > 0, "largest_gap": most, "gradient": change}


def diffusion(device: str) -> Facts:
    from diffusion_checkpoints import drawing

    policy = drawing(device=torch.device(device))
    asks = [pt.Ask((pt.user(text),), seed=i) for i in range(2) for text in ("heavy left", "heavy right")]
    replies = policy.sample(asks)
    rows = [
        pt.Row([pt.Turn(a, r)], torch.full((len(r.logp),), i - 1.5))
        for i, (a, r) in enumerate(zip(asks, replies, strict=True))
    ]
    _, most = gap(policy, rows)
    change = float(moved(policy, rows).norm())
    near = all(reply.content.device.type == "cpu" for reply in replies)
    return {"ok": most < EXACT and change > 0 and near, "largest_gap": most, "gradient": change}


CASES: dict[str, Callable[[str], Facts]] = {
    "density, float32": density,
    "density, float32, plain path": lambda device: density(device, plain=True),
    "density, bfloat16": lambda device: density(device, bf16=True),
    "density, bfloat16, plain path": lambda device: density(device, bf16=True, plain=True),
    "a step equals the CPU's": as_on_the_cpu,
    "a step equals the CPU's, plain path": lambda device: as_on_the_cpu(device, plain=True),
    "gradient checkpointing": checkpointed,
    "saving and loading": saved,
    "killed and resumed": resumed,
    "LoRA": lora,
    "vision model": vision,
    "diffusion model": diffusion,
}


def main() -> None:
    given = parsed(options())
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    write, cases = writer(given.to), dict[str, Facts]()
    for name, case in CASES.items():
        clock = time.perf_counter()
        try:
            cases[name] = case(given.device)
        except Exception as error:  # the other cases are wanted all the same, and this one is reported as failed
            traceback.print_exc()
            cases[name] = {"ok": False, "error": f"{type(error).__name__}: {error}"[:300]}
        wait(given.device)
        cases[name]["seconds"] = round(time.perf_counter() - clock, 2)
        write({**about(given.device), "cases": cases})


if __name__ == "__main__":
    main()
