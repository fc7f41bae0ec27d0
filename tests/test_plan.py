"""The plan of a run: what it says of every kind of session, and that memory, tokens and work are right."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import Bandit, digits, task
from diffusion_checkpoints import drawing
from transformers import Qwen2Config
from vision_checkpoints import checkpoint, noise
from vision_checkpoints import task as pictured

import posttrain as pt
from posttrain import tiny
from posttrain.cli import main
from posttrain.cli.plan import plan_of
from posttrain.cli.plan.machine import GIB, MACHINES, gpus_needed, work
from posttrain.cli.plan.workload import steps
from posttrain.core import Row
from posttrain.data import Demonstration, Pair
from posttrain.episode import assistant
from posttrain.policy.activations import network_of
from posttrain.policy.value import RewardModel
from posttrain.reward import each
from posttrain.run.session import Session
from posttrain.systems.actlcd.gate import GatePolicy, Net

H100 = MACHINES[0]
TASKS = [task(str(i)) for i in range(6)]
PAIRS = [Pair((pt.user(f"hi {i}"),), "hello there", "no") for i in range(4)]


def size(policy) -> int:
    return sum(p.numel() for p in policy.model.parameters())


def planned(policy, items, recipe=None, run=None, **more):
    return plan_of(Session(run or pt.Run("nowhere", steps=3, tasks=2), policy, items, recipe, **more))


def text_of(plan) -> str:
    return "\n".join(f"{name} {value}" for name, value in plan.lines)


def test_weights_gradients_moments_and_references_are_exact(make):
    policy = make()
    footprint = planned(policy, TASKS, pt.grpo(each(digits), samples=2)).footprint
    buffers = sum(b.numel() * b.element_size() for b in policy.model.buffers())
    assert footprint.weights == 4 * size(policy) + buffers
    assert (footprint.gradients, footprint.optimizer, footprint.beside) == (4 * size(policy), 8 * size(policy), 0)
    compared = pt.grpo(each(digits), samples=2, kl=0.1, reference=policy.frozen_copy())
    assert planned(policy, TASKS, compared).footprint.beside == 4 * size(policy) + buffers
    in_reward = pt.rloo(each(digits), samples=2, kl=0.1, reference=policy.frozen_copy())  # held by the reward alone
    assert planned(policy, TASKS, in_reward).footprint.beside == 4 * size(policy) + buffers


def test_a_critic_has_gradients_and_an_optimizer_of_its_own(make):
    policy = make()
    critic = pt.Critic(policy)
    plan = planned(policy, TASKS, pt.ppo(each(digits), advantage=pt.Gae(critic), samples=2))
    taught = sum(p.numel() for group in critic.optimizer.param_groups for p in group["params"])
    own = sum(p.numel() for p in critic.policy.model.parameters()) + sum(p.numel() for p in critic.out.parameters())
    buffers = sum(b.numel() * b.element_size() for b in critic.policy.model.buffers())
    assert plan.footprint.beside == 4 * own + buffers + 12 * taught
    assert "weights, gradients, Adam and critic" in text_of(plan)


def test_an_adapter_trains_little_and_its_reference_is_the_same_model(make, tmp_path):
    make().save(tmp_path / "model")
    policy = pt.text(str(tmp_path / "model"), max_new=8, lora=2)
    few = sum(p.numel() for p in policy.parameters())
    plan = planned(policy, TASKS, pt.grpo(each(digits), samples=2, kl=0.1, reference=policy.frozen_copy()))
    assert plan.footprint.optimizer == 8 * few
    assert plan.footprint.beside == 0
    assert "Adam and reference" in text_of(plan)


def test_micro_batches_hold_no_more_than_the_step(make):
    policy = make(max_new=8)
    recipe = pt.grpo(each(digits), samples=2)
    prompt = len(policy.chat.prompt(TASKS[0].prompt)[0])
    [step] = steps(policy, TASKS, recipe, pt.Run("nowhere", steps=1, tasks=2))
    assert step.tokens == 2 * (prompt + 2 * 8)  # the samples share their prompt
    assert len(step.pieces) == 1
    cut = steps(policy, TASKS, recipe, pt.Run("nowhere", steps=1, tasks=2, micro_tokens=prompt + 16))[0]
    assert [piece.tokens for piece in cut.pieces] == [prompt + 16, prompt + 16]
    small = planned(policy, TASKS, recipe, pt.Run("nowhere", tasks=2, micro_tokens=prompt + 16)).footprint
    assert small.learning is not None
    assert small.learning < (planned(policy, TASKS * 20, recipe, pt.Run("nowhere", tasks=120)).footprint.learning or 0)


def test_every_kind_of_items_is_planned(make):
    policy = make(max_new=8)
    source = Session(pt.Run("nowhere"), policy, TASKS, pt.grpo(each(digits))).source
    told = text_of(planned(policy, source, pt.grpo(each(digits), samples=2), held_out=TASKS[:2]))
    for expected in (
        "6 tasks, 1 epochs in 3 steps of 2",
        "2 tasks, evaluated 2 times",
        "at most 8 tokens",
        "4 rollouts",
    ):
        assert expected in told
    assert source.state_dict() == {"cursor": 0}
    demonstrations = [Demonstration((pt.user("hi"), assistant("hello"))) for _ in range(4)]
    assert "4 demonstrations, 1.5 epochs" in text_of(planned(policy, demonstrations, kind="sft"))
    turn = policy.demonstrate([pt.user("hi")], "hello")
    rows = [Row([turn], torch.ones(len(turn.reply.logp)))] * 4
    length = len(turn.reply.trace.prompt) + len(turn.reply.logp)
    assert f"rows {length} tokens on average, at most {length}" in text_of(planned(policy, rows, kind="sft"))
    plan = planned(policy, PAIRS, kind="prefer", reference=policy.frozen_copy())
    assert "4 pairs" in text_of(plan)
    assert "Adam and reference" in text_of(plan)
    assert plan.footprint.sampling is None


def test_a_reward_model_is_planned(make, tmp_path):
    make().save(tmp_path / "model")
    model = pt.reward_model(str(tmp_path / "model"), weights=False)
    assert isinstance(model, RewardModel)
    plan = planned(model, PAIRS, kind="reward-model")
    assert plan.footprint.optimizer == 8 * size(model)
    assert "4 pairs" in text_of(plan)


def test_policies_without_tokens_tell_their_parameters(make):
    gate = GatePolicy(make(max_new=5), Net(3, (16,)), pt_decoding())
    plan = planned(gate, range(40), kind="train")
    count = sum(p.numel() for p in gate.gate.parameters())
    assert plan.footprint.optimizer == 8 * count
    assert plan.footprint.weights > 4 * size(gate.speaker)  # who speaks is held too
    assert f"{count:,} parameters trained" in text_of(plan)
    assert "40 items" in text_of(plan)
    unet = drawing()
    plan = planned(
        unet,
        [task(side, text=f"heavy {side}") for side in ("left", "right")],
        pt.grpo(each(lambda rollout: 0.0), samples=2),
    )
    assert plan.footprint.optimizer == 8 * sum(p.numel() for p in unet.unet.parameters())
    assert "tokens" not in text_of(plan)
    assert planned(Bandit([0.0, 0.0]), TASKS, pt.grpo(each(digits))).footprint.weights == 2 * 8


def pt_decoding():
    from posttrain.decode.decode import Decoding

    return Decoding()


def test_a_vision_policy_is_planned_without_its_weights(tmp_path):
    policy = pt.vision(checkpoint(tmp_path / "model"), max_new=8, weights=False)
    tasks = [pictured(str(i), noise(24, 24, i)) for i in range(2)]
    told = text_of(planned(policy, tasks, pt.grpo(each(digits), samples=2)))
    assert f"at most {len(policy.chat.prompt(tasks[0].prompt)[0])}" in told
    assert f"{size(policy):,} parameters" in told


QWEN_7B = Qwen2Config(
    hidden_size=3584,
    num_hidden_layers=28,
    num_attention_heads=28,
    num_key_value_heads=4,
    intermediate_size=18944,
    vocab_size=152064,
    max_position_embeddings=32768,
    tie_word_embeddings=False,
    architectures=["Qwen2ForCausalLM"],
)


@pytest.fixture(scope="module")
def seven(tmp_path_factory) -> str:
    """A folder of Qwen2.5-7B's shape that holds no weights."""
    folder = tmp_path_factory.mktemp("seven")
    QWEN_7B.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return str(folder)


