"""Run by tests/test_scorer.py under torchrun: every rank scores groups of its own, then the process is killed."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch
from conftest import said

import posttrain as pt
from posttrain import ranks
from posttrain.scale import apart


def tried(reward: pt.Reward) -> str:
    try:
        reward([said("hi")])
    except ChildProcessError as error:
        return str(error)
    return "no error"


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, missing, out = sys.argv[1:]
    with ranks.process_group():
        rank = ranks.rank()
        reward = pt.reward_of(folder, device="cpu")
        again = pt.reward_of(folder, device="cpu")
        groups = [[said(f"{rank} {i} {'a' * j}") for j in range(4)] for i in range(3)]
        found = {"scores": [[score.value for score in one(group)] for group in groups for one in (reward, again)]}
        found["addresses"] = sorted(apart.addresses.values())
        found["processes"] = [process.pid for process in apart.processes.values()]
        try:
            pt.reward_of(missing, device="cpu")
        except ValueError as error:
            found["missing"] = str(error)
        ranks.barrier("before the end")
        if ranks.is_primary():
            os.kill(found["processes"][0], signal.SIGKILL)
        ranks.barrier("after the end")
        found["dead"] = tried(reward)
        Path(out, f"{rank}.json").write_text(json.dumps(found))
