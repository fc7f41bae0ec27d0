"""The plan of a run before it starts: what is read, how many tokens and steps, how much memory."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.core import Task
from posttrain.data import Demonstration, Pair
from posttrain.policy.generate import ROWS
from posttrain.policy.head import elements
from posttrain.policy.text import TextPolicy
from posttrain.preference import row
from posttrain.recipe import Recipe
from posttrain.run import Run
from posttrain.supervised import demonstrated

MIB = 2**20


@dataclass(frozen=True, slots=True)
class Plan:
    lines: list[tuple[str, str]]

    def show(self) -> None:
        for name, value in self.lines:
            print(f"{name:12} {value}")
        print("nothing was trained or written (--dry-run)")


def plan(policy: TextPolicy, tasks: Sequence[Task], recipe: Recipe, run: Run, described: Mapping[str, Any]) -> Plan:
    """What `posttrain train` would do with these arguments."""
    prompts = [len(policy.chat.prompt(task.prompt)[0]) for task in tasks]
    rollouts = run.tasks * recipe.samples
    most = policy.sampling.max_new
    epochs = run.steps * run.tasks / len(tasks)
    longest = max(prompts) + most
    kv = min(rollouts, ROWS) * longest * cache_bytes(policy)
    more = f", in up to {recipe.rounds} rounds where groups are refused" if recipe.rounds > 1 else ""
    return Plan(
        [
            ("data", f"{described['data']}: {len(tasks)} tasks, {epochs:.2g} epochs in {run.steps} steps"),
            ("prompts", f"{statistics.fmean(prompts):.0f} tokens on average, at most {max(prompts)}"),
            ("replies", f"at most {most} tokens at temperature {policy.sampling.temperature:g}"),
            ("method", f"{described.get('method', 'own')}: {run.tasks} tasks x {recipe.samples} samples a step{more}"),
            (
                "step",
                f"{rollouts} rollouts, at most {rollouts * longest:,} tokens; {recipe.updates * recipe.epochs} updates",
            ),
            ("model", model_line(policy)),
            *memory_lines(policy, run, longest, kv, copies=int(recipe.reference is not None)),
            ("writes", f"{run.out}: a checkpoint every {run.saves} steps, {run.keep} kept; {free_line(run)}"),
        ]
    )


def plan_supervised(policy: TextPolicy, demonstrations: Sequence[Demonstration], run: Run) -> Plan:
    """What `posttrain sft` would do with these arguments."""
    sizes = [policy.size([row]) for one in demonstrations for row in demonstrated(policy, one)]
    return plan_given(policy, f"{len(demonstrations)} demonstrations", sizes, len(sizes), run)


def plan_preferences(policy: TextPolicy, pairs: Sequence[Pair], run: Run, reference: bool) -> Plan:
    """What `posttrain prefer` would do with these arguments."""
    sizes = [policy.size([row(policy, pair, text)]) for pair in pairs for text in (pair.chosen, pair.rejected)]
    return plan_given(policy, f"{len(pairs)} pairs", sizes, len(pairs), run, copies=int(reference))


def plan_given(policy: TextPolicy, data: str, sizes: Sequence[int], items: int, run: Run, copies: int = 0) -> Plan:
    """A plan for rows that are given, not sampled; a step takes `run.tasks` of the `items`."""
    return Plan(
        [
            ("data", f"{data}, {len(sizes)} rows, {sum(sizes):,} tokens"),
            ("rows", f"{statistics.fmean(sizes):.0f} tokens on average, at most {max(sizes)}"),
            ("steps", f"{run.steps} of {run.tasks}: {run.steps * run.tasks / items:.2g} epochs"),
            ("model", model_line(policy)),
            *memory_lines(policy, run, max(sizes), 0, copies),
            ("writes", f"{run.out}: a checkpoint every {run.saves} steps, {run.keep} kept; {free_line(run)}"),
        ]
    )


def model_line(policy: TextPolicy) -> str:
    size = sum(p.numel() for p in policy.model.parameters())
    trained = sum(p.numel() for p in policy.parameters())
    kind = type(policy.body).__name__
    return f"{kind}, {size:,} parameters, {trained:,} trained, {policy.context} positions, on {policy.device}"


def memory_lines(policy: TextPolicy, run: Run, longest: int, cache: float, copies: int) -> list[tuple[str, str]]:
    """Estimates: exact for weights and optimizer; activations by the usual count of 34 D + logits per token."""
    size = sum(p.numel() for p in policy.model.parameters())
    trained = sum(p.numel() for p in policy.parameters())
    config = policy.body.config.get_text_config()
    width, layers = config.hidden_size, config.num_hidden_layers
    tokens = max(run.micro_tokens, longest)
    per_token = (2 if policy.bf16 else 4) * width * (34 if not policy.body.is_activation_checkpointing else 2)
    activations = tokens * per_token * layers
    head = min(elements(policy.device), tokens * config.vocab_size) * 4 * 2
    fixed = 4 * (size * (1 + copies) + 3 * trained)
    learn = fixed + activations + head
    return [
        ("memory", f"weights, gradients, Adam{' and reference' if copies else ''}: {fixed / MIB:,.0f} MiB"),
        ("", f"sampling: about {(fixed + cache) / MIB:,.0f} MiB with {cache / MIB:,.0f} of key-value cache"),
        ("", f"learning: about {learn / MIB:,.0f} MiB in micro-batches of {tokens:,} tokens (estimate)"),
    ]


def cache_bytes(policy: TextPolicy) -> int:
    """Bytes of keys and values for one token."""
    config = policy.body.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * size * (2 if policy.bf16 else 4)


def free_line(run: Run) -> str:
    where = Path(run.out).absolute()
    while not where.exists():
        where = where.parent
    return f"{shutil.disk_usage(where).free / 2**30:.1f} GiB free there"
