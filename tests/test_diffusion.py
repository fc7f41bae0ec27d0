"""The diffusion policy: its steps are diffusers' own, its decisions have the density that they were drawn from."""

from __future__ import annotations

import base64
import io
import json
import shutil
import sys
from dataclasses import replace

import diffusion_checkpoints
import pytest
import torch
from conftest import Spy, said
from diffusion_checkpoints import drawing
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import posttrain as pt
from posttrain.check import check_policy
from posttrain.lab.world.balance import Balance
from posttrain.lab.world.pictures import base
from posttrain.policy.denoise import gaussian_entropy, gaussian_logp, schedule
from posttrain.policy.diffusion import thumbnail
from posttrain.policy.latents import branch_part
from posttrain.policy.pipeline import diffusion
from posttrain.policy.png import pixels_of, png
from posttrain.row import rows_of
from posttrain.run.directory import json_value
from posttrain.step import train_in_memory

TASKS = Balance().tasks()


def ask(text="heavy left", seed=0, **options):
    return pt.Ask((pt.user(text),), seed=seed, **options)


def branched(seed, last, **options):
    return ask([{"type": "text", "text": "heavy left"}, branch_part(7, last)], seed, **options)


def after(reply, seed=0, **options):
    return pt.Ask((pt.user("heavy left"), pt.assistant(reply)), seed=seed, **options)


def drawn_rows(policy, count=4, **options):
    asks = [ask(("heavy left", "heavy right")[i % 2], seed=i, **options) for i in range(count)]
    replies = policy.sample(asks)
    credit = [torch.full((len(reply.logp),), float(i - 1)) for i, reply in enumerate(replies)]
    return [pt.Row([pt.Turn(a, r)], c, i % 2) for i, (a, r, c) in enumerate(zip(asks, replies, credit, strict=True))]


# ---- the steps


def scheduler(**options):
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    return DDIMScheduler(**{"clip_sample": False, "beta_schedule": "scaled_linear", **options})


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"prediction_type": "v_prediction"},
        {"set_alpha_to_one": False, "steps_offset": 1},
        {"beta_schedule": "squaredcos_cap_v2"},
    ],
)
def test_steps_are_those_of_diffusers(options, eta):
    theirs = scheduler(**options)
    ours = schedule(theirs, 10)
    torch.manual_seed(0)
    for k, t in enumerate(theirs.timesteps):
        x, predicted, noise = torch.randn(3, 2, 1, 4, 4)
        step, etas = torch.full((2,), k), torch.full((2,), eta)
        mean, sigma = ours.mean(x, predicted, step, etas), ours.sigma(step, etas)
        wanted = theirs.step(predicted, int(t), x, eta=eta, variance_noise=noise if eta else None).prev_sample
        torch.testing.assert_close(mean + sigma.view(-1, 1, 1, 1) * noise, wanted, atol=1e-5, rtol=1e-5)
        width = ours.width(step, etas)
        torch.testing.assert_close(width, sigma.clamp(min=0.02) if eta else sigma)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_way_back_is_that_of_diffusers(prediction):
    from diffusers.schedulers.scheduling_ddim_inverse import DDIMInverseScheduler

    forward = scheduler(prediction_type=prediction)
    theirs, ours = DDIMInverseScheduler.from_config(forward.config), schedule(forward, 10)
    theirs.set_timesteps(10)
    torch.manual_seed(0)
    for k, t in zip(reversed(range(10)), theirs.timesteps, strict=True):
        assert ours.timesteps[k] == t
        x, predicted = torch.randn(2, 2, 1, 4, 4)
        wanted = theirs.step(predicted, int(t), x).prev_sample
        torch.testing.assert_close(ours.back(x, predicted, torch.tensor([k, k])), wanted, atol=1e-5, rtol=1e-5)


