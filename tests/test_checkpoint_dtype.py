"""A checkpoint is saved in the dtype that it came in, and trained in float32."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

import posttrain as pt
from posttrain import tiny
from posttrain.policy.value import reward_model


@pytest.fixture
def bfloat16(tmp_path, words):
    folder = tmp_path / "base"
    tiny.network(words, 0, hidden=32, layers=2, positions=64).to(torch.bfloat16).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("lora", [0, 2])
def test_a_bfloat16_checkpoint_stays_one(bfloat16, tmp_path, lora):
    policy = pt.text(str(bfloat16), max_new=4, lora=lora)
    assert all(p.dtype == torch.float32 for p in policy.parameters())
    policy.save(tmp_path / "saved")
    before, after = (load_file(folder / "model.safetensors") for folder in (bfloat16, tmp_path / "saved"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) and after[name].dtype == torch.bfloat16 for name in before)
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["dtype"] == "bfloat16"
    assert all(p.dtype == torch.float32 for p in policy.parameters()), "it goes on in float32"


def test_so_does_a_reward_model_s(bfloat16, tmp_path):
    judge = reward_model(str(bfloat16))
    judge.save(tmp_path / "saved")
    assert {value.dtype for value in load_file(tmp_path / "saved" / "model.safetensors").values()} == {torch.bfloat16}


def test_a_float32_checkpoint_stays_one_too(make, tmp_path):
    make().save(tmp_path / "a")
    pt.text(str(tmp_path / "a"), max_new=4).save(tmp_path / "b")
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert {value.dtype for value in two.values()} == {torch.float32}
