"""Shared parts of the tests: one torch thread, tiny random models, tasks and players."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st

import posttrain as pt
from posttrain import tiny
from posttrain.policy.text import Sampling, TextPolicy

torch.set_num_threads(1)
DEVICE = torch.device(os.environ.get("POSTTRAIN_TEST_DEVICE", "cpu"))  # where the tests' tiny models are
os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is downloaded in tests
settings.register_profile("repeatable", derandomize=True)  # explore with --hypothesis-profile=default
settings.load_profile("repeatable")


GROUPS = {  # files whose tests run one after another in one worker: each starts several processes, or shares one
    **dict.fromkeys(("test_vllm.py", "test_engines.py"), "vllm"),
    **dict.fromkeys(
        ("test_ranks.py", "test_scorer.py", "test_cluster.py", "test_phases.py"), "cluster"
    ),  # many processes
    "test_nl_fl_hybrid.py": "prover",
    "test_cadrille.py": "kernel",
}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """By file, since marks of groups do not reach pytest-xdist 3.8 under pytest 9 (it writes an attribute that is gone)."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            if "cluster" in nodeid or "[pangu-embedded s" in nodeid:  # one Ray at a time, and no ranks beside it
                return "cluster"
            return GROUPS.get(Path(nodeid.partition("::")[0]).name, nodeid)

    return ByFile(config, log)


@pytest.fixture(scope="session")
def words() -> Any:
    return tiny.tokenizer()


@pytest.fixture(scope="session")
def ray_address() -> Iterator[str]:
    """A Ray cluster that tests join one after another: a start of its own would cost each of them ten seconds."""
    from ray.cluster_utils import Cluster

    from posttrain.scale.cluster import PATIENT

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 8, "include_dashboard": False, "_system_config": PATIENT}
    )
    yield cluster.address
    cluster.shutdown()


@pytest.fixture(autouse=True)
def quick_bfloat16(monkeypatch):
    """bfloat16 is tested wherever the tests run: `choose_bf16` would leave it out where it is slow."""
    monkeypatch.setattr("posttrain.policy.abilities.bfloat16_slowdown", lambda: 0.5)


@pytest.fixture
def make(words) -> Callable[..., TextPolicy]:
    """A tiny random text policy: `make(seed=0, max_new=8, **options)`."""

    def policy(seed: int = 0, max_new: int = 8, temperature: float = 1.0, stop=(), **options: Any) -> TextPolicy:
        model = tiny.network(words, seed, hidden=32, layers=2, positions=256).to(DEVICE)
        own = copy.deepcopy(words) if "template" in options else words  # a policy gives its tokenizer its template
        return TextPolicy(model, own, Sampling(max_new, temperature, stop), **options)

    return policy


def broken_rows(*whole: Mapping[str, Any]) -> Any:
    """Rows that are read, with any JSON in the place of some of their columns, or without these."""
    plain = st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | st.sampled_from(["", " ", "x", "a,b\n1,2"])
    value = st.recursive(
        plain | st.text(max_size=4),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abx"), inner, max_size=3),
        max_leaves=6,
    )

    def changed(row: Mapping[str, Any]) -> Any:
        names = st.sampled_from(sorted(row))
        replaced, left_out = st.dictionaries(names, value, max_size=3), st.sets(names, max_size=2)
        return st.tuples(replaced, left_out).map(
            lambda change: {name: one for name, one in {**row, **change[0]}.items() if name not in change[1]}
        )

    return st.sampled_from(whole).flatmap(changed)


def refusal(read: Callable[[Any, Any], object], row: Any, place: Any) -> str | None:
    """What `read` says against the row, None where it reads it. Any error but a ValueError passes through."""
    try:
        read(row, place)
    except ValueError as error:
        return str(error)
    return None


def task(key: str = "t", truth: Any = None, text: str | None = None) -> pt.Task:
    return pt.Task(key, (pt.user(text or f"hi {key}"),), truth)


def said(text: str, truth: Any = None, decisions: int = 1, stop: Any = "end") -> pt.Rollout:
    """A rollout of one turn that nobody sampled."""
    reply = pt.Reply(text, -torch.ones(decisions), None, stop)
    return pt.Rollout(task(truth=truth), [pt.Turn(pt.Ask(task().prompt), reply)])


@dataclass
class Canned:
    """A player that says what it is told."""

    says: Any

    def sample(self, asks: Sequence[pt.Ask]) -> list[pt.Reply]:
        return [pt.Reply(self.says(a) if callable(self.says) else self.says, torch.zeros(0), None) for a in asks]


def digits(rollout: pt.Rollout) -> float:
    """A reward that varies with any sample: the share of digits in the reply."""
    return sum(c.isdigit() for c in rollout.text) / max(len(rollout.text), 1)


def values(scores: Sequence[Any]) -> list[float]:
    return [score.value for score in scores]


class Bandit:
    """A policy over V choices in one state: small enough that every expectation can be enumerated.

    A reply's content is the choice; the parameters are the logits [V].
    """

    def __init__(self, logits: Sequence[float]):
        self.logits = torch.nn.Parameter(torch.tensor(logits, dtype=torch.float64))
        self.version = 0

    def check(self, tasks):
        pass

    def parameters(self):
        return [self.logits]

    def sample(self, asks):
        import numpy as np

        from posttrain.seeding import uniforms

        cumulative = self.logits.detach().softmax(-1).cumsum(-1)
        draws = uniforms(np.array([ask.seed for ask in asks], dtype=np.uint64), 1)[:, 0]
        picked = [int(torch.searchsorted(cumulative, torch.tensor(u)).clamp(max=len(cumulative) - 1)) for u in draws]
        logp = self.logits.detach().log_softmax(-1).float()
        return [pt.Reply(i, logp[i].view(1), i, version=self.version) for i in picked]

    def extends(self, last, turn):
        return False

    def size(self, rows):
        return len(rows)

    def density(self, rows):
        logp = self.logits.log_softmax(-1)
        chosen = torch.tensor([turn.reply.trace for row in rows for turn in row.turns])
        entropy = -(logp.exp() * logp).sum().expand(len(chosen))
        return pt.Density(logp[chosen].float(), entropy.float())

    def frozen_copy(self):
        return Bandit(self.logits.detach().tolist())

    def record(self, reply):
        return {"choice": reply.trace}

    def state_dict(self):
        return {"logits": self.logits.detach()}

    def load_state_dict(self, state):
        with torch.no_grad():
            self.logits.copy_(state["logits"])

    def save(self, path):
        torch.save(self.logits, path / "logits.pt")


class Spy:
    """An optimizer that takes no step and keeps the gradients."""

    def __init__(self, policy):
        self.policy, self.seen = policy, []
        self.param_groups = [{"params": list(policy.parameters()), "lr": 0.0}]

    def zero_grad(self):
        for p in self.policy.parameters():
            p.grad = None

    def step(self):
        grads = [
            getattr(p.grad, "full_tensor", lambda p=p: p.grad)().flatten()
            for p in self.policy.parameters()
            if p.grad is not None
        ]
        self.seen.append(torch.cat(grads).clone())
