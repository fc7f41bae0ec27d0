"""Decoding with access to layers, against references without a cache that are written from the rules alone."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain import tiny
from posttrain.decode.contrast import (
    chosen_layer,
    contrast_scores,
    jensen_shannon,
    penalise_repetition,
    released_divergence,
)
from posttrain.decode.decode import Choice, Decoding, always, decode_replies, never
from posttrain.decode.layers import candidates, final_norm
from posttrain.policy.text import Sampling, TextPolicy

PROMPTS = [(7, 8, 9), (40,), (11, 12, 13, 14, 15, 16, 17), (300, 21)]
LONG = 9


@pytest.fixture(scope="module")
def tokens() -> Any:
    return tiny.tokenizer()


def llama(tokens: Any, *, layers: int = 6, tied: bool = True, seed: int = 0) -> TextPolicy:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
    )
    return TextPolicy(LlamaForCausalLM(config).eval(), tokens, Sampling(LONG))


@pytest.fixture(scope="module")
def policy(tokens) -> TextPolicy:
    return llama(tokens)


# ---- which layers


@pytest.mark.parametrize(
    ("count", "tied", "low", "high"),
    [
        (32, False, range(0, 16, 2), range(16, 32, 2)),
        (32, True, range(2, 16, 2), range(16, 32, 2)),
        (6, True, [2], [3, 5]),
        (4, True, [2], [2]),  # start == L // 2: that one
        (2, True, [1], [1]),
        (1, True, [0], [0]),
        (48, False, range(0, 20, 2), range(28, 48, 2)),
        (41, True, range(2, 20, 2), range(21, 41, 2)),
        (40, False, range(0, 20, 2), range(20, 40, 2)),
    ],
)
def test_candidates_are_those_of_transformers(count, tied, low, high):
    config = SimpleNamespace(num_hidden_layers=count, tie_word_embeddings=tied)
    assert candidates(config, "low") == tuple(low)
    assert candidates(config, "high") == tuple(high)


def test_layers_may_be_named_and_wrong_ones_are_refused():
    config = SimpleNamespace(num_hidden_layers=6, tie_word_embeddings=True)
    assert candidates(config, "1,4") == candidates(config, (1, 4)) == (1, 4)
    for wrong in ("6", "-1", "1,1", ()):
        with pytest.raises(ValueError, match=r"layers 0 \(the embeddings\) to 5"):
            candidates(config, wrong)
    with pytest.raises(ValueError, match="give low, high, or numbers"):
        candidates(config, "middle")


# ---- scores


def test_the_contrast_by_hand():
    mature = torch.tensor([[0.5, 0.4, 0.06, 0.04]]).log()
    early = torch.tensor([[[0.7, 0.1, 0.1, 0.1]]]).log()
    found = contrast_scores(mature, early)[0]
    wanted = [math.log(0.5 / 0.7), math.log(0.4 / 0.1), math.log(0.06 / 0.1)]
    assert found[:3].tolist() == pytest.approx(wanted, rel=1e-5, abs=1e-5)
    assert found[3] == -math.inf  # 0.04 < 0.1 * 0.5
    alone = contrast_scores(mature, early, relative_top=1.0)[0]
    assert torch.isfinite(alone).tolist() == [True, False, False, False]  # one is always kept
    assert contrast_scores(mature + 3.0, early - 5.0)[0, 1].item() == pytest.approx(
        math.log(4)
    )  # logits need not be logs


def test_the_layer_is_chosen_by_row_and_not_by_its_neighbours():
    p = torch.tensor([0.7, 0.2, 0.1])
    far, near = torch.tensor([0.1, 0.2, 0.7]), torch.tensor([0.6, 0.3, 0.1])
    mature = torch.stack([p, p, p]).log()
    early = torch.stack([torch.stack([near, far]), torch.stack([far, near]), torch.stack([far, near])]).log()
    assert chosen_layer(mature, early).tolist() == [1, 0, 0]
    assert chosen_layer(mature, early, shared=True).tolist() == [0, 0, 0]  # the majority decides for the first row
    assert chosen_layer(mature[:1], early[:1], shared=True).tolist() == [1]


logits = st.lists(st.floats(-8, 8), min_size=5, max_size=5)


@settings(deadline=None, max_examples=50)
@given(logits, logits)
def test_divergences(p, q):
    a, b = torch.tensor([p], dtype=torch.float64), torch.tensor([q], dtype=torch.float64)
    one, other = jensen_shannon(a, b[:, None])[0, 0].item(), jensen_shannon(b, a[:, None])[0, 0].item()
    assert one == pytest.approx(other, abs=1e-9)
    assert -1e-9 <= one <= math.log(2) + 1e-9
    assert jensen_shannon(a, a[:, None])[0, 0].item() == pytest.approx(0, abs=1e-9)
    middle = 0.5 * (a.softmax(-1) + b.softmax(-1))
    wanted = 0.5 * sum(F.kl_div(x.log_softmax(-1), middle, reduction="none").mean(-1) for x in (a, b))
    assert released_divergence(a, b[:, None])[0, 0].item() == pytest.approx(wanted.item(), abs=1e-9)


def test_the_repetition_penalty_by_hand():
    scores = torch.tensor([[2.4, -1.0, 3.0, -math.inf]])
    said = torch.tensor([[True, True, False, True]])
    assert penalise_repetition(scores, said, 1.2)[0].tolist() == pytest.approx([2.0, -1.2, 3.0, -math.inf])
    assert penalise_repetition(scores, said, 1.0) is scores


# ---- the loop against references without a cache


@torch.no_grad()
def reference(
    policy: TextPolicy, prompt: tuple[int, ...], opens, layers=(2,), penalty: float = 1.0, norm: bool = False
) -> list[int]:
    """One prompt, token by token, everything computed anew: DoLa where `opens(t)`, else the model's own best."""
    model, ids = policy.model, list(prompt)
    for t in range(LONG):
        out = model(input_ids=torch.tensor([ids]), use_cache=False, output_hidden_states=True)
        final = out.logits[0, -1]
        if opens(t):
            hidden = [out.hidden_states[layer][0, -1] for layer in layers]
            early = [model.lm_head(model.model.norm(h) if norm else h) for h in hidden]
            best = max(range(len(layers)), key=lambda i: divergence_of(final, early[i]))
            logp = final.log_softmax(-1)
            scores = logp - early[best].log_softmax(-1)
            scores[logp < logp.max() + math.log(0.1)] = -math.inf
        else:
            scores = final.clone()
        for i in set(ids):
            scores[i] = scores[i] * penalty if scores[i] < 0 else scores[i] / penalty
        ids.append(int(scores.argmax()))
        if ids[-1] == policy.tokenizer.eos_token_id:
            break
    return ids[len(prompt) :]