@given(st.integers(0, 9), st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_a_step_back_undoes_a_step_without_noise(k, seed):
    ours = schedule(scheduler(set_alpha_to_one=False, steps_offset=1), 10)
    x, predicted = torch.randn(2, 1, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    step = torch.tensor([k])
    there = ours.mean(x, predicted, step, torch.zeros(1))
    torch.testing.assert_close(ours.back(there, predicted, step), x, atol=1e-4, rtol=1e-4)


def test_the_density_is_gaussian_and_its_reduction_explicit():
    torch.manual_seed(0)
    x, mean, sigma = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4), torch.tensor([0.5, 2.0])
    normal = torch.distributions.Normal(mean, sigma.view(-1, 1, 1, 1).expand_as(mean))
    each = normal.log_prob(x).flatten(1)
    torch.testing.assert_close(gaussian_logp(x, mean, sigma, "mean"), each.mean(1))
    torch.testing.assert_close(gaussian_logp(x, mean, sigma, "sum"), each.sum(1))
    torch.testing.assert_close(gaussian_entropy(sigma, 48, "sum"), normal.entropy().flatten(1).sum(1))
    torch.testing.assert_close(gaussian_entropy(sigma, 48, "mean"), normal.entropy().flatten(1).mean(1))


def test_the_last_step_has_a_density_although_its_sigma_is_zero():
    policy = drawing()
    last, one = torch.tensor([2]), torch.ones(1)
    assert policy.schedule.sigma(last, one) == 0
    assert policy.schedule.width(last, one) == pytest.approx(0.02)
    assert all(torch.isfinite(reply.logp).all() for reply in policy.sample([ask(seed=i) for i in range(4)]))


@pytest.mark.parametrize(
    ("options", "steps", "message"),
    [
        ({"clip_sample": True}, 10, "clips pictures"),
        ({"prediction_type": "sample"}, 10, "prediction_type is sample"),
        ({}, 1001, "1001 denoising steps"),
    ],
)
def test_schedules_without_a_density_are_refused(options, steps, message):
    with pytest.raises(ValueError, match=message):
        schedule(scheduler(**options), steps)


# ---- the policy


@pytest.mark.parametrize("how", [{}, {"guidance": 1.0, "steps": 4}, {"batch": 4}, {"temperature": 0.5}])
def test_density_of_fresh_pictures_is_what_was_drawn(how):
    check_policy(drawing(**how), TASKS)


def test_of_a_sum_as_well_and_with_branches():
    policy = drawing(reduction="sum")
    staged = [pt.Task("a", branched(0, 2).messages, None)]
    check_policy(policy, [*TASKS, *staged], tolerance=64e-4)
    mean = drawing()
    asks = [ask(seed=3)]
    torch.testing.assert_close(policy.sample(asks)[0].logp, 64 * mean.sample(asks)[0].logp, rtol=1e-4, atol=1e-3)


def test_guidance_adds_what_the_text_changes():
    policy = drawing()
    torch.manual_seed(0)
    x, step = torch.randn(2, 1, 8, 8), torch.tensor([0, 2])
    given_ = policy.conditions(["heavy left", "heavy right"])
    with torch.no_grad():
        without, along, both = (policy.prediction(x, step, given_, weight) for weight in (0.0, 1.0, 2.5))
    torch.testing.assert_close(both, without + 2.5 * (along - without), atol=5e-5, rtol=1e-4)
    assert (along - without).abs().max() > 1e-4
    assert policy.calls == 2 + 2 + 4


def test_a_picture_depends_on_its_seed_alone():
    many = drawing().sample([ask(seed=i) for i in range(5)])
    for how in ({}, {"batch": 2}):
        alone = drawing(**how).sample([ask(seed=3), ask("heavy right", seed=9)])[0]
        torch.testing.assert_close(alone.content, many[3].content, atol=1e-5, rtol=1e-4)
    assert (many[0].content - many[1].content).abs().max() > 0.01


def test_a_draft_is_drawn_without_noise_and_without_decisions():
    policy = drawing()
    first, again = (policy.sample([ask(seed=5, temperature=0.0)])[0] for _ in range(2))
    assert torch.equal(first.content, again.content)
    assert first.content.shape == (1, 8, 8)
    assert len(first.logp) == 0
    rollout = pt.Rollout(TASKS[0], [pt.Turn(ask(), first)])
    assert rows_of(policy, rollout, rollout.turns) == []


def test_a_shown_picture_is_led_back_to_the_noise_that_the_next_begins_at():
    policy = drawing(w_denoise=1.0, w_invert=0.0)
    draft = policy.sample([ask(temperature=0.0)])[0]
    x = draft.trace.path[-1:]
    given_ = policy.conditions(["heavy left"])
    with torch.no_grad():
        for k in (2, 1, 0):
            step = torch.tensor([k])
            x = policy.schedule.back(x, policy.prediction(x, step, given_, 0.0), step)
    redrawn = policy.sample([after(draft, seed=4)])[0]
    torch.testing.assert_close(redrawn.trace.path[0], x[0], atol=1e-5, rtol=1e-5)
    assert len(redrawn.logp) == 3
    assert not redrawn.trace.path.requires_grad  # memory must not grow with the rounds


def test_branches_share_their_trunk_and_its_cost():
    policy = drawing(steps=6)
    replies = policy.sample([branched(seed, 2) for seed in range(5)])
    assert policy.calls == 2 * (4 * 1 + 2 * 5)
    assert all(torch.equal(reply.trace.path[0], replies[0].trace.path[0]) for reply in replies)
    assert all(len(reply.logp) == 2 for reply in replies)
    assert (replies[0].content - replies[1].content).abs().max() > 1e-3
    policy.calls = 0
    drafts = policy.sample([branched(seed, 2, temperature=0.0) for seed in range(5)])
    assert policy.calls == 2 * 6
    asked = [{"type": "text", "text": "heavy left"}, branch_part(7, 2)]
    nexts = [pt.Ask((pt.user(asked), pt.assistant(draft)), seed=i) for i, draft in enumerate(drafts)]
    policy.calls = 0
    policy.sample(nexts)
    assert policy.calls == 2 * (6 + 4 * 1 + 2 * 5)  # back, trunk and branches


def test_a_trunk_has_other_noise_in_every_round():
    policy = drawing()
    draft = policy.sample([branched(0, 1)])[0]
    later = replace(draft, trace=replace(draft.trace, round=1))
    asked = [{"type": "text", "text": "heavy left"}, branch_part(7, 1)]
    second, third = policy.sample([pt.Ask((pt.user(asked), pt.assistant(one)), seed=4) for one in (draft, later)])
    assert (second.trace.round, third.trace.round) == (1, 2)
    assert (second.trace.path[0] - third.trace.path[0]).abs().max() > 1e-2


def test_pieces_and_micro_batches_leave_the_gradient_as_it_is():
    seen = []
    for batch, tokens in ((256, 10**6), (4, 10**6), (256, 200)):
        policy = drawing(batch=batch)
        rows = drawn_rows(drawing())
        spy = Spy(policy)
        pt.update(policy, spy, rows, pt.clipped(), micro_tokens=tokens)
        seen.append(spy.seen[0])
    assert seen[0].abs().max() > 0
    for other in seen[1:]:
        torch.testing.assert_close(other, seen[0], atol=1e-5, rtol=1e-3)


def test_size_counts_positions_of_the_unet():
    rows = drawn_rows(drawing(), 2)
    assert drawing().size(rows) == 2 * 2 * 3 * 64


def test_reinforcement_brightens_pictures():
    """Reward is the mean of the pixels: the same update that trains text."""
    policy = drawing(guidance=1.0)
    bright = pt.each(lambda rollout: float(rollout.turns[-1].reply.content.mean()))
    recipe = pt.Recipe(bright, samples=16)
    history = train_in_memory(policy, TASKS, recipe, steps=16, per_step=2, lr=1e-2)
    assert history[-1]["reward"] > history[0]["reward"] + 0.1


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ((pt.system("draw"),), "no message of the user"),
        ((pt.user([]),), "in text"),
        ((pt.user(7),), "in text"),
        ((pt.user([{"type": "text", "text": "heavy left"}, {"type": "picture"}]),), "not 'picture'"),
        ((pt.user([{"type": "text", "text": "heavy left"}, branch_part(0, 4)]),), "last 4 steps of a walk of 3"),
        ((pt.user("heavy left"), pt.assistant("a picture")), "no picture of a diffusion policy"),
        ((pt.user("heavy left"), pt.assistant(said("text").turns[0].reply)), "no picture of a diffusion policy"),
    ],
)
def test_asks_that_it_cannot_read(messages, message):
    with pytest.raises(ValueError, match=message):
        drawing().sample([pt.Ask(messages)])


