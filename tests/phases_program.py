"""A curriculum of tests/test_phases.py, in a process of its own that is killed, or on two ranks."""

from __future__ import annotations

import sys

import torch
from conftest import digits, task

import posttrain as pt
from posttrain import ranks, tiny
from posttrain.policy.text import Sampling, TextPolicy

STEPS = 6


def recipe(policy: TextPolicy) -> pt.Recipe:
    return pt.grpo(pt.each(digits), samples=3, kl=0.1, reference=policy.frozen_copy())


def run(out: str, resume: bool = False) -> None:
    words = tiny.tokenizer()
    policy = TextPolicy(tiny.network(words, 0, hidden=32, layers=1, positions=128), words, Sampling(6))
    phases = [pt.Phase(name, [task(f"{name} {i}") for i in range(5)], recipe, STEPS) for name in ("first", "second")]
    settings = pt.Run(out, tasks=3, lr=2e-3, save_every=2, resume=resume, quiet=True)
    pt.train_phases(policy, phases, settings)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with ranks.process_group():
        run(sys.argv[1], "resume" in sys.argv)