def test_seven_billion_parameters_are_planned_from_the_configuration(seven, tmp_path, capsys):
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"What is {i}+1?", "answer": str(i + 1)}) + "\n" for i in range(6)))
    options = ["--model", seven, "--max-new", "1024", "--bf16", "--checkpointing", "--kl", "0.1", "--dry-run"]
    main(["train", "--data", str(data), "--out", str(tmp_path / "run"), "--tasks", "4", *options])
    told = capsys.readouterr().out
    for expected in (f"{data}: 6 tasks", "7,615,616,512 parameters", "Adam and reference", "8 x H100 80GB", "FLOPs"):
        assert expected in told
    assert not (tmp_path / "run").exists()


def test_bfloat16_is_planned_where_the_run_will_use_it(seven, monkeypatch, capsys):
    """A CPU that it makes slower runs in float32; the GPUs of the table do as asked."""
    if torch.cuda.is_available():
        pytest.skip("a run would use the GPU")
    asked, plain = (pt.text(seven, max_new=1024, bf16=bf16, weights=False) for bf16 in (True, False))
    recipe = pt.grpo(each(digits), samples=2)
    machines = [value for name, value in planned(asked, TASKS, recipe).lines if name == "machine"]
    assert "in bfloat16" in text_of(planned(asked, TASKS, recipe))
    monkeypatch.setattr("posttrain.policy.abilities.bfloat16_slowdown", lambda: 6.5)
    plan = planned(asked, TASKS, recipe)
    assert "on cpu, in float32" in text_of(plan)
    assert "so the model runs in float32" in capsys.readouterr().err
    assert plan.footprint == planned(plain, TASKS, recipe).footprint
    assert [value for name, value in plan.lines if name == "machine"] == machines


