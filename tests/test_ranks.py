"""FSDP2 over two ranks (gloo, CPU): the gradients, runs and checkpoints of one process."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import injection_checkpoints
import processes
import pytest
import ranks_program
import torch
from safetensors.torch import load_file

import posttrain as pt
from posttrain import ranks

HERE = Path(__file__).parent


def ran(*arguments: str) -> None:
    """The program on two ranks."""
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}"}
    done = processes.ran([sys.executable, *launch, str(HERE / "ranks_program.py"), *arguments], env=environment)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_two_ranks_have_the_gradient_of_one(tmp_path):
    """For a loss with a reference, two reductions, statistics of the whole step, and an entropy term.

    And both decide on bfloat16 alike.
    """
    for world in "12":
        (tmp_path / world).mkdir()
    for kind, trained in (("parts", []), ("trained parts", ["dna"])):
        injection_checkpoints.policy(tmp_path / kind, trained=trained).save(tmp_path / f"made {kind}")
    for kind in ranks_program.KINDS:
        ranks_program.gradients(kind, tmp_path / "1" / f"{kind}.pt")
    ran("gradients", "all", str(tmp_path / "2"))
    for rank in range(2):  # as asked until they agree, then by the first rank's measurement, on the CPU alone
        assert json.loads((tmp_path / "2" / f"bf16-{rank}.json").read_text()) == [True, False, True]
    for kind in ranks_program.KINDS:
        one, two = (torch.load(tmp_path / world / f"{kind}.pt") for world in "12")
        assert one.keys() == two.keys()
        assert torch.allclose(one["logp"], two["logp"], atol=1e-5), "the same rollouts, in the same order"
        assert any(value.abs().sum() > 0 for name, value in one.items() if name.startswith("whole step"))
        for name, value in one.items():
            torch.testing.assert_close(
                two[name], value, atol=2e-6, rtol=1e-4, msg=lambda text, name=name, kind=kind: f"{kind} {name}: {text}"
            )


@pytest.mark.slow
def test_a_run_on_two_ranks_and_its_resumption(tmp_path):
    """The same run as on one rank to float tolerance; cut in the middle and resumed, the same to the last bit."""
    ranks_program.run("plain", tmp_path / "one", 6, resume=False)
    ran("run", "plain", str(tmp_path), "two=6=new", "cut=4=new")
    with pytest.raises(ValueError, match="written by 2 ranks and cannot be read by 1"):
        ranks_program.run("plain", tmp_path / "cut", 6, resume=True)
    ran("run", "plain", str(tmp_path), "cut=6=resume")
    one, two, cut = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two", "cut"))
    assert one.keys() == two.keys() == cut.keys()
    assert max((one[name] - two[name]).abs().max() for name in one) < 1e-3
    assert all(torch.equal(two[name], cut[name]) for name in two)
    histories = [pt.read_metrics(tmp_path / name) for name in ("one", "two", "cut")]
    for name in ("reward", "rows", "groups_refused", "grad_norm", "entropy", "loss"):
        first, *others = ([line[name] for line in history] for history in histories)
        assert all(other == pytest.approx(first, rel=2e-2, abs=1e-3) for other in others), name
    assert len(list(pt.read_rollouts(tmp_path / "two"))) == len(list(pt.read_rollouts(tmp_path / "one")))
    shards = next((tmp_path / "two" / "checkpoints").iterdir()) / "shards"
    assert len(list(shards.glob("*.distcp"))) == 2, "each rank writes its own"


@pytest.mark.slow
def test_pairs_are_shared_by_ranks(tmp_path):
    """The metrics of every step and of held-out pairs are those of one rank."""
    ranks_program.prefer(tmp_path / "1")
    ran("prefer", "plain", str(tmp_path / "2"))
    for loss in ("dpo", "coupled", "kto"):
        for one, two in zip(*(pt.read_metrics(tmp_path / world / loss) for world in "12"), strict=True):
            for name in one.keys() - {"seconds"}:
                assert two[name] == pytest.approx(one[name], rel=1e-4, abs=1e-5), (loss, name)
        assert {"held_out/a/accuracy", "held_out/b/loss"} <= pt.read_metrics(tmp_path / "2" / loss)[-1].keys()


def test_a_process_that_is_alone_exchanges_nothing():
    assert (ranks.world(), ranks.rank(), ranks.is_primary()) == (1, 0, True)
    assert list(ranks.share(range(5))) == list(range(5))
    assert ranks.merge_shares([3, 4], "") == [3, 4]
    assert ranks.run_on_primary(lambda: 7, "") == 7
    assert ranks.padded_share(["a", "b"]) == [("a", True), ("b", True)]


def test_bins_are_dealt_so_that_ranks_keep_step(monkeypatch):
    monkeypatch.setattr(ranks, "world", lambda: 3)
    hands = []
    for rank in range(3):
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        hands.append(ranks.padded_share(list("abcde")))
    assert hands == [
        [("a", True), ("d", True)],
        [("b", True), ("e", True)],
        [("c", True), ("a", False)],
    ]
    assert ranks.padded_share([]) == []


@pytest.mark.slow
def test_a_rank_that_does_not_come_is_named(tmp_path):
    program = tmp_path / "late.py"
    program.write_text(
        "import datetime, time\nfrom posttrain import ranks\n"
        "with ranks.process_group():\n"
        "    if ranks.rank() == 1:\n        time.sleep(3600)\n"
        "    ranks.barrier('for the rollouts of a step', datetime.timedelta(seconds=3))\n"
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(program)]
    done = processes.ran(launch, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode != 0
    assert "rank 0 waited 3 s for the rollouts of a step" in done.stderr
    assert "Rank 1" in done.stderr or "[1]" in done.stderr or "rank 1" in done.stderr
