"""Any advantage with any loss, reduction, reward shape and policy kind runs a step: an all-pairs sweep."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path

import diffusion_checkpoints
import injection_checkpoints
import pytest
import torch
import vision_checkpoints
from conftest import Bandit, task

import posttrain as pt
from posttrain.decode.decode import Decoding
from posttrain.episode import LockedSampler
from posttrain.lab.world.balance import Balance
from posttrain.loss import cispo, gspo
from posttrain.systems.actlcd.features import width
from posttrain.systems.actlcd.gate import GatePolicy, Net


def varied(group):
    """Differs within a group whatever the policy says; refined to turns and decisions."""
    out = []
    for i, one in enumerate(group):
        paid = torch.zeros(one.decisions)
        if len(paid):
            paid[-1] = float(i % 3)
        out.append(pt.Score(float(i % 3), turns=tuple(float(i % 3) for _ in one.turns), decisions=paid))
    return out


def two_turns(task):
    first = yield from pt.ask(task.prompt)
    yield from pt.ask([*task.prompt, pt.assistant(first), pt.user("heavy left")])


FACTORS = {
    "advantage": {
        "centred": pt.centred,
        "normalised": pt.normalised,
        "leave_one_out": pt.leave_one_out,
        "by_turn": pt.normalised_by_turn,
        "to_go": pt.to_go(0.9),
        "to_go_by_turn": pt.to_go_by_turn(),
        "best": pt.best(),
    },
    "across": {"none": None, "whitened": pt.whitened},
    "loss": {
        "clipped": pt.clipped(),
        "dual": pt.clipped(dual=3.0),
        "gspo": gspo(),
        "cispo": cispo(),
        "likelihood": pt.likelihood,
        "kl": pt.total((1.0, pt.clipped()), (0.01, pt.kl_to_reference()), (0.01, pt.entropy_bonus)),
        "whole": pt.WholeStep(lambda b, d: d.logp - d.logp.mean(), lambda b, now, m: (m * now.logp, {})),
    },
    "reduce": {"token": pt.token_mean, "sequence": pt.sequence_mean, "prompt": pt.prompt_mean, "constant": pt.constant_length(9)},
    "reward": {
        "plain": varied,
        "reshaped": pt.reshaped(varied, lambda v: [x / 2 for x in v]),
        "weighted": pt.weighted(a=(1.0, varied), b=(0.1, pt.each(lambda r: float(r.decisions)))),
        "overlong": pt.overlong(varied, 8, 4),
        "partly invalid": lambda group: [pt.Invalid("first"), *varied(group)[1:]],
    },
    "env": {"single": pt.single_turn, "two turns": two_turns},
    "updates": {"1": 1, "2": 2},
    "policy": {name: name for name in ("text", "bandit", "vision", "injected", "injected with LoRA", "diffusion", "gate")},
    "sampler": {"itself": "itself", "plain": "plain", "streaming": "streaming", "remote": "remote"},
}  # fmt: skip


@dataclass
class Elsewhere:
    """Older weights that sample in the policy's place, as another process would."""

    policy: pt.Policy

    def sample(self, asks):
        return self.policy.sample(asks)


class Streamed(Elsewhere):
    def stream(self, asks):
        return reversed(list(enumerate(self.policy.sample(asks))))


class Served(Elsewhere):
    at_once = 3

    def __init__(self, policy):
        super().__init__(LockedSampler(policy))


def injected(**options) -> pt.Policy:
    with tempfile.TemporaryDirectory() as folder:
        return injection_checkpoints.policy(Path(folder), max_new=4, **options)


def gate(make) -> pt.Policy:
    how = Decoding((0, 1))
    return GatePolicy(make(max_new=4), Net(width("values", 2), (8,)), how)


SAID = [task("a"), task("b")]
POLICIES = {
    "text": lambda make: (make(max_new=4), SAID),
    "bandit": lambda make: (Bandit([0.1, 0.2, 0.3]), SAID),
    "vision": lambda make: (
        vision_checkpoints.policy("qwen3_vl", max_new=4),
        [vision_checkpoints.task(name, vision_checkpoints.noise(8, 16, seed=i)) for i, name in enumerate("ab")],
    ),
    "injected": lambda make: (injected(), injection_checkpoints.TASKS[:2]),
    "injected with LoRA": lambda make: (injected(lora=2), injection_checkpoints.TASKS[:2]),
    "diffusion": lambda make: (diffusion_checkpoints.drawing(), Balance().tasks()),
    "gate": lambda make: (gate(make), SAID),
}
SAMPLERS = {"itself": lambda policy: None, "plain": Elsewhere, "streaming": Streamed, "remote": Served}


def all_pairs() -> list[dict[str, str]]:
    """Few rows that hold every pair of levels of every two factors, chosen greedily."""
    names = list(FACTORS)
    left = {((a, x), (b, y)) for a, b in combinations(names, 2) for x, y in product(FACTORS[a], FACTORS[b])}
    rows = []
    while left:
        row: dict[str, str] = dict(min(left))
        for name in names:
            if name not in row:
                row[name] = max(FACTORS[name], key=lambda level, row=row, name=name: gain(row, name, level, left))
        rows.append(row)
        left -= {((a, row[a]), (b, row[b])) for a, b in combinations(names, 2)}
    return rows


def gain(row, name, level, left) -> int:
    order = list(FACTORS)
    pairs = [sorted([(other, row[other]), (name, level)], key=lambda p: order.index(p[0])) for other in row]
    return sum(tuple(pair) in left for pair in pairs)


ROWS = all_pairs()


def test_the_rows_hold_every_pair():
    assert 35 <= len(ROWS) <= 90


@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(row.values()).replace(" ", "_"))
def test_a_step_of_every_combination(row, make):
    chosen = {name: FACTORS[name][level] for name, level in row.items()}
    torch.manual_seed(0)
    policy, tasks = POLICIES[chosen.pop("policy")](make)
    sampler = SAMPLERS[chosen.pop("sampler")](policy.frozen_copy())
    recipe = pt.Recipe(**chosen, samples=4, max_invalid=0.5, reference=policy.frozen_copy())
    got = pt.gather(policy, pt.ShuffledSource(tasks), recipe, 2, seed=3, sampler=sampler)
    before = [p.detach().clone() for p in policy.parameters()]
    metrics = pt.update(
        policy, torch.optim.SGD(policy.parameters(), 0.1), got.rows, recipe.loss, recipe.reduce, recipe.reference,
        updates=recipe.updates, micro_tokens=100, corrected=sampler is not None,
    )  # fmt: skip
    assert all(math.isfinite(v) for v in metrics.values())
    assert any((a != b).any() for a, b in zip(before, policy.parameters(), strict=True))
