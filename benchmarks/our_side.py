"""Our side: the same workload through `posttrain`, one step for every line on standard input.

`--without` switches one of our tricks off, to see what it saves.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from side import options, tell, wait
from workloads import ANSWER, WORKLOADS, Workload, rewarded

import posttrain as pt
from posttrain import descent
from posttrain.chat import trace
from posttrain.policy import load, text
from posttrain.policy.fast import generate, head, keys, line


def without_fast_pass() -> None:
    text.Dense.supports = staticmethod(lambda _: False)


def without_lines() -> None:
    text.fits = lambda _: False


def without_shared_keys() -> None:
    generate.SHARED_PROMPT = 10**9


def without_retiring() -> None:
    keys.Rows.slack = 1 - 1e-9  # only when all rows have finished


def without_own_head() -> None:
    head.Head.linear = False  # autograd and checkpoints instead


def without_allocator() -> None:
    load.keep_freed_memory = lambda: None


def without_reading_prompts_in_place() -> None:
    line.LONG = 10**9


def without_skipping() -> None:
    descent.credit_only = lambda _: False


TRICKS: dict[str, Callable[[], None]] = {
    "fast pass in sampling": without_fast_pass,
    "shared prompts in training": without_lines,
    "long prompts' keys in place": without_reading_prompts_in_place,
    "shared keys in sampling": without_shared_keys,
    "retiring finished rows": without_retiring,
    "closed-form log-probabilities": without_own_head,
    "keeping freed memory": without_allocator,
    "leaving out rows without credit": without_skipping,
}


def conversation(work: Workload) -> Any:
    def environment(task: pt.Task) -> Any:
        messages = list(task.prompt)
        for _ in range(work.turns):
            reply = yield from pt.ask(messages)
            messages += [pt.assistant(reply), pt.user(ANSWER)]

    return environment


def cost_facts(experience: Any) -> dict[str, float]:
    """What the floor is made of: tokens computed once, and pairs of query and key, of prompts and of what follows."""
    prompts: dict[tuple[int, ...], int] = {}
    sampled = after = pairs = 0
    for row in experience.rows:
        first, last = trace(row.turns[0].reply), trace(row.turns[-1].reply)
        start, length = len(first.prompt), len(last.prompt) + len(last.reply)
        prompts[first.prompt] = start
        sampled += len(row.advantage)
        after += length - start
        pairs += (length * (length + 1) - start * (start + 1)) // 2
    return {
        "tokens_prompt": sum(prompts.values()),
        "tokens_after": after,
        "tokens_sampled": sampled,
        "with_credit": sum(bool(row.advantage.any()) for row in experience.rows) / len(experience.rows),
        "pairs": pairs + sum(n * (n + 1) // 2 for n in prompts.values()),
    }


def main() -> None:
    parser = options()
    parser.add_argument("--without", choices=TRICKS)
    given = parser.parse_args()
    if given.without:
        TRICKS[given.without]()
    work = WORKLOADS[given.work]
    prompts = Path(given.folder, "prompts.jsonl").read_text().splitlines()
    tasks = [pt.Task(str(i), (pt.user(json.loads(x)["prompt"]),), None) for i, x in enumerate(prompts)]
    policy = pt.text(given.folder, max_new=work.new, bf16=given.bf16, threads=given.threads, device="cpu")
    optimizer = torch.optim.AdamW(policy.parameters(), lr=given.lr, weight_decay=0.0, fused=True)

    def reward(rollout: Any) -> float:
        return rewarded(work, rollout.task.prompt[0]["content"], " ".join(turn.reply.content for turn in rollout.turns))

    recipe = pt.grpo(pt.each(reward), samples=work.samples, env=conversation(work))
    source = pt.ShuffledSource(tasks, given.seed)
    for step in range(1_000_000):
        wait()
        wall, cpu = time.perf_counter(), time.process_time()
        experience = pt.gather(policy, source, recipe, work.prompts, seed=given.seed * 10**6 + step)
        middle = time.process_time()
        pt.update(policy, optimizer, experience.rows, recipe.loss, recipe.reduce)
        end, now = time.process_time(), time.perf_counter()
        played = {part: experience.metrics[f"seconds_{part}"] for part in ("sample", "grade")}
        spent = {
            "wall": now - wall,
            "cpu": end - cpu,
            "cpu_sample": middle - cpu - played["grade"],
            "cpu_grade": played["grade"],  # of this reward: it waits for nobody
            "cpu_learn": end - middle,
            "wall_learn": now - wall - sum(played.values()),
        }
        spent |= {f"wall_{part}": seconds for part, seconds in played.items()}
        tell(**spent, **cost_facts(experience), reward=experience.metrics["reward"])


if __name__ == "__main__":
    main()
