"""Our side: the same workload through `posttrain`, one step for every line on standard input."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from side import tell, wait
from workloads import WORKLOADS, even

import posttrain as pt
from posttrain.descent import update
from posttrain.step import gather
from posttrain.stream import Shuffled


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("work")
    parser.add_argument("folder")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--lr", type=float, default=1e-5)
    given = parser.parse_args()
    work = WORKLOADS[given.work]
    lines = Path(given.folder, "prompts.jsonl").read_text().splitlines()
    tasks = [pt.Task(str(i), (pt.user(json.loads(x)["prompt"]),), None) for i, x in enumerate(lines)]
    policy = pt.text(given.folder, max_new=work.new, bf16=given.bf16, threads=given.threads, device="cpu")
    optimizer = torch.optim.AdamW(policy.parameters(), lr=given.lr, weight_decay=0.0, fused=True)
    recipe = pt.grpo(pt.each(lambda rollout: even(rollout.text)), samples=work.samples)
    source = Shuffled(tasks, 0)
    for step in range(100_000):
        wait()
        wall, cpu = time.perf_counter(), time.process_time()
        experience = gather(policy, source, recipe, work.prompts, seed=step)
        cpu_gather = time.process_time() - cpu
        update(policy, optimizer, experience.rows, recipe.loss, recipe.reduce)
        spent = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        spent |= {f"wall_{k.removeprefix('seconds_')}": v for k, v in experience.metrics.items() if k[:8] == "seconds_"}
        spent |= {"wall_learn": spent["wall"] - spent["wall_sample"] - spent["wall_grade"], "cpu_sample": cpu_gather}
        tell(**spent, tokens=experience.metrics["decisions"], reward=experience.metrics["reward"])


if __name__ == "__main__":
    main()
