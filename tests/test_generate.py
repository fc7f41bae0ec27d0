"""Sampling: the tokens, their probabilities, when a reply ends; and real checkpoints of several architectures."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from conftest import task
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import posttrain as pt
from posttrain.policy.fast.generate import draw

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "head_dim": 8,
    "initializer_range": 0.2,
}
ARCHITECTURES = {
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"tie_word_embeddings": True}),
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": None}),
    "gemma2": (Gemma2Config, Gemma2ForCausalLM, {"sliding_window": 16, "final_logit_softcapping": 5.0}),
}


@pytest.fixture
def saved(tmp_path, words):
    """A checkpoint of an architecture in the Hugging Face format: `save_base_checkpoint("llama") -> folder`."""

    def save(name: str):
        config_type, model_type, more = ARCHITECTURES[name]
        ids = {"bos_token_id": None, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}
        torch.manual_seed(0)
        model = model_type(config_type(vocab_size=len(words), **ids, **{**SIZES, **more}))
        model.save_pretrained(tmp_path / name)
        words.save_pretrained(tmp_path / name)
        return tmp_path / name

    return save


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_checkpoints_of_several_architectures_load_sample_and_score(saved, name):
    policy = pt.text(str(saved(name)), max_new=24, device="cpu")
    pt.check_policy(policy, [task("a"), task("b", text="a longer question than the first one, by some")])
    [one] = pt.play([task("c")], pt.single_turn, {"policy": policy})
    tokens = one.turns[0].reply.trace
    ids = torch.tensor([[*tokens.prompt, *tokens.reply]])
    with torch.no_grad():
        logp = policy.model(ids).logits[0, :-1].float().log_softmax(-1)
    expected = logp[range(len(tokens.prompt) - 1, ids.shape[1] - 1), list(tokens.reply)]
    torch.testing.assert_close(one.turns[0].reply.logp, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["qwen3", "llama"])
def test_greedy_is_the_greedy_of_transformers(saved, name):
    policy = pt.text(str(saved(name)), max_new=20, temperature=0.0, device="cpu")
    prompts = [(pt.user(text),) for text in ("hi", "a much longer question", "2+2")]
    replies = policy.sample([pt.Ask(p) for p in prompts])
    for prompt, reply in zip(prompts, replies, strict=True):
        ids = torch.tensor([policy.chat.prompt(prompt)[0]])
        theirs = policy.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False, pad_token_id=0
        )
        assert list(reply.trace.reply) == theirs[0, ids.shape[1] :].tolist()


def test_draw_follows_the_distribution_and_reports_it():
    logits = torch.tensor([[0.0, 1.0, 2.0, -1e9]]).repeat(20000, 1)
    uniform = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
    for temperature in (1.0, 0.5):
        chosen, logp, entropy = draw(logits.clone(), torch.full((20000, 1), temperature), uniform)
        p = (logits[0] / temperature).softmax(-1)
        shares = Counter(chosen.tolist())
        for token in range(4):
            assert shares[token] / 20000 == pytest.approx(p[token].item(), abs=2e-3)
        torch.testing.assert_close(logp, p.log()[chosen])
        torch.testing.assert_close(entropy[0], torch.distributions.Categorical(p).entropy())
    chosen, logp, _ = draw(logits[:1].clone(), torch.zeros(1, 1), torch.tensor([0.01], dtype=torch.float64))
    assert chosen.item() == 2
    torch.testing.assert_close(logp, logits[:1].log_softmax(-1)[:, 2])


def test_replies_end_by_token_string_or_length(make):
    policy = make(max_new=40)
    asks = [pt.Ask((pt.user("hi"),), seed=i) for i in range(60)]
    replies = policy.sample(asks)
    end = policy.tokenizer.eos_token_id
    for reply in replies:
        assert (reply.trace.reply[-1] == end) == (reply.stop == "end")
        assert reply.stop == "end" or len(reply.logp) == 40
    assert {reply.stop for reply in replies} == {"end", "length"}

    letter = Counter(c for reply in replies for c in reply.content if c.isalpha()).most_common(1)[0][0]
    stopped = policy.sample([pt.Ask((pt.user("hi"),), seed=i, stop=(letter,)) for i in range(60)])
    assert any(reply.stop == "string" for reply in stopped)
    for reply, free in zip(stopped, replies, strict=True):
        if reply.stop == "string":
            assert letter in reply.content
            assert letter not in policy.chat.decode(reply.trace.reply[:-1])
            assert free.trace.reply[: len(reply.logp)] == reply.trace.reply


def test_limits_are_per_ask_and_by_the_context(make):
    policy = make(max_new=8)
    long = "word " * 140
    replies = policy.sample([pt.Ask((pt.user("hi"),), max_new=3, seed=2), pt.Ask((pt.user(long * 3),))])
    assert len(replies[0].logp) <= 3
    assert (replies[1].content, replies[1].stop, len(replies[1].logp)) == ("", "length", 0)
    with pytest.raises(ValueError, match=r"task 'big': its prompt has \d+ tokens .* but the model has 256 positions"):
        policy.check([task("big", text=long * 3)])


def test_training_on_greedy_samples_is_refused(make):
    policy = make(temperature=0.0)
    [one] = pt.play([task()], pt.single_turn, {"policy": policy})
    with pytest.raises(ValueError, match="temperature 0 has no density"):
        policy.density(pt.rows(policy, one, torch.zeros(one.decisions)))


def test_the_chunked_head_equals_the_whole(make, monkeypatch):
    policy = make()
    rows = [
        row
        for group in pt.rollout(pt.single_turn, [task()], {"policy": policy}, 6)
        for one in group
        for row in pt.rows(policy, one, torch.zeros(one.decisions))
    ]
    found = []
    for elements in (2**23, 3 * 512):
        monkeypatch.setattr("posttrain.policy.fast.head.ELEMENTS", elements)
        density = policy.density(rows)
        gradient = torch.autograd.grad(density.logp.sum() + density.entropy.sum(), list(policy.parameters()))
        found.append((density.logp, density.entropy, torch.cat([g.flatten() for g in gradient])))
    for whole, chunked in zip(*found, strict=True):
        torch.testing.assert_close(whole, chunked, atol=1e-5, rtol=1e-4)


def test_gradient_checkpointing_and_bf16_change_memory_not_meaning(saved):
    path = str(saved("qwen2"))
    plain, checked = (pt.text(path, max_new=6, checkpointing=c, device="cpu") for c in (False, True))
    groups = pt.rollout(pt.single_turn, [task()], {"policy": checked}, 3)
    rows = [row for one in groups[0] for row in pt.rows(plain, one, torch.zeros(one.decisions))]
    gradients = []
    for policy in (plain, checked):
        policy.density(rows).logp.sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None]))
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-4)
    half = pt.text(path, max_new=6, bf16=True, device="cpu")
    logp = half.density(rows).logp
    assert logp.dtype == torch.float32
    assert (logp - plain.density(rows).logp).abs().mean() < 0.05
    assert next(iter(half.parameters())).dtype == torch.float32


def test_lora_trains_the_adapter_and_its_reference_is_the_base(saved, tmp_path):
    policy = pt.text(str(saved("llama")), lora=4, max_new=6, device="cpu")
    count = sum(p.numel() for p in policy.parameters())
    assert 0 < count < sum(p.numel() for p in policy.model.parameters()) / 2
    reference = policy.frozen_copy()
    groups = pt.rollout(pt.single_turn, [task()], {"policy": policy}, 4)
    rows = [row for one in groups[0] for row in pt.rows(policy, one, torch.ones(one.decisions))]
    before = reference.density(rows).logp.detach()
    torch.testing.assert_close(before, policy.density(rows).logp.detach())
    optimizer = torch.optim.AdamW(policy.parameters(), 1e-2)
    for _ in range(3):
        pt.update(policy, optimizer, rows, pt.likelihood)
    torch.testing.assert_close(before, reference.density(rows).logp.detach())
    assert (policy.density(rows).logp - before).sum() > 0.1
    policy.save(tmp_path / "merged")
    merged = pt.text(str(tmp_path / "merged"), max_new=6, device="cpu")
    torch.testing.assert_close(merged.density(rows).logp, policy.density(rows).logp, atol=1e-4, rtol=1e-3)
    assert (tmp_path / "merged" / "adapter" / "adapter_config.json").is_file()


def test_loading_errors_say_what_to_do(tmp_path, saved, monkeypatch):
    with pytest.raises(ValueError, match="there is no such folder"):
        pt.text(str(tmp_path / "nowhere"))
    good = saved("qwen2")
    with pytest.raises(ValueError, match=r"holds no config.json.*did you mean .*qwen2"):
        pt.text(str(tmp_path))
    with pytest.raises(ValueError, match=r"max_new=500 tokens, but the model .* has 128 positions"):
        pt.text(str(good), max_new=500)
    (good / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="holds no loadable model"):
        pt.text(str(good))
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text((good / "config.json").read_text())
    with pytest.raises(ValueError, match="no loadable"):
        pt.text(str(tmp_path / "bare"))


def test_bfloat16_is_left_out_where_it_is_slower_and_said_to_be(saved, monkeypatch, capsys):
    monkeypatch.setattr("posttrain.policy.abilities.bfloat16_slowdown", lambda: 6.5)
    assert not pt.text(str(saved("qwen2")), max_new=6, bf16=True, device="cpu").bf16
    assert "takes 6.5 times as long in bfloat16 as in float32, so the model runs in float32" in capsys.readouterr().err


def test_the_speed_of_a_product_is_measured():
    from posttrain.policy import abilities

    assert 0.01 < abilities.product_seconds(torch.bfloat16) / abilities.product_seconds(torch.float32) < 1000
    assert abilities.cpu_name()
