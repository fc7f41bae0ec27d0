"""Pictures where they are not seen, or not as they are given: refused by name, before any work."""

from __future__ import annotations

import json

import pytest
import torch
from vision_checkpoints import checkpoint, noise, png, policy, task

import posttrain as pt
from posttrain.cli import main
from posttrain.sampler.weights import Twin, probe_of, published, synchronise


@pytest.fixture
def album(tmp_path):
    """Questions on PNG files beside the data file."""
    lines = []
    for k in range(3):
        png(tmp_path / f"{k}.png", 16, 16 + 8 * k, seed=k)
        lines.append({"problem": "<image>How many?", "images": [f"{k}.png"], "answer": str(k)})
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def refused(capsys, *words: str) -> str:
    with pytest.raises(SystemExit):
        main([*words])
    return capsys.readouterr().err


# ---- who samples


def test_a_policy_that_sees_pictures_is_sent_to_another_process():
    """The probe of its weights is tokens: whoever scores it has no pictures."""
    one, other = policy(), policy(seed=1)
    one.version = 3
    probe = probe_of(one, [task("a", noise(8, 24)), task("none")])
    assert all(i >= 0 for ids in probe for i in ids)
    assert probe[0] != probe[1]
    twin = Twin(other)
    assert synchronise(twin, published(one, probe, merged=False))["parity_gap_max"] < 1e-5
    assert twin.version == 3
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("how", [[], ["--dry-run"], ["--cluster", "local"]])
def test_vllm_is_refused_wherever_it_would_sample(how, album, tmp_path, capsys):
    model = ["--model", checkpoint(tmp_path / "model"), "--max-new", "4", "--out", str(tmp_path / "run")]
    data = ["--data", str(album), "--prompt", "problem", "--image", "images", "--grade", "contains"]
    assert "--sampler vllm: a policy that sees pictures samples itself" in refused(
        capsys, "train", *data, *model, "--sampler", "vllm", *how
    )
    assert not (tmp_path / "run").exists()
