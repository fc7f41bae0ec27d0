"""Pictures where they are not seen, or not as they are given: refused by name, before any work."""

from __future__ import annotations

import json

import pytest
import torch
from starlette.testclient import TestClient
from vision_checkpoints import SMALL, checkpoint, image, noise, png, policy, task, text, tokenizer

import posttrain as pt
from posttrain import tiny_vision
from posttrain.cli import main
from posttrain.data import read, read_demonstrations, read_pairs
from posttrain.policy.load import vision
from posttrain.policy.text import Sampling
from posttrain.policy.vision import VisionPolicy
from posttrain.sampler.weights import Twin, collect_weights, probe_of, synchronise
from posttrain.serve.app import App
from posttrain.serve.record import Recorder


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
    assert synchronise(twin, collect_weights(one, probe, merged=False))["parity_gap_max"] < 1e-5
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


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_a_prompt_may_end_in_a_picture(family):
    """Its axes end at unlike positions, and text goes on after the largest of them."""
    words = tokenizer()
    words.chat_template = (
        "{% for m in messages %}{% if m.content is string %}{{ m.content }}<|im_end|>{% else %}"
        "{% for part in m.content %}{% if part.type == 'image' %}<|image_pad|>{% else %}{{ part.text }}{% endif %}"
        "{% endfor %}{% endif %}{% endfor %}"
    )
    model = tiny_vision.network(words, SMALL, 0, family, hidden=32, positions=1024, depth=2)
    seen = VisionPolicy(model, words, SMALL, Sampling(12))
    shown = [pt.Task(str(k), (pt.user([text("look"), image(noise(*size))]),), None) for k, size in enumerate(SIZES)]
    pt.check_policy(seen, shown, tolerance=1e-5)


SIZES = ((16, 40), (40, 8), (8, 8))


# ---- what is no picture


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([{"type": "video", "video": "x.mp4"}], "of type 'video'; this model takes 'text' and 'image'"),
        ([{"type": "image_url", "image_url": {"url": "x"}}], "of type 'image_url'"),
        (["words"], "of type 'str'"),
        ([text("see <|video_pad|>")], r"text has <\|video_pad\|>.*no text may contain it"),
        ([text("see <|vision_start|>")], r"text has <\|vision_start\|>"),
        ([{"type": "image", "image": None}], "has none under 'image'"),
        ([{"type": "image", "url": "http://x/y.png"}], "has none under 'image'"),
    ],
)
def test_other_parts_are_refused(parts, message):
    one = pt.Task("t", (pt.user([*parts, text("hi")]),), None)
    with pytest.raises(ValueError, match=f"task 't': .*{message}"):
        policy().check([one])


def test_marks_in_plain_text_are_refused_and_nulls_are_not_parts():
    seen = policy()
    with pytest.raises(ValueError, match=r"text has <\|video_pad\|>"):
        seen.check([pt.Task("t", (pt.user("hi <|video_pad|>"),), None)])
    nulls = {"type": "text", "text": "hi", "image": None}
    plain = seen.chat.prompt((pt.user([image(noise(8, 8)), text("hi")]),))
    assert seen.chat.prompt((pt.user([image(noise(8, 8)), nulls]),)) == plain


@pytest.mark.parametrize("limits", [{"max_pixels": 0}, {"max_pixels": -5}, {"max_pixels": 10}, {"min_pixels": 10**6}])
def test_limits_that_no_picture_keeps_are_refused(limits, tmp_path):
    with pytest.raises(ValueError, match="`min_pixels=.*` `max_pixels=.*`: the fewest pixels"):
        vision(checkpoint(tmp_path / "model"), max_new=4, **limits)


