"""Published systems at full scale on every engine: two ranks, vLLM, a Ray cluster, a persuadee on a server."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import processes
import pytest
import torch

import posttrain as pt
from posttrain import tiny
from posttrain.cli import main
from posttrain.policy.text import Sampling, TextPolicy
from posttrain.sampler.vllm import PYTHON, vllm
from posttrain.systems.q_rm.model import QModel
from posttrain.systems.tomap.wording import English

HERE = Path(__file__).parent
VLLM = HERE.parent / ".venv-vllm" / "bin" / "python"
pytestmark = pytest.mark.slow
needs_vllm = pytest.mark.skipif(not (VLLM.is_file() or os.environ.get(PYTHON)), reason="no environment: make vllm")


@pytest.fixture(scope="module")
def place(tmp_path_factory, words) -> Path:
    """A random model with heads of 32, as vLLM's attention on a CPU wants them, a Q-model, and data of each kind."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    folder = tmp_path_factory.mktemp("engines")
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(words),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=1024,
        initializer_range=0.1,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    policy = TextPolicy(Qwen3ForCausalLM(config), words, Sampling(6))
    policy.save(folder / "base")
    QModel(pt.text(str(folder / "base"), max_new=1), "scalar").save(folder / "q")
    write_lines(folder / "questions.jsonl", [{"prompt": f"hi {i}", "answer": str(i)} for i in range(6)])
    write_lines(
        folder / "theorems.jsonl",
        [
            {
                "id": i,
                "pos_question": f"Prove or disprove that {i}+{i} is even.",
                "pos_truth_value": True,
                "neg_question": f"Prove or disprove that {i}+{i} is odd.",
                "neg_truth_value": False,
                "proof": f"It is 2 times {i}.",
            }
            for i in range(4)
        ],
    )
    claims = [{"id": str(i), "pos": f"claim {i}", "neg": f"no claim {i}"} for i in range(4)]
    tree = [{"statement": f"s{k}", "negation": f"not s{k}"} for k in range(3)]
    write_lines(folder / "topics.jsonl", [one | {"counterclaims": tree} for one in claims])
    return folder


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def words_of(place: Path, system: str, out: str) -> list[str]:
    data = {
        "deeptheorem": ["--data", "theorems.jsonl", "--samples", "4"],
        "noisy-rewards": [
            *("--data", "questions.jsonl", "--samples", "4", "--held-out", "questions.jsonl", "--critic-warmup", "0")
        ],
        "q-rm": ["--data", "questions.jsonl", "--q-model", "q"],
        "mm-upt": ["--data", "questions.jsonl", "--answers", "text"],
    }[system]
    data = [str(place / word) if (place / word).exists() else word for word in data]
    model = ["--model", str(place / "base"), "--max-new", "6"]
    return ["run", system, "--scale", "full", *data, *model, "--steps", "2", "--tasks", "2", "--out", str(place / out)]


def on_ranks(world: int, words: list[str]) -> str:
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(world)] if world > 1 else []
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = processes.ran([sys.executable, *launch, "-m", "posttrain", *words], env=environment)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize("system", ["deeptheorem", "noisy-rewards", "q-rm"])
def test_two_ranks_play_and_learn_as_one_process(system, place):
    main([*words_of(place, system, f"{system}-1"), "--quiet"])
    on_ranks(2, [*words_of(place, system, f"{system}-2"), "--quiet"])
    one, two = (pt.read_metrics(place / f"{system}-{world}") for world in (1, 2))
    assert one[0]["reward"] == pytest.approx(two[0]["reward"], rel=1e-5), "the same rollouts and rewards"
    assert one[0]["length"] == two[0]["length"]
    assert one[1]["grad_norm"] == pytest.approx(two[1]["grad_norm"], rel=1e-2)
    assert list((place / f"{system}-2" / "model").glob("*.safetensors"))


@pytest.fixture(scope="module")
def vllm_address(place):
    """vLLM that somebody has started, and that takes weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(PYTHON, os.environ.get(PYTHON, str(VLLM)))
        with vllm(pt.text(str(place / "base"), max_new=40)) as engine:
            yield engine.server.url


@needs_vllm
@pytest.mark.parametrize("system", ["deeptheorem", "noisy-rewards", "q-rm"])
def test_vllm_samples(system, place, monkeypatch, request):
    """Started by the run, or by somebody else."""
    monkeypatch.setenv(PYTHON, os.environ.get(PYTHON, str(VLLM)))
    sampler = "vllm" if system == "deeptheorem" else request.getfixturevalue("vllm_address")
    main([*words_of(place, system, f"{system}-vllm"), "--sampler", sampler, "--quiet"])
    lines = pt.read_metrics(place / f"{system}-vllm")
    assert all(line["parity_gap_max"] < 1e-3 for line in lines), "it had the policy's weights at every step"


def test_a_ray_cluster_plays_and_learns(place, ray_address, monkeypatch):
    """Every process runs the same stage: the learner to its end, players up to the point where it learns."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    main([*words_of(place, "mm-upt", "mm-upt-ray"), "--cluster", ray_address, "--samplers", "1", "--staleness", "1"])
    lines = pt.read_metrics(place / "mm-upt-ray")
    assert len(lines) == 2
    assert all(line["age_max"] <= 1 for line in lines)
    assert list((place / "mm-upt-ray" / "model").glob("*.safetensors"))


@pytest.fixture
def persuadee(place, words):
    """Bob, who agrees with whatever an Alice without arguments says, in a process of his own behind a port."""
    english = English(8)
    silent = [*english.greetings, english.silence, english.silence]
    prompts = [
        english.attitude(f"claim {i}", f"no claim {i}", lines, statement)
        for i in range(4)
        for statement in (f"claim {i}", f"no claim {i}")
        for lines in (silent[:2], silent)
    ]
    agree = {"role": "assistant", "content": "<attitude>Agree</attitude>"}
    bob = TextPolicy(tiny.network(words, 4, hidden=32, layers=2, positions=2048), words, Sampling(40))
    tiny.warm_start(bob, itertools.cycle([pt.Demonstration((*one, agree)) for one in prompts]), 60, 4, 1e-2)
    bob.save(place / "bob")
    command = [sys.executable, "-m", "posttrain", "serve", "--model", str(place / "bob"), "--port", "0"]
    served = subprocess.Popen([*command, "--max-new", "40"], stderr=subprocess.PIPE, text=True)
    try:
        assert served.stderr is not None
        yield next(found[0] for line in served.stderr if (found := re.search(r"http://\S+/v1", line)))
        served.stderr.close()
    finally:
        served.terminate()
        served.wait()


@needs_vllm
def test_a_persuadee_on_a_server_while_the_policy_samples_with_vllm(place, persuadee, vllm_address):
    out = place / "tomap"
    options = ["--data", str(place / "topics.jsonl"), "--persuadee", persuadee, "--turns", "1", "--setting", "rl"]
    model = ["--model", str(place / "base"), "--max-new", "40", "--most", "8", "--sampler", vllm_address]
    main(["run", "tomap", "--scale", "full", *options, *model, "--steps", "1", "--tasks", "2", "--out", str(out)])
    rollouts = list(pt.read_rollouts(out))
    assert [one["facts"]["stances"] for one in rollouts] == [[0.5, 0.5]] * 2, "he agrees with a claim and its negation"
    assert json.loads((out / "run.json").read_text())["run"]["settings"]["persuadee"].startswith("server#")
