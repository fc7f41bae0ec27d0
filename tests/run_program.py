"""A run of tests/test_run.py, in a process of its own that is killed."""

from __future__ import annotations

import os

import torch
from conftest import digits, task

import posttrain as pt
from posttrain import tiny
from posttrain.policy.text import Sampling, TextPolicy
from posttrain.policy.value import Critic, Gae

STEPS = 8


def run(folder: str, errors: str, method: str, out: str, resume: bool) -> None:
    """What it writes to stderr goes to a file."""
    os.chdir(folder)
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    torch.set_num_threads(1)
    words = tiny.tokenizer()
    policy = TextPolicy(tiny.network(words, 0, hidden=32, layers=1, positions=128), words, Sampling(6))
    reward = pt.each(digits)
    recipe = {
        "ppo": lambda: pt.ppo(reward, advantage=Gae(Critic(policy, lr=1e-3)), samples=2, updates=2),
        "dapo": lambda: pt.dapo(reward, max_new=6, samples=3),
    }[method]()
    settings = pt.Run(out, steps=STEPS, tasks=3, lr=1e-2, save_every=2, resume=resume, quiet=True)
    pt.train(policy, [task(str(i)) for i in range(7)], recipe, settings)
