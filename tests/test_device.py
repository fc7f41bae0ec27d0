"""What happens on a GPU, as far as it can be seen without one: no tensor is left behind, little is waited for.

`pretended.py` has the device. Speed, memory and kernels need a real one: benchmarks/gpu.py.
"""

from __future__ import annotations

import pytest
import torch
from conftest import Spy, task
from diffusion_checkpoints import drawing
from pretended import NAME, Far, Pretended, move
from vision_checkpoints import noise
from vision_checkpoints import policy as seeing
from vision_checkpoints import task as shown

import posttrain as pt
from posttrain import tiny
from posttrain.policy.diffusion import DiffusionPolicy
from posttrain.policy.fast.keys import product
from posttrain.policy.text import Sampling, TextPolicy
from posttrain.policy.value import Critic, Gae
from posttrain.step import train_in_memory

GPU = torch.device(NAME, 0)
LONG = "a question that is long enough for its samples to share its keys, and " * 2


@pytest.fixture
def far(words):
    """A tiny text policy on the pretended GPU: `far(max_new=8, stop=())`."""

    def policy(max_new: int = 8, stop: tuple[str, ...] = (), **options) -> TextPolicy:
        model = tiny.network(words, 0, hidden=32, layers=2, positions=256)
        move(model, GPU)
        return TextPolicy(model, words, Sampling(max_new, 1.0, stop), **options)

    return policy


def rows_of(policy, tasks, samples=4):
    groups = pt.rollout(pt.single_turn, tasks, {"policy": policy}, samples)
    return [
        row
        for i, group in enumerate(groups)
        for j, one in enumerate(group)
        for row in pt.rows(policy, one, torch.full((one.decisions,), j - 1.5), group=i)
    ]


def gradient(policy, rows, **options):
    spy = Spy(policy)
    pt.update(policy, spy, rows, pt.clipped(), max_norm=1e9, **options)
    return spy.seen[0]


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("text", ["hi", LONG])
def test_a_step_on_a_gpu_is_the_step_on_the_cpu(far, make, text, plain):
    tasks = [task(key, text=f"{key} {text}") for key in "abc"]
    near = make(plain=plain)
    expected = rows_of(near, tasks)
    with Pretended():
        policy = far(plain=plain)
        assert (policy.device, policy.dense, policy.lines) == (GPU, not plain, not plain)
        found = rows_of(policy, tasks)
        moved = gradient(policy, found, updates=1, epochs=1, micro_tokens=60, corrected=True)
    for one, other in zip(found, expected, strict=True):
        assert one.turns[0].reply.trace.reply == other.turns[0].reply.trace.reply
        torch.testing.assert_close(one.logp, other.logp, atol=1e-5, rtol=1e-4)
    assert isinstance(moved, Far)
    torch.testing.assert_close(moved.inner, gradient(near, expected, corrected=True), atol=1e-6, rtol=1e-4)


def test_a_critic_and_a_reference_on_a_gpu(far):
    with Pretended():
        policy = far()
        gae = Gae(Critic(policy))
        reward = pt.each(lambda rollout: float(len(rollout.text)))
        loss = pt.total((1.0, pt.clipped()), (0.1, pt.kl_to_reference()))
        recipe = pt.Recipe(reward, advantage=gae, loss=loss, samples=4, reference=policy.frozen_copy())
        [metrics] = train_in_memory(policy, [task("a"), task("b")], recipe, steps=1, per_step=2)
    assert metrics["critic_loss"] > 0
    assert metrics["kl"] == pytest.approx(0, abs=1e-6)


def test_sampling_waits_for_the_gpu_once_a_token(far):
    with Pretended() as gpu:
        policy = far(max_new=40)
        policy.stops.ends = torch.zeros_like(policy.stops.ends)
        gpu.waits = 0
        policy.sample([pt.Ask((pt.user("hi"),), seed=i) for i in range(6)])
    assert gpu.waits < 40 + 15


def test_a_stop_string_is_looked_for_at_one_wait_a_row(far):
    """Every token may complete it, and a row's last tokens are read together, not one by one."""
    with Pretended() as gpu:
        policy = far(max_new=30, stop=("never said by anyone",))
        policy.stops.ends = torch.zeros_like(policy.stops.ends)
        policy.stops.completing[("never said by anyone",)] = torch.ones_like(policy.stops.ends)
        gpu.waits = 0
        policy.sample([pt.Ask((pt.user("hi"),), seed=i) for i in range(2)])
    assert gpu.waits < 30 * (2 + 4) + 15


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_pictures_on_a_gpu(family):
    tasks = [shown("a", noise(8, 24)), shown("b b", noise(16, 16), noise(24, 8)), shown("none")]
    near = seeing(family)
    expected = rows_of(near, tasks, 2)
    with Pretended():
        policy = seeing(family)
        move(policy.model, GPU)
        policy = policy.with_model(policy.model)
        found = rows_of(policy, tasks, 2)
        moved = gradient(policy, found)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.logp, other.logp, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(moved.inner, gradient(near, expected), atol=1e-6, rtol=1e-3)


def test_a_diffusion_model_on_a_gpu():
    asks = [pt.Ask((pt.user("heavy left"),), seed=i) for i in range(3)]
    near = drawing()
    expected = near.sample(asks)
    with Pretended():
        made = drawing()
        for network in (made.unet, made.encoder):
            move(network, GPU)
        policy = DiffusionPolicy(made.unet, made.scheduler, made.encoder, made.tokenizer, denoising=made.denoising)
        replies = policy.sample(asks)
        rows = [pt.Row([pt.Turn(a, r)], torch.ones(len(r.logp))) for a, r in zip(asks, replies, strict=True)]
        moved = gradient(policy, rows)
        policy.record(replies[0])
    assert isinstance(moved, Far)
    for one, other in zip(replies, expected, strict=True):
        assert one.content.device.type == one.logp.device.type == one.trace.path.device.type == "cpu"
        torch.testing.assert_close(one.content, other.content, atol=1e-4, rtol=1e-4)


def test_probes_of_the_fast_paths_are_made_without_tf32(make):
    """TF32 alone is as far from float32 as the probes allow: with it on, the fast paths would be switched off."""
    settings, seen = torch.backends.cuda.matmul, []
    policy = make()
    policy.model.register_forward_pre_hook(lambda *_: seen.append(settings.fp32_precision))
    before = settings.fp32_precision
    settings.fp32_precision = "tf32"
    try:
        TextPolicy(policy.model, policy.tokenizer)
        after = settings.fp32_precision
    finally:
        settings.fp32_precision = before
    assert set(seen) == {"ieee"}
    assert after == "tf32"


def test_products_of_bfloat16_are_not_rounded_to_bfloat16():
    torch.manual_seed(0)
    a, b = (30 * torch.randn(4, 3, 64)).bfloat16(), torch.randn(4, 64, 5).bfloat16()
    torch.testing.assert_close(product(a, b).double(), a.double() @ b.double(), atol=1e-3, rtol=1e-5)