def test_a_model_without_weights_takes_no_memory_and_says_what_it_lacks(seven):
    policy = pt.text(seven, max_new=64, bf16=True, weights=False)
    assert {p.device.type for twin in (policy, policy.frozen_copy()) for p in twin.model.parameters()} == {"meta"}
    with pytest.raises(ValueError, match="holds no loadable model"):
        pt.text(seven)


def test_work_is_two_floating_point_operations_a_parameter_forward_and_six_to_learn(make):
    policy = make(max_new=8)
    network = network_of(policy, "cuda")
    run, recipe = pt.Run("nowhere", steps=1, tasks=2), pt.grpo(each(digits), samples=2)
    taken = steps(policy, TASKS, recipe, run)
    one = work(network, taken, references=0, critics=0, epochs=1, updates=1, gpus=1)
    scored = work(network, taken, references=1, critics=0, epochs=1, updates=1, gpus=1)
    assert (one.sampled, one.learned, one.scored) == (2 * 2 * 8, taken[0].tokens, 0)
    assert scored.learn_flops == pytest.approx(one.learn_flops * 4 / 3)
    dense = 6 * (network.linear * taken[0].tokens + network.head * 32)
    assert dense < one.learn_flops < 1.2 * dense  # attention comes on top
    assert one.decode_bytes > 8 * (4 * network.linear + 4 * network.head)  # read for each of 8 tokens
    sampling, learning = one.seconds(network, H100, 1)
    assert learning == pytest.approx(one.learn_flops / (0.4 * H100.single))
    assert one.seconds(network, H100, 2)[1] == pytest.approx(learning / 2)
    assert sampling == pytest.approx(one.decode_bytes / (0.5 * H100.bandwidth))


def test_more_gpus_hold_what_one_does_not(seven):
    policy = pt.text(seven, max_new=1024, bf16=True, checkpointing=True, weights=False)
    session = Session(pt.Run("nowhere", tasks=16), policy, TASKS, pt.grpo(each(digits)))
    network, taken = network_of(policy, "cuda"), steps(policy, TASKS, session.recipe, session.run)
    fixed = plan_of(session).footprint
    assert fixed.fixed > 110 * GIB  # 16 bytes a parameter
    found = gpus_needed(network, fixed, taken, H100)
    assert found is not None
    assert (found[0], found[1] < 0.9 * 79 * GIB) == (4, True)
    twin = plan_of(Session(session.run, policy, TASKS, pt.ppo(each(digits), advantage=pt.Gae(pt.Critic(policy)))))
    assert gpus_needed(network, twin.footprint, taken, H100) is None  # a critic stands whole on every GPU


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", ["grpo", "sft"])
def test_a_run_takes_the_memory_that_its_plan_says(kind, tmp_path):
    program = Path(__file__).with_name("peak_program.py")
    done = subprocess.run([sys.executable, program, kind, tmp_path], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["measured"] > 100 * 2**20  # enough to tell
    assert 1 / 1.5 < found["planned"] / found["measured"] < 1.5