def divergence_of(a, b) -> float:
    p, q = a.double().softmax(-1), b.double().softmax(-1)
    m = (p + q) / 2
    return float(0.5 * (p * (p / m).log()).sum() + 0.5 * (q * (q / m).log()).sum())


def test_a_gate_that_never_opens_is_the_policy_s_own_greedy_decoding(policy, make):
    import posttrain as pt

    for one in (policy, make(max_new=LONG)):
        texts = ["hi", "what is there to be said of all this", "2+2"]
        asks = [pt.Ask((pt.user(text),), temperature=0.0, max_new=LONG) for text in texts]
        wanted = [reply.trace.reply for reply in one.sample(asks)]
        prompts = [one.chat.prompt(ask.messages)[0] for ask in asks]
        found = decode_replies(one, prompts, never, max_new=LONG)
        assert [made.ids for made in found] == wanted
        assert not any(made.contrast.any() for made in found)


def test_never_computes_no_early_layer(policy, monkeypatch):
    from posttrain.decode.layers import LayerRows

    monkeypatch.setattr(LayerRows, "early", lambda self: pytest.fail("a layer was read"))
    decode_replies(policy, PROMPTS, never, max_new=2)


@pytest.mark.parametrize("penalty", [1.0, 1.2])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("layers", [(2,), (1, 3, 4)])
def test_dola_is_the_reference_without_a_cache(policy, layers, penalty, norm):
    how = Decoding(layers, norm_early=norm, penalty=penalty)
    found = decode_replies(policy, PROMPTS, always, how, max_new=LONG)
    wanted = [reference(policy, p, lambda t: True, layers, penalty, norm) for p in PROMPTS]
    assert [list(made.ids) for made in found] == wanted
    assert all(made.contrast.all() for made in found)
    plain = decode_replies(policy, PROMPTS, never, how, max_new=LONG)
    assert [made.ids for made in plain] != [made.ids for made in found]


def test_untied_models_may_contrast_with_their_embeddings(tokens):
    one = llama(tokens, layers=4, tied=False, seed=1)
    found = decode_replies(one, PROMPTS, always, Decoding("low"), max_new=LONG)
    assert [list(made.ids) for made in found] == [reference(one, p, lambda t: True, (0,)) for p in PROMPTS]


@pytest.mark.parametrize("penalty", [1.0, 1.2])
def test_a_gate_opens_row_by_row_and_token_by_token(policy, penalty):
    def gate(step):
        return Choice((step.rows + step.position) % 2 == 0, {"row": step.rows, "entropy": step.mature.softmax(-1)})

    how = Decoding((1, 3), penalty=penalty)
    found = decode_replies(policy, PROMPTS, gate, how, max_new=LONG)
    for i, (prompt, made) in enumerate(zip(PROMPTS, found, strict=True)):
        assert list(made.ids) == reference(policy, prompt, lambda t, i=i: (i + t) % 2 == 0, (1, 3), penalty)
        assert made.contrast.tolist() == [(i + t) % 2 == 0 for t in range(len(made.ids))]
        assert made.notes["row"].tolist() == [i] * len(made.ids)
        assert made.notes["entropy"].shape == (len(made.ids), len(policy.tokenizer))
    alone = [
        decode_replies(policy, [p], lambda s, i=i: gate_at(s, i), how, max_new=LONG)[0].ids
        for i, p in enumerate(PROMPTS)
    ]
    assert alone == [made.ids for made in found], "a row depends on its neighbours, or padding was penalised"
    few = decode_replies(policy, PROMPTS, gate, how, max_new=LONG, rows=3)
    assert [made.ids for made in few] == alone


