"""vLLM in processes of its own, trained against on the CPU. `make vllm` builds its environment; CI runs this there."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from conftest import digits, task

import posttrain as pt
from posttrain.cli.scale import ScaleOptions
from posttrain.policy.pretrained import add_adapter
from posttrain.policy.text import Sampling, TextPolicy
from posttrain.row import row_logps, rows_of
from posttrain.sampler.vllm import PYTHON, vllm
from posttrain.sampler.weights import SyncError, collect_weights, probe_of, scores, synchronise

ENVIRONMENT = Path(__file__).parent.parent / ".venv-vllm" / "bin" / "python"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ENVIRONMENT.is_file() or os.environ.get(PYTHON)), reason="no environment: make vllm"),
]
TASKS = [task(str(i)) for i in range(8)]


@pytest.fixture(autouse=True, scope="module")
def environment():
    os.environ.setdefault(PYTHON, str(ENVIRONMENT))


def made(words, lora: int = 0, seed: int = 0) -> TextPolicy:
    """As small as vLLM's attention on a CPU allows: heads of 32."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(words),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=256,
        initializer_range=0.1,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    network = Qwen3ForCausalLM(config)
    return TextPolicy(add_adapter(network, lora) if lora else network, words, Sampling(8))


@pytest.fixture(scope="module")
def served(words):
    policy = made(words)
    with vllm(policy) as engine:
        yield policy, engine


def test_it_is_trained_as_the_local_sampler_is(served, words, tmp_path):
    """Weights go over at every step; log-probabilities agree; the reward ends in the band of the laptop's loop."""
    _, engine = served
    histories = {}
    for name in ("vllm", "local"):
        policy = made(words)
        engine.policy, engine.version, engine.sleeps = (
            policy,
            -1,
            True,
        )  # on a CPU it frees nothing, and must do no harm
        run = pt.Run(tmp_path / name, steps=16, tasks=4, lr=1e-2, quiet=True)
        sampler = engine if name == "vllm" else None
        recipe = pt.grpo(pt.each(digits), samples=6)
        histories[name] = pt.train(policy, TASKS, recipe, run, held_out=TASKS[:2], sampler=sampler).history
    first, last = (histories["vllm"][i]["reward"] for i in (0, -1))
    assert first < 0.2 < 0.6 < last
    assert abs(last - histories["local"][-1]["reward"]) < 0.3
    assert all(line["parity_gap_max"] < 1e-4 for line in histories["vllm"])
    assert all(line["sampler_gap"] < 1e-4 for line in histories["vllm"] if "sampler_gap" in line)
    versions = [
        {turn["version"] for r in pt.read_rollouts(tmp_path / "vllm", s) for turn in r["turns"]} for s in (0, 9)
    ]
    assert versions == [{0}, {9}]


def test_temperature_stops_and_turns(served):
    policy, engine = served
    engine.policy, engine.version, engine.sleeps = policy, -1, False
    synchronise(engine, collect_weights(policy, probe_of(policy, TASKS), merged=True))

    def two(one):
        first = yield from pt.ask(one.prompt, temperature=0.7, max_new=6)
        yield from pt.ask([*one.prompt, pt.assistant(first), pt.user("go on")], max_new=6)

    groups = pt.rollout(two, TASKS[:3], {"policy": engine}, 2, seed=4)
    rows = [row for group in groups for one in group for row in rows_of(policy, one, one.turns)]
    assert len(rows) == 6, "the second turn continues the tokens of the first"
    gap = torch.cat(row_logps(policy, rows)) - torch.cat([row.logp for row in rows])
    assert gap.abs().max() < 1e-4
    again = pt.rollout(two, TASKS[2:3], {"policy": engine}, 2, seed=4)
    same = pt.rollout(two, TASKS[2:3], {"policy": engine}, 2, seed=4)
    assert [one.text for one in again[0]] == [one.text for one in same[0]], "a seed decides, whatever the batch"
    [greedy] = engine.sample([pt.Ask(TASKS[0].prompt, temperature=0.0)])
    ends = greedy.content[-1]
    [cut] = engine.sample([pt.Ask(TASKS[0].prompt, temperature=0.0, stop=(ends,))])
    assert cut.stop == "string"
    assert greedy.content.startswith(cut.content)
    assert ends in cut.content


def test_weights_that_do_not_arrive_stop_the_run(served, words):
    policy, engine = served
    engine.policy = policy
    probe = probe_of(policy, TASKS)
    good = collect_weights(policy, probe, merged=True)
    other = made(words, seed=1)
    wrong = type(good)(5, collect_weights(other, (), merged=True).tensors, probe, tuple(scores(policy, probe)))
    with pytest.raises(SyncError, match="nats from the learner on the probe"):
        synchronise(engine, wrong)
    assert synchronise(engine, good)["parity_gap_max"] < 1e-4, "and good ones heal it"


def test_a_lora_adapter_goes_over_alone(words, tmp_path):
    policy = made(words, lora=4)
    start = {name: value.clone() for name, value in policy.state_dict().items()}
    out = tmp_path / "lora"
    with ScaleOptions(sampler="vllm").engine(policy, str(out)) as engine:  # as the command line starts it
        assert engine.adapter
        assert not out.exists(), "the run's directory is the run's"
        run = pt.Run(out, steps=6, tasks=4, lr=1e-2, quiet=True)
        history = pt.train(policy, TASKS, pt.grpo(pt.each(digits), samples=6), run, sampler=engine).history
    assert all(line["parity_gap_max"] < 1e-4 for line in history)
    assert any((policy.state_dict()[name] - value).abs().max() > 1e-3 for name, value in start.items())


def test_it_says_why_it_does_not_start_and_leaves_nothing_behind(words, monkeypatch, tmp_path):
    from posttrain import tiny

    small = TextPolicy(tiny.network(words, 0, hidden=32, layers=1, positions=64), words)
    with pytest.raises(ValueError, match="no attention for heads of 8, only of 32"), vllm(small):
        pass
    with pytest.raises(RuntimeError, match="vLLM ended while starting"), vllm(made(words), options={"no-such": 1}):
        pass
    monkeypatch.delenv(PYTHON)
    with (
        pytest.raises(ValueError, match=r"`sampler=vllm` needs vLLM: pip install 'posttrain\[vllm\]'"),
        vllm(made(words)),
    ):
        pass


def test_a_server_that_dies_is_named(served):
    """The last test that needs it."""
    _, engine = served
    engine.server.deadline_s = 3.0
    [group] = [int(p.name) for p in Path("/proc").glob("[0-9]*") if port_of(engine) in command_of(p)][:1]
    os.killpg(os.getpgid(group), signal.SIGKILL)
    with pytest.raises(ConnectionError, match="Is the server up"):
        engine.sample([pt.Ask(TASKS[0].prompt)])


def port_of(engine) -> str:
    return engine.server.url.rpartition(":")[2].partition("/")[0]


def command_of(process: Path) -> str:
    try:
        return (process / "cmdline").read_text()
    except OSError:
        return ""
