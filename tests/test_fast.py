"""The fast paths equal transformers' own pass: tokens, log-probabilities, gradients, for every architecture.

`plain=True` is the plain path: transformers' forward pass and cache in sampling, one padded row a line in training.
"""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import DEVICE, Spy, task
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

import posttrain as pt
from posttrain.policy.fast.dense import Dense
from posttrain.policy.fast.generate import draw, generate
from posttrain.policy.fast.head import Head, Linear
from posttrain.policy.fast.line import Line
from posttrain.policy.fast.prompt import PromptAttention
from posttrain.policy.text import Sampling, TextPolicy
from posttrain.seeding import mix

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "head_dim": 8,
    "initializer_range": 0.2,
    "bos_token_id": None,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
# name: config, model, more settings, sampled by our pass, trained on lines
MODELS = {
    "llama": (LlamaConfig, LlamaForCausalLM, {"attention_bias": True}, True, True),
    "llama yarn": (LlamaConfig, LlamaForCausalLM, {"rope_parameters": YARN}, True, True),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": None}, True, True),
    "mistral window": (MistralConfig, MistralForCausalLM, {"sliding_window": 16}, False, True),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}, True, True),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"tie_word_embeddings": True}, True, True),
    "gemma": (GemmaConfig, GemmaForCausalLM, {}, True, True),
    "gemma2": (Gemma2Config, Gemma2ForCausalLM, {"sliding_window": 16}, False, False),
    "gemma3": (Gemma3TextConfig, Gemma3ForCausalLM, {"sliding_window": 16}, False, True),
    "qwen3 experts": (Qwen3MoeConfig, Qwen3MoeForCausalLM, EXPERTS, False, True),
}
LONG = "a question that is long enough for its samples to share its keys, and " * 2


@pytest.fixture
def both(words):
    """One model with the fast paths and one without: `both("llama") -> (fast, plain)`."""

    def build(name: str, **options):
        config_type, model_type, more, *_ = MODELS[name]
        config = config_type(
            vocab_size=len(words), eos_token_id=words.eos_token_id, pad_token_id=0, **{**SIZES, **more}
        )
        made = []
        for plain in (False, True):
            torch.manual_seed(0)
            made.append(TextPolicy(model_type(config).eval().to(DEVICE), words, Sampling(16), plain=plain, **options))
        return made

    return build


def asks(texts, samples, **options):
    return [pt.Ask((pt.user(text),), seed=mix(i, j), **options) for i, text in enumerate(texts) for j in range(samples)]