def test_latents_of_another_shape_and_negative_temperatures_are_refused():
    policy = drawing()
    reply = policy.sample([ask()])[0]
    reply.trace.path.resize_(4, 4, 4, 4)
    with pytest.raises(ValueError, match=r"latents of shape \[4, 4, 4\], but this model's are \[1, 8, 8\]"):
        policy.sample([after(reply)])
    with pytest.raises(ValueError, match="temperature -1"):
        policy.sample([ask(temperature=-1.0)])


@pytest.mark.parametrize(
    ("text", "message"),
    [("heavy middle", "task 'k': the prompt 'heavy middle' has a word"), ("heavy left left", "3 tokens")],
)
def test_prompts_that_the_encoder_cannot_read_are_refused_before_any_work(text, message):
    with pytest.raises(ValueError, match=message):
        drawing().check([pt.Task("k", (pt.user(text),), None)])


# ---- checkpoints


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return diffusion_checkpoints.stable_diffusion(tmp_path_factory.mktemp("sd"))


def test_a_tiny_policy_is_saved_and_loaded(tmp_path):
    policy = drawing()
    policy.save(tmp_path / "model")
    again = diffusion(str(tmp_path / "model"), policy.denoising, device="cpu")
    first, second = (one.sample([ask(seed=1)])[0] for one in (policy, again))
    torch.testing.assert_close(first.content, second.content)
    with pytest.raises(ValueError, match="no conv_in.weight of shape"):
        again.load_state_dict({})