def gate_at(step, i):
    return Choice((i + step.position) % 2 == 0)


def test_a_shared_layer_is_that_of_transformers(policy):
    prompts, layers = [(7, 8, 9), (40, 41, 42), (11, 12, 13)], (1, 3, 5)
    ids = torch.tensor(prompts)
    with torch.no_grad():
        for _ in range(4):
            out = policy.model(input_ids=ids, use_cache=False, output_hidden_states=True)
            final = out.logits[:, -1]
            early = torch.stack([policy.model.lm_head(out.hidden_states[layer][:, -1]) for layer in layers])
            middle = 0.5 * (final.softmax(-1)[None] + early.softmax(-1))
            one = F.kl_div(final.log_softmax(-1)[None], middle, reduction="none").mean(-1)
            two = F.kl_div(early.log_softmax(-1), middle, reduction="none").mean(-1)
            base = early[int((0.5 * (one + two)).mean(-1).argmax())].log_softmax(-1)
            logp = final.log_softmax(-1)
            scores = torch.where(logp < logp.amax(-1, keepdim=True) + math.log(0.1), -math.inf, logp - base)
            ids = torch.cat([ids, scores.argmax(-1, keepdim=True)], 1)
    found = decode_replies(policy, prompts, always, Decoding(layers, shared=True), max_new=4)
    for made, row in zip(found, ids[:, 3:].tolist(), strict=True):
        assert list(made.ids) == row[: len(made.ids)]


# ---- ends, limits, forced replies, temperature


def test_replies_end_each_at_its_own_limit_or_end(policy):
    found = decode_replies(policy, PROMPTS, always, max_new=[1, 4, 2, 3])
    assert [len(made.ids) for made in found] == [1, 4, 2, 3]
    assert {made.stop for made in found} == {"length"}
    whole = decode_replies(policy, PROMPTS[:1], never, max_new=LONG)[0]
    piece = policy.chat.decode(whole.ids[:2])
    assert piece
    cut = decode_replies(policy, PROMPTS[:1], never, max_new=LONG, stop=[piece])[0]
    assert cut.stop == "string"
    assert cut.ids == whole.ids[: len(cut.ids)]
    assert len(cut.ids) <= 2
    policy.stops.ends[whole.ids[1]] = True
    ended = decode_replies(policy, PROMPTS[:1], never, max_new=LONG)[0]
    policy.stops.ends[whole.ids[1]] = False
    assert ended.stop == "end"
    assert ended.ids[-1] == whole.ids[1]


def test_forced_replies_are_read_whatever_would_be_chosen(policy):
    def gate(step):
        return Choice(step.rows == 0, {"plain": step.plain.argmax(-1), "other": step.contrast.argmax(-1)})

    replies = [(5, 6, 7), (policy.tokenizer.eos_token_id, 9)]
    found = decode_replies(policy, PROMPTS[:2], gate, Decoding((2,)), max_new=5, forced=replies)
    assert [made.ids for made in found] == [tuple(one) for one in replies]
    for made, prompt in zip(found, PROMPTS, strict=False):
        for t in range(len(made.ids)):
            before = (*prompt, *made.ids[:t])
            assert made.notes["plain"][t].item() == reference(policy, before, lambda t: False)[0]
            assert made.notes["other"][t].item() == reference(policy, before, lambda t: True)[0]


def test_sampling_depends_on_the_seed_and_not_on_the_batch(policy):
    how = Decoding((2,), temperature=1.0)
    together = [made.ids for made in decode_replies(policy, PROMPTS, always, how, max_new=LONG, seeds=[1, 2, 3, 4])]
    alone = [
        decode_replies(policy, [p], always, how, max_new=LONG, seeds=[i + 1])[0].ids for i, p in enumerate(PROMPTS)
    ]
    assert together == alone
    assert together != [
        made.ids for made in decode_replies(policy, PROMPTS, always, how, max_new=LONG, seeds=[5, 6, 7, 8])
    ]


def test_what_cannot_be_decoded_is_refused(policy):
    for prompts, most in (([()], 4), ([(1, 2)], 0), ([tuple(range(60))], 5)):
        with pytest.raises(ValueError, match="prompt 0 of .* the model has 64 positions"):
            decode_replies(policy, prompts, never, max_new=most)
    with pytest.raises(ValueError, match="prompt 1 shows a picture"):
        decode_replies(policy, [(1, 2), (1, -77, -77, 2)], never, max_new=4)
    for wrong in ({"relative_top": 0.0}, {"penalty": 0.0}, {"temperature": -1.0}):
        with pytest.raises(ValueError, match="relative_top=|penalty="):
            Decoding(**wrong)
    with pytest.raises(ValueError, match="no final norm"):
        final_norm(torch.nn.Linear(2, 2))
    assert decode_replies(policy, [], never) == []