def assert_same(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        assert (one.trace.reply, one.stop) == (other.trace.reply, other.stop)
        torch.testing.assert_close(one.logp, other.logp, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(one.trace.entropy, other.trace.entropy, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("texts", [["hi", "2+2", "a longer question, by some words"], [LONG, "other: " + LONG]])
def test_the_same_tokens_are_drawn(both, name, texts):
    fast, plain = both(name)
    assert (fast.dense, fast.lines) == MODELS[name][3:]
    wanted = asks(texts, 5)
    assert_same(fast.sample(wanted), plain.sample(wanted))


@pytest.mark.parametrize("name", MODELS)
def test_the_same_gradient_with_and_without_shared_prompts(both, name):
    fast, plain = both(name)
    tasks = [task("a"), task("b", text=LONG), task("c", text="other: " + LONG)]
    groups = pt.rollout(pt.single_turn, tasks, {"policy": plain}, 4)
    rows = [
        row
        for i, group in enumerate(groups)
        for j, one in enumerate(group)
        for row in pt.rows(plain, one, torch.full((one.decisions,), j - 1.5), group=i)
    ]
    seen = []
    for policy in (plain, fast):
        spy = Spy(policy)
        loss = pt.total((1.0, pt.clipped()), (0.1, pt.entropy_bonus))
        pt.update(policy, spy, rows, loss, max_norm=1e9)
        seen.append(spy.seen[0])
    torch.testing.assert_close(seen[1], seen[0], atol=5e-6, rtol=2e-4)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_attention_after_a_shared_prompt_is_attention_over_copies_of_its_keys(kind):
    torch.manual_seed(0)
    samples, n, prompt, size = 3, 7, 70, 8
    given = [
        torch.randn(*shape, size, requires_grad=True)
        for shape in ((samples, n, 4), (samples, n, 2), (samples, n, 2), (prompt, 2), (prompt, 2))
    ]
    query, key, value, first_key, first_value = given
    keys = torch.cat([first_key.expand(samples, -1, -1, -1), key], 1).repeat_interleave(2, 2).transpose(1, 2)
    values = torch.cat([first_value.expand(samples, -1, -1, -1), value], 1).repeat_interleave(2, 2).transpose(1, 2)
    seen = torch.ones(n, prompt + n, dtype=torch.bool).tril(prompt)
    plain = F.scaled_dot_product_attention(query.transpose(1, 2), keys, values, attn_mask=seen, scale=0.3)
    ours = PromptAttention.apply(*given, (0.3, kind))
    near = {"atol": 1e-5, "rtol": 1e-4} if kind is torch.float32 else {"atol": 0.02, "rtol": 0.02}
    torch.testing.assert_close(ours.float(), plain.transpose(1, 2), **near)
    credit = torch.randn(samples, n, 4, size)
    wanted = torch.autograd.grad(plain.transpose(1, 2), given, credit)
    found = torch.autograd.grad(ours, given, credit.to(ours.dtype))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=near["atol"] * float(other.abs().max()), rtol=near["rtol"])


@pytest.mark.parametrize("texts", [["hi", "2+2", "the third"], [LONG, "b " + LONG, "c " + LONG + LONG]])
@pytest.mark.parametrize("rows", [3, 8, 64])
def test_rows_that_come_and_go_change_nothing(both, texts, rows):
    """Limits, end tokens and stop strings end rows at different moments; a short table makes others wait."""
    fast, plain = both("qwen3")
    draws = random.Random(0)
    letters = tuple("et")
    wanted = [
        plain.sample_request(
            pt.Ask((pt.user(text),), seed=mix(i, j), max_new=draws.randint(1, 150), stop=letters if j % 3 == 0 else ()),
            plain.chat.prompt((pt.user(text),))[0],
        )
        for i, text in enumerate(texts)
        for j in range(9)
    ]
    slow = dict(generate(plain.head, wanted, plain.stops))
    found = dict(generate(fast.head, wanted, fast.stops, lambda: Dense(fast.head, torch.float32), rows=rows))
    assert found.keys() == slow.keys() == set(range(len(wanted)))
    assert {one.stop for one in slow.values()} == {"length", "end", "string"}
    for i, one in slow.items():
        assert (found[i].ids, found[i].stop) == (one.ids, one.stop)
        torch.testing.assert_close(found[i].logp, one.logp, atol=2e-5, rtol=1e-4)


def test_a_lora_adapter_is_sampled_and_switched_off(both):
    peft = pytest.importorskip("peft")
    fast, plain = both("qwen2")
    adapted = []
    for policy in (fast, plain):
        torch.manual_seed(1)
        settings = peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
        model = peft.get_peft_model(policy.body, settings).eval()
        adapted.append(TextPolicy(model, policy.tokenizer, Sampling(16), plain=policy is plain))
    wanted = asks(["hi", LONG], 4)
    assert adapted[0].dense
    assert_same(adapted[0].sample(wanted), adapted[1].sample(wanted))
    bare = adapted[0].frozen_copy().sample(wanted)
    assert_same(bare, adapted[1].frozen_copy().sample(wanted))
    assert [r.content for r in bare] != [r.content for r in adapted[0].sample(wanted)]


def test_the_sampler_sees_every_update(both):
    fast, plain = both("llama")
    for policy in (fast, plain):
        with torch.no_grad():
            for p in policy.model.parameters():
                p.mul_(0.7)
    wanted = asks(["hi"], 4)
    assert_same(fast.sample(wanted), plain.sample(wanted))


def test_lines_of_mixed_lengths_without_padding(both):
    """Rows of very different lengths fall into several blocks; a multi-turn row shares its first prompt."""
    fast, plain = both("mistral window")
    assert fast.lines
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(3, 500, (int(n),), generator=generator).tolist() for n in (200, 7, 6, 120, 9)]
    rows += [rows[0][:50] + rows[1], rows[0][:50] + rows[3]]
    line = Line(rows, [0, 0, 0, 0, 0, 50, 50], torch.device("cpu"))
    with torch.no_grad():
        hidden = fast.head.trunk(**line.inputs()).last_hidden_state[0]
        for r, ids in enumerate(rows):
            alone = plain.head.trunk(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0]
            ours = hidden[[line.place(r, p) for p in range(len(ids))]]
            torch.testing.assert_close(ours, alone, atol=5e-5, rtol=1e-4)
    assert len(hidden) == sum(map(len, rows)) - 50
    assert len(line.blocks(None)) > 1


@given(shared=st.integers(0, 6), lengths=st.lists(st.integers(1, 90), min_size=1, max_size=12), lone=st.integers(0, 40))
@settings(max_examples=40, deadline=None)
def test_every_token_of_a_line_has_its_own_place(shared, lengths, lone):
    rows = [[1] * shared + [2] * length for length in lengths] + [[3] * (lone + 1)]
    line = Line(rows, [shared] * len(lengths) + [0], torch.device("cpu"))
    ids = line.inputs()["input_ids"][0].tolist()
    for r, row in enumerate(rows):
        assert [ids[line.place(r, p)] for p in range(len(row))] == row
    covered = [i for block in line.blocks(None) for i in range(block.begin, block.end)]
    assert covered == list(range(len(ids)))


@pytest.mark.parametrize("size", [2, 3, 100])
@pytest.mark.parametrize("wanted", ["logp", "entropy", "both"])
def test_the_head_s_own_gradient_is_autograd_s(size, wanted):
    torch.manual_seed(0)
    hidden, weight = torch.randn(7, 5, dtype=torch.float64), torch.randn(11, 5, dtype=torch.float64)
    chosen, warmth = torch.randint(11, (7,)), torch.rand(7, dtype=torch.float64) + 0.5
    up = torch.randn(2, 7, dtype=torch.float64)
    found = []
    for ours in (True, False):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        if ours:
            logp, entropy = Linear.apply(h, w, chosen, warmth, size)
        else:
            plain = SimpleNamespace(logits=lambda x, w=w: x @ w.T)
            logp, entropy = Head.piece(plain, h, chosen, warmth)  # type: ignore[arg-type]
        parts = {"logp": [logp], "entropy": [entropy], "both": [logp, entropy]}[wanted]
        cost = sum((part * u).sum() for part, u in zip(parts, up, strict=False))
        found.append([logp, entropy, *torch.autograd.grad(cost, [h, w])])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("size", [300, 1024, 1025, 5000])
def test_drawing_by_blocks_follows_the_distribution(size):
    """Every token's share of the unit interval is its probability: found at the edges and in the middle of each."""
    torch.manual_seed(0)
    logits = torch.randn(1, size) * 2
    logits[0, 7] = float("-inf")
    p = logits.double().softmax(-1)[0]
    edges = torch.cat([torch.zeros(1, dtype=torch.float64), p.cumsum(0)])
    tokens = torch.randint(size, (400,))
    tokens = tokens[p[tokens] > 1e-6]
    uniform = edges[tokens] + p[tokens] * 0.5
    chosen, logp, entropy = draw(logits.repeat(len(tokens), 1), None, uniform)
    assert chosen.tolist() == tokens.tolist()
    torch.testing.assert_close(logp, p.log()[tokens].float(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropy[0].double(), -(p * p.clamp(min=1e-300).log()).sum(), atol=1e-4, rtol=1e-5)