def test_stable_diffusion_is_trained_by_an_adapter_and_loads_in_diffusers(checkpoint, tmp_path):
    from diffusers import StableDiffusionPipeline

    how = pt.Denoising(steps=3)
    policy, plain_ = (diffusion(checkpoint, how, lora=rank, device="cpu") for rank in (2, 0))
    assert all(".lora_" in name for name in policy.state_dict())
    assert policy.schedule.sigma(torch.tensor([2]), torch.ones(1)) > 0  # it ends at the first level, not at 1
    check_policy(policy, TASKS, tolerance=1e-3)
    reference = policy.frozen_copy()
    spy = torch.optim.SGD(policy.parameters(), lr=100.0)
    rows = drawn_rows(policy)
    for _ in range(2):
        pt.update(policy, spy, rows, pt.clipped(), max_norm=100.0)
    reply = policy.sample([ask(seed=1)])[0]
    was, as_plain = reference.sample([ask(seed=1)])[0], plain_.sample([ask(seed=1)])[0]
    assert reply.content.shape == (3, 16, 16)
    torch.testing.assert_close(was.content, as_plain.content, atol=1e-5, rtol=1e-4)
    assert (reply.content - was.content).abs().max() > 1e-4
    policy.save(tmp_path / "model")
    assert list((tmp_path / "model" / "adapter").glob("*.safetensors"))
    merged = diffusion(str(tmp_path / "model"), how, device="cpu")
    torch.testing.assert_close(merged.sample([ask(seed=1)])[0].content, reply.content, atol=1e-4, rtol=1e-3)
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "model")
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("heavy left", num_inference_steps=2, output_type="np").images.shape == (1, 16, 16, 3)


def test_half_precision(checkpoint):
    policy = diffusion(checkpoint, pt.Denoising(steps=2), bf16=True, device="cpu")
    density = policy.density(drawn_rows(policy))
    assert density.logp.dtype == torch.float32
    density.logp.sum().backward()
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in policy.parameters())