def test_layers_that_keep_no_tokens_are_refused():
    """Qwen3.5's linear attention: positions and features are as in Qwen3-VL, its cache is not."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    words = tokenizer()
    names = ("vision_start", "image", "vision_end", "video")
    ids = dict(zip(names, words.convert_tokens_to_ids(tiny_vision.MARKS), strict=True))
    language = {
        "vocab_size": len(words), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "head_dim": 8,
        "num_attention_heads": 4, "num_key_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
        "linear_num_key_heads": 2, "linear_num_value_heads": 4, "eos_token_id": words.eos_token_id,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1], "partial_rotary_factor": 1.0
        },
    }  # fmt: skip
    tower = tiny_vision.vision("qwen3_vl", SMALL, 32, 1)
    tower.pop("deepstack_visual_indexes")
    config = AutoConfig.for_model(
        "qwen3_5", text_config=language, vision_config=tower, **{f"{name}_token_id": i for name, i in ids.items()}
    )
    with pytest.raises(ValueError, match="layers of linear_attention"):
        VisionPolicy(AutoModelForImageTextToText.from_config(config), words, SMALL)


# ---- what stands in data


def written(tmp_path, *records):
    png(tmp_path / "0.png", 16, 16)
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, records)))
    return tmp_path / "d.jsonl"


PARTS = [{"type": "image", "image": None, "text": None}, {"type": "text", "image": None, "text": "How many?"}]
ASKED = {"role": "user", "content": PARTS}  # as Parquet has them: every key in every part


def test_a_null_picture_is_filled_from_the_column(tmp_path):
    column = [{"path": "0.png", "bytes": None}]  # as the datasets library keeps a picture of a file
    [one] = read(written(tmp_path, {"prompt": [ASKED], "images": column, "answer": "1"}), image="images")
    assert one.prompt[0]["content"] == [image(str(tmp_path / "0.png")), text("How many?")]
    policy().check([one])


@pytest.mark.parametrize(
    ("record", "options", "message"),
    [
        ({"prompt": [ASKED]}, {}, "line 1: a picture is to stand in the messages, and none is given"),
        ({"prompt": "<image>How many?", "images": ["0.png"]}, {}, "line 1: .* a column 'images': give `image=images`"),
        ({"prompt": "How many?", "images": [None]}, {"image": "images"}, "line 1: a picture of its column is empty"),
        (
            {"prompt": "How many?", "images": [{"path": "no.png", "bytes": None}]},
            {"image": "images"},
            "line 1: there is no picture .*no.png",
        ),
    ],
)
def test_pictures_that_are_missing_are_named_with_their_line(record, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read(written(tmp_path, {**record, "answer": "1"}), **options)


def test_pairs_and_forgotten_columns(tmp_path):
    pair = {"prompt": "<image>How many?", "image": "0.png", "chosen": "two", "rejected": "one"}
    with pytest.raises(ValueError, match="line 1: .*preference pairs are of text only"):
        read_pairs(written(tmp_path, pair))
    [kept] = read_pairs(written(tmp_path, {**pair, "image": None}))
    assert kept.prompt == (pt.user("<image>How many?"),), "a mark without a column is text"


def test_replies_in_parts_are_learned_as_text(tmp_path):
    """The form of TRL's vision-language datasets, such as llava-instruct-mix-vsft."""
    said = {"role": "assistant", "content": [text("two"), {**text(" <image>"), "image": None}]}
    lines = [{"messages": [ASKED, said], "images": ["0.png"]}]
    [one] = read_demonstrations(written(tmp_path, *lines), "messages", image="images")
    assert one.messages[-1]["content"] == "two <image>", "of a reply, all is text"
    assert one.messages[0]["content"][0] == image(str(tmp_path / "0.png"))
    pt.sft(policy(), [one], pt.Run(tmp_path / "run", steps=1, tasks=1, quiet=True))
    [two] = read_demonstrations(written(tmp_path, {"prompt": "hi", "response": [said]}))
    assert two.messages[-1]["content"] == "two <image>"
    bad = {"messages": [ASKED, {"role": "assistant", "content": [{"type": "image"}]}], "images": ["0.png"]}
    with pytest.raises(ValueError, match="d.jsonl, line 2: an assistant's message in 'messages' is not text"):
        read_demonstrations(written(tmp_path, *lines, bad), "messages", image="images")


def test_text_among_pictures_stays_text(tmp_path):
    lines = [{"prompt": "How many?", "images": [], "answer": "1"}]
    [one] = read(written(tmp_path, *lines), image="images")
    assert one.prompt == (pt.user("How many?"),)


def test_an_unreadable_picture_to_learn_from_is_named_with_its_line(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    lines = [{"prompt": "hi", "images": [name], "response": "x"} for name in ("0.png", "broken.png")]
    found = read_demonstrations(written(tmp_path, *lines), image="images")
    with pytest.raises(ValueError, match=r"d.jsonl, line 2: the picture .*broken.png cannot be read"):
        pt.sft(policy(), found, pt.Run(tmp_path / "run", steps=1, tasks=1, quiet=True))
    assert not (tmp_path / "run").exists()


# ---- a server


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"type": "image", "image": "SECRET"},
        {"type": "video", "video": "SECRET"},
        "words",
    ],
)
def test_a_server_opens_nothing_that_a_client_names(part, tmp_path, monkeypatch):
    secret = png(tmp_path / "secret.png", 8, 8)
    part = {k: str(secret) if v == "SECRET" else v for k, v in part.items()} if isinstance(part, dict) else part
    seen = policy(max_new=4)
    monkeypatch.setattr(type(seen.preprocessing), "picture", lambda *_: pytest.fail("a picture was opened"))
    with TestClient(App(seen, "m", Recorder(None)).routes()) as client:
        asked = {"messages": [{"role": "user", "content": [part, text("hi")]}]}
        answer = client.post("/v1/chat/completions", json=asked)
        assert answer.status_code == 400
        assert "this server takes text only, and no pictures" in answer.json()["error"]["message"]
        words = {"messages": [{"role": "user", "content": [text("hi")]}]}
        assert client.post("/v1/chat/completions", json=words).status_code == 200