@pytest.mark.parametrize(("kind", "lora"), [(torch.float16, 0), (torch.bfloat16, 2), (torch.float32, 0)])
def test_a_checkpoint_is_trained_in_float32_and_saved_in_its_own_dtype(checkpoint, tmp_path, kind, lora):
    from diffusers import StableDiffusionPipeline

    stored = StableDiffusionPipeline.from_pretrained(checkpoint, torch_dtype=kind)
    stored.save_pretrained(tmp_path / "half")
    policy = diffusion(str(tmp_path / "half"), pt.Denoising(steps=3), lora=lora, device="cpu")
    networks = (policy.unet, policy.encoder, policy.vae)
    assert {p.dtype for network in networks for p in network.parameters()} == {torch.float32}
    check_policy(policy, TASKS, tolerance=1e-3)
    policy.save(tmp_path / "saved")
    assert {p.dtype for network in networks for p in network.parameters()} == {torch.float32}, "it goes on in float32"
    for folder in ("unet", "text_encoder", "vae"):
        (one,), (two,) = ((tmp_path / name / folder).glob("*.safetensors") for name in ("half", "saved"))
        before, after = load_file(one), load_file(two)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) and after[name].dtype == kind for name in before), folder
    about = json.loads((tmp_path / "saved" / "text_encoder" / "config.json").read_text())
    assert about["dtype"] == str(kind).removeprefix("torch.")


def test_latents_are_not_taken_for_pictures(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "sd")
    shutil.rmtree(tmp_path / "sd" / "vae")
    with pytest.raises(ValueError, match=r"sd`: its UNet works on latents of 4 channels, but the folder has no vae/"):
        diffusion(str(tmp_path / "sd"), device="cpu")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"addition_embed_type": "text_time"}, "addition_embed_type text_time.*as SDXL's does"),
        ({"in_channels": 9}, "reads 9 channels and writes 4"),
    ],
)
def test_a_unet_that_cannot_be_asked_is_refused_before_its_weights_are_read(checkpoint, tmp_path, settings, message):
    shutil.copytree(checkpoint, tmp_path / "sd")
    unet = tmp_path / "sd" / "unet"
    (unet / "config.json").write_text(json.dumps(json.loads((unet / "config.json").read_text()) | settings))
    for weights in unet.glob("*.safetensors"):
        weights.unlink()
    with pytest.raises(ValueError, match=message):
        diffusion(str(tmp_path / "sd"), device="cpu")


@pytest.mark.parametrize("made", [lambda path: base(Balance()), lambda path: diffusion(path, device="cpu")])
def test_without_the_extra_it_is_named(checkpoint, tmp_path, monkeypatch, made):
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "diffusers.models.unets.unet_2d_condition", None)
    with pytest.raises(ValueError, match=r"pip install 'posttrain\[diffusion\]'"):
        made(checkpoint)


def test_folders_that_are_no_diffusion_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="there is no such folder"):
        diffusion(str(tmp_path / "nothing"))
    (tmp_path / "unet").mkdir()
    with pytest.raises(ValueError, match="has no scheduler/"):
        diffusion(str(tmp_path))


# ---- what a person sees


def test_pictures_are_recorded_small(tmp_path):
    from PIL import Image

    torch.manual_seed(0)
    for channels, mode in ((1, "L"), (3, "RGB")):
        picture = torch.rand(channels, 5, 7) * 2 - 1
        image = Image.open(io.BytesIO(png(pixels_of(picture))))
        assert (image.mode, image.size) == (mode, (7, 5))
        assert image.getpixel((6, 4)) == pytest.approx(
            ((picture[:, 4, 6] + 1) * 127.5).round().tolist()[0 if channels == 1 else slice(None)]
        )
    assert thumbnail(torch.zeros(3, 512, 256)).shape == (3, 64, 32)
    policy = drawing()
    seen = policy.record(policy.sample([ask()])[0])
    assert base64.b64decode(seen["picture"].partition(",")[2]).startswith(b"\x89PNG")
    assert seen["pieces"] == ["666 ", "333 ", "0 "]
    assert len(seen["entropy"]) == 3
    assert json_value({"content": torch.zeros(1, 2)}) == {"content": "Tensor of [1, 2]"}


def test_a_run_shows_its_pictures(tmp_path):
    from posttrain.cli.report import write_report

    bright = pt.each(lambda rollout: float(rollout.turns[-1].reply.content.mean()))
    out = tmp_path / "run"
    pt.train(drawing(), TASKS, pt.Recipe(bright, samples=2), pt.Run(out, steps=1, tasks=2, quiet=True))
    record = next(pt.read_rollouts(out))
    assert record["turns"][0]["picture"].startswith("data:image/png")
    assert record["turns"][0]["content"] == "Tensor of [1, 8, 8]"
    assert "data:image/png" in write_report(out).read_text()
    json.dumps(record)
