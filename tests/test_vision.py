"""Pictures: read as the image processor reads them, seen as the model sees them, sampled and scored alike."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from PIL import Image
from vision_checkpoints import FAMILIES, SMALL, checkpoint, image, noise, png, policy, task, text, tokenizer

import posttrain as pt
from posttrain.chat import readable_content
from posttrain.cli import main
from posttrain.cli.options import ModelOptions
from posttrain.data import read, read_demonstrations
from posttrain.policy.load import load_policy, vision
from posttrain.policy.pixels import Preprocessing, data_url, resized_shape
from posttrain.policy.text import Sampling, TextPolicy
from posttrain.policy.vision import VisionPolicy, pictures, positions
from posttrain.row import rows_of
from posttrain.sampler.server import json_messages as as_json

RAGGED = [
    task("a", noise(8, 24)),
    task("b b b", noise(16, 16), noise(24, 8)),
    task("none"),
    task("long " * 40, noise(40, 40)),
    task("a", noise(8, 24, seed=1), words="what is a?"),  # the first one's text and shape, other pixels
]


def sampled(seen: VisionPolicy, tasks: Any, samples: int = 2, temperature: float = 1.0) -> list[Any]:
    seen.sampling = Sampling(12, temperature)
    groups = pt.rollout(pt.single_turn, tasks, {"policy": seen}, samples, 1)
    return [one for group in groups for one in group]


def native(seen: VisionPolicy, rollout: Any) -> dict[str, torch.Tensor]:
    """What transformers' own processor would give the model for a prompt and its reply."""
    tokens = rollout.turns[0].reply.trace
    ids = [*tokens.prompt, *tokens.reply]
    shown = pictures(tokens.asked)
    inputs = {
        "input_ids": torch.tensor([[seen.placeholder if i < 0 else i for i in ids]]),
        "mm_token_type_ids": torch.tensor([[int(i < 0) for i in ids]]),
    }
    if shown:
        pixels, grid = SMALL.patches(shown)
        inputs |= {"pixel_values": pixels, "image_grid_thw": grid}
    return inputs


# ---- what is sampled is what is scored


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_density_is_what_was_sampled(family, plain):
    seen = policy(family, plain=plain)
    assert seen.lines is not plain
    pt.check_policy(seen, RAGGED, tolerance=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_density_is_that_of_the_model_itself(family):
    """The model called as transformers' users call it: M-RoPE from its own index, DeepStack, all pictures of a row."""
    seen = policy(family)
    for rollout in sampled(seen, RAGGED):
        reply = rollout.turns[0].reply
        with torch.no_grad():
            logits = seen.model(**native(seen, rollout)).logits[0].float()
        logits[:, seen.head.never] = -torch.inf
        start = len(reply.trace.prompt)
        logp = logits.log_softmax(-1)[start - 1 : -1].gather(1, torch.tensor(reply.trace.reply)[:, None])[:, 0]
        torch.testing.assert_close(logp, reply.logp, atol=2e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_replies_are_those_of_generate(family):
    seen = policy(family)
    for rollout in sampled(seen, RAGGED, samples=1, temperature=0.0):
        tokens = rollout.turns[0].reply.trace
        inputs = native(seen, rollout)
        length = len(tokens.prompt)
        inputs |= {name: inputs[name][:, :length] for name in ("input_ids", "mm_token_type_ids")}
        never = seen.head.never.tolist()
        out = seen.model.generate(**inputs, max_new_tokens=12, do_sample=False, suppress_tokens=never)
        assert out[0, length:].tolist() == list(tokens.reply)


def test_a_model_that_has_generated_before_scores_the_same():
    """It keeps `rope_deltas` of its last pictures: they must not reach our passes, nor ours its own."""
    seen = policy("qwen3_vl")
    rollouts = sampled(seen, RAGGED[:1])
    rows = [row for one in rollouts for row in rows_of(seen, one, one.turns)]
    before = seen.density(rows).logp
    assert seen.body.base_model.rope_deltas is None
    other = native(seen, sampled(seen, RAGGED[3:4], 1)[0])
    seen.model.generate(**other, max_new_tokens=3, do_sample=False)
    assert seen.body.base_model.rope_deltas is not None
    assert torch.equal(seen.density(rows).logp, before)
    again = sampled(seen, RAGGED[:1])
    assert [one.text for one in again] == [one.text for one in rollouts]


def test_the_picture_counts():
    seen = policy()
    one, other = sampled(seen, [RAGGED[0]], 1)[0], sampled(seen, [RAGGED[4]], 1)[0]
    assert len(one.turns[0].reply.trace.prompt) == len(other.turns[0].reply.trace.prompt)
    assert one.turns[0].reply.trace.prompt != other.turns[0].reply.trace.prompt
    assert not torch.equal(one.turns[0].reply.logp[:1], other.turns[0].reply.logp[:1])


@pytest.mark.parametrize("plain", [False, True])
def test_placeholders_are_neither_drawn_nor_scored(plain):
    """A sampled placeholder would kill the next forward pass. The distribution is that of the other tokens."""
    seen = policy(plain=plain)
    with torch.no_grad():
        seen.head.out.weight[seen.head.never] = 5 * seen.head.out.weight[7]
        seen.head.out.weight[7] *= 5
    rollouts = sampled(seen, RAGGED)
    never = set(seen.head.never.tolist())
    assert len(never) == 4
    assert not any(never & set(one.turns[0].reply.trace.reply) for one in rollouts)
    pt.check_policy(seen, RAGGED, tolerance=1e-5)
    hidden = torch.randn(3, 32)
    total = torch.stack([seen.head.density(hidden, torch.full((3,), i), torch.ones(3)).logp for i in range(5)])
    assert torch.isfinite(seen.head.density(hidden, torch.zeros(3).long(), torch.ones(3)).entropy).all()
    assert (total.exp().sum(0) <= 1 + 1e-5).all()


def test_a_picture_is_encoded_once_a_call():
    seen = policy()
    counts: list[int] = []
    encode = seen.features
    seen.features = lambda shown: counts.append(len(shown)) or encode(shown)  # type: ignore[method-assign]
    same = noise(16, 16)
    tasks = [task("x", same), task("y", same), task("z", same.copy(), noise(8, 8))]
    groups = pt.rollout(pt.single_turn, tasks, {"policy": seen}, 5, 1)
    assert sum(counts) == 2  # of 15 samples
    traces = [one.turns[0].reply.trace for one in groups[0]]
    assert len({id(pictures(one.asked)[0].pixels) for one in traces}) == 1, "samples share the pixels"
    counts.clear()
    rows = [row for group in groups for one in group for row in rows_of(seen, one, one.turns)]
    seen.density(rows)
    assert sum(counts) == 2


def test_gradients_reach_the_vision_tower():
    seen = policy("qwen3_vl")
    [rollout] = sampled(seen, RAGGED[:1], 1)
    seen.density(rows_of(seen, rollout, rollout.turns)).logp.sum().backward()
    still = {name.split(".")[-2] for name, p in seen.model.named_parameters() if p.grad is None or not p.grad.any()}
    assert not still & {"proj", "qkv", "linear_fc1", "linear_fc2", "embed_tokens"}


def looks_again(task):
    messages = [*task.prompt]
    for k in range(3):
        reply = yield from pt.ask(messages)
        messages += [pt.assistant(reply), pt.user([text("and here?"), image(noise(8, 16, seed=k))])]


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_later_turns_extend_the_first_and_bring_pictures_of_their_own(family, plain):
    seen = policy(family, plain=plain)
    pt.check_policy(seen, RAGGED[:3], looks_again, tolerance=1e-5)
    [[rollout]] = pt.rollout(looks_again, RAGGED[:1], {"policy": seen}, 1, 1)
    [row] = rows_of(seen, rollout, rollout.turns)
    assert len(pictures(row.turns[-1].reply.trace.asked)) == 3
    equal = [{**m, "content": json_free(m["content"])} for m in rollout.turns[1].ask.messages]
    again = pt.Ask(tuple(equal))  # the same pixels in other arrays
    assert seen.extends(rollout.turns[0], pt.Turn(again, seen.sample([again])[0]))


def json_free(content: Any) -> Any:
    if isinstance(content, str):
        return content
    return [image(part["image"].copy()) if part["type"] == "image" else part for part in content]


def test_positions_by_hand():
    seen = policy()
    one = SMALL.picture(noise(8, 24))  # one row of three tokens
    ids = [5, *[one.name] * 3, 6, 7]
    assert positions(ids, {one.name: one}).tolist() == [[0, 1, 1, 1, 4, 5], [0, 1, 1, 1, 4, 5], [0, 1, 2, 3, 4, 5]]
    assert positions([one.name] * 6, {one.name: one}, 2)[2].tolist() == [2, 3, 4, 5, 6, 7], "twice, side by side"
    assert seen.chat.prompt(task("a", noise(8, 24)).prompt)[0].count(one.name) == 3


def test_replies_learned_by_heart(tmp_path):
    """Supervised learning tells pictures of one shape apart."""
    seen = policy()
    shown = [noise(16, 16, seed=k) for k in range(3)]
    lines = [pt.Demonstration((*task("same", one).prompt, pt.assistant(str(k) * 2))) for k, one in enumerate(shown)]
    pt.sft(seen, lines, pt.Run(tmp_path / "run", steps=40, tasks=3, lr=3e-3, quiet=True))
    told = sampled(seen, [task("same", one) for one in shown], 1, temperature=0.0)
    assert [one.text for one in told] == ["00", "11", "22"]


# ---- loading, saving, adapters


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_comes_back_as_it_was(family, tmp_path):
    folder = checkpoint(tmp_path / "model", family)
    seen = ModelOptions(folder, max_new=6, device="cpu").policy()
    assert isinstance(seen, VisionPolicy)
    assert seen.preprocessing == SMALL
    first = policy(family)
    assert [one.text for one in sampled(seen, RAGGED)] == [one.text for one in sampled(first, RAGGED)]
    assert load_policy(folder, device="cpu", max_pixels=256).preprocessing.most == 256  # type: ignore[attr-defined]


def test_an_adapter_trains_and_its_twin_is_the_start(tmp_path):
    seen = vision(checkpoint(tmp_path / "model"), lora=2, max_new=6, device="cpu")
    reference = seen.frozen_copy()
    pt.check_policy(seen, RAGGED, tolerance=1e-5)
    assert all("lora" in name for name in seen.state_dict())
    assert any("visual" in name for name in seen.state_dict())
    for p in seen.parameters():
        p.data.add_(0.05)
    rollout = sampled(seen, RAGGED[:1], 1)[0]
    rows = rows_of(seen, rollout, rollout.turns)
    assert not torch.allclose(reference.density(rows).logp, seen.density(rows).logp)
    seen.save(tmp_path / "merged")
    merged = vision(str(tmp_path / "merged"), max_new=6, device="cpu")
    torch.testing.assert_close(merged.density(rows).logp, seen.density(rows).logp, atol=1e-4, rtol=0)


def test_a_frozen_copy_and_bfloat16():
    seen = policy(bf16=True)
    assert isinstance(seen.frozen_copy(), VisionPolicy)
    pt.check_policy(seen, RAGGED, tolerance=0.1)


def test_checkpointed_gradients_are_the_same():
    plain, spare = policy(), policy()
    spare.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    [rollout] = sampled(plain, RAGGED[1:2], 1)
    for one in (plain, spare):
        one.density(rows_of(one, rollout, rollout.turns)).logp.sum().backward()
    for a, b in zip(plain.parameters(), spare.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-4)


def test_models_of_another_pattern_are_refused(make, tmp_path):
    with pytest.raises(ValueError, match="does not take pictures as Qwen's"):
        VisionPolicy(make().model, tokenizer(), SMALL)
    with pytest.raises(ValueError, match="prepared by CLIPImageProcessor"):
        Preprocessing.of({"image_processor_type": "CLIPImageProcessor"})
    with pytest.raises(ValueError, match="resample"):
        Preprocessing.of({**SMALL.settings(), "resample": 2})
    make().save(tmp_path / "text")
    with pytest.raises(ValueError, match="sees no pictures"):
        load_policy(str(tmp_path / "text"), max_pixels=5)
    folder = checkpoint(tmp_path / "model")
    (tmp_path / "model" / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match=f"`model={folder}"):
        vision(folder)


# ---- bad input is named before work is lost


def test_what_cannot_be_shown_is_named(make, tmp_path):
    seen = policy()
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    bad = {
        "there is no picture": task("t", str(tmp_path / "none.png")),
        "broken.png cannot be read": task("t", tmp_path / "broken.png"),
        "no text may contain it": task("t", noise(8, 8), words="see <|image_pad|>"),
        "uint8": task("t", np.zeros((8, 8))),
        "at most 200 times": task("t", noise(1, 300)),
    }
    for message, one in bad.items():
        with pytest.raises(ValueError, match=f"task 't': .*{message}"):
            seen.check([one])
    blind = TextPolicy(make().model, tokenizer())
    with pytest.raises(ValueError, match="task 'a': the prompt holds a picture"):
        blind.check([RAGGED[0]])
    spelled = seen.demonstrate(task("t", noise(8, 8)).prompt, "look: <|image_pad|>").reply
    assert seen.placeholder not in spelled.trace.reply, "text is text, whatever it spells"
    assert seen.chat.decode(spelled.trace.reply) == "look: <|image_pad|>"
    with pytest.raises(ValueError, match="task 'a': .* 1024 positions"):
        policy(max_new=1023).check([RAGGED[0]])


def test_a_template_that_shows_no_pictures_is_refused():
    words = tokenizer()
    words.chat_template = "{% for m in messages %}{{ m.role }}<|im_end|>{% endfor %}"
    seen = VisionPolicy(policy().model, words, SMALL)
    with pytest.raises(
        ValueError, match="1 parts of type 'image' are to be shown, and the rendered prompt has 0 placeholders"
    ):
        seen.check([RAGGED[0]])


# ---- pixels


@pytest.mark.parametrize("size", [(8, 8), (13, 40), (100, 31), (64, 64), (200, 180), (5, 9)])
def test_pixels_are_those_of_the_image_processor(size):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    theirs = Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, temporal_patch_size=2, size={"shortest_edge": 64, "longest_edge": 4096}
    )
    for mode in ("RGB", "L", "RGBA"):
        given_image = Image.fromarray(noise(*size)).convert(mode)
        wanted = theirs(images=[given_image], return_tensors="pt")
        pixels, grid = SMALL.patches([SMALL.picture(given_image)])
        assert torch.equal(grid, wanted["image_grid_thw"])
        torch.testing.assert_close(pixels, wanted["pixel_values"], atol=1e-5, rtol=0)


@given(some.integers(1, 3000), some.integers(1, 3000), some.sampled_from([(8, 64, 4096), (28, 3136, 1003520)]))
def test_sizes_are_those_of_the_image_processor(height, width, limits):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    if max(height, width) > 200 * min(height, width):
        with pytest.raises(ValueError, match="at most 200"):
            resized_shape(height, width, *limits)
    else:
        assert resized_shape(height, width, *limits) == smart_resize(height, width, *limits)


def test_every_form_of_a_picture_is_the_same(tmp_path):
    path = png(tmp_path / "x.png", 16, 24)
    array, data = noise(16, 24), path.read_bytes()
    forms = [array, Image.fromarray(array), str(path), path, data, {"bytes": data, "path": None}, {"path": str(path)}]
    shown = [SMALL.picture(form) for form in forms]
    assert len(set(shown)) == 1
    assert repr(shown[0]) == "picture of 24 x 16 pixels"
    assert SMALL.picture(array[..., 0]) == SMALL.picture(array[..., :1])
    turned = Image.fromarray(array)
    exif = turned.getexif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    turned.save(tmp_path / "turned.png", exif=exif)
    assert SMALL.picture(tmp_path / "turned.png").pixels.shape == (24, 16, 3)
    assert SMALL.picture(data_bytes(data_url(array))) == shown[0]
    assert data_bytes(data_url(path)) == data


def data_bytes(url: str) -> bytes:
    import base64

    return base64.b64decode(url.partition(",")[2])


def test_settings_are_read_and_written_in_the_hub_s_format(tmp_path):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    checkpoint(tmp_path)
    theirs = Qwen2VLImageProcessorPil.from_pretrained(tmp_path)
    assert (theirs.patch_size, theirs.size["longest_edge"]) == (4, 4096)
    released = {  # Qwen2.5-VL's
        "min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
        "image_mean": [0.48, 0.45, 0.40], "image_std": [0.26, 0.26, 0.27], "image_processor_type": "Qwen2VLImageProcessor",
    }  # fmt: skip
    found = Preprocessing.of(released)
    assert (found.least, found.most, found.patch, found.mean) == (3136, 12845056, 14, (0.48, 0.45, 0.40))
    newer = {  # Qwen3-VL's
        "size": {"longest_edge": 16777216, "shortest_edge": 65536}, "patch_size": 16, "temporal_patch_size": 2,
        "merge_size": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "image_processor_type": "Qwen2VLImageProcessorFast",
    }  # fmt: skip
    found = Preprocessing.of(newer)
    assert (found.least, found.most, found.patch) == (65536, 16777216, 16)
    assert Preprocessing.of(found.settings()) == found


# ---- the user's own pictures


@pytest.fixture
def album(tmp_path) -> Any:
    """Four questions on PNG files beside the data file."""
    (tmp_path / "images").mkdir()
    for k in range(4):
        png(tmp_path / "images" / f"{k}.png", 16, 16 + 8 * k, seed=k)
    lines = [
        {"problem": "<image>How many?", "images": ["images/0.png"], "answer": "1"},
        {"problem": "How many?", "images": "images/1.png", "answer": "2"},
        {"problem": "Is <image> before <image>?", "images": ["images/2.png", "images/3.png"], "answer": "3"},
    ]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_a_column_of_pictures(album):
    tasks = read(album, "problem", image="images", system="Look.")
    assert [readable_content(one.prompt[-1]["content"]) for one in tasks] == [
        "<image>How many?",
        "<image>How many?",
        "Is <image> before <image>?",
    ]
    assert tasks[0].prompt[0]["content"] == "Look."
    assert [part["type"] for part in tasks[2].prompt[-1]["content"]] == ["text", "image", "text", "image", "text"]
    policy().check(tasks)
    [*_, last] = read_demonstrations(album, "problem", "answer", image="images")
    assert [m["role"] for m in last.messages] == ["user", "assistant"]


def test_chats_and_parquet_with_pictures(tmp_path):
    import pyarrow as pa
    from pyarrow.parquet import write_table

    data = png(tmp_path / "0.png", 16, 16).read_bytes()
    chat = [{"role": "system", "content": "Look."}, {"role": "user", "content": "How many?"}]
    parts = [{"role": "user", "content": [{"type": "text", "text": "See "}, {"type": "image"}]}]  # as TRL's data sets
    (tmp_path / "parts.jsonl").write_text(json.dumps({"prompt": parts, "images": ["0.png"], "answer": "1"}))
    table = pa.table({"chat": [chat], "images": [[{"bytes": data, "path": "0.png"}]], "answer": ["1"]})
    write_table(table, tmp_path / "data.parquet")
    [filled] = read(tmp_path / "parts.jsonl", image="images")
    assert [part["type"] for part in filled.prompt[0]["content"]] == ["text", "image"]
    assert filled.prompt[0]["content"][1]["image"] == str(tmp_path / "0.png")
    [one] = read(tmp_path / "data.parquet", "chat", image="images")
    assert [readable_content(message["content"]) for message in one.prompt] == ["Look.", "<image>How many?"]
    assert pictures(policy().chat.read_parts(one.prompt))[0].pixels.shape == (16, 16, 3)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"problem": "x", "images": "no.png"}, "data.jsonl, line 1: there is no picture .*no.png"),
        (
            {"problem": "<image> <image>", "images": "0.png"},
            "line 1: the prompt has 2 <image>, and .* has 1 pictures",
        ),
        ({"problem": "x", "picture": "0.png"}, "there is no column 'images'.*"),
    ],
)
def test_mistakes_in_data_are_named(line, message, tmp_path):
    png(tmp_path / "0.png", 8, 8)
    (tmp_path / "data.jsonl").write_text(json.dumps({**line, "answer": "1"}))
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "data.jsonl", "problem", image="images")


@pytest.mark.parametrize("family", FAMILIES[1:])
def test_the_commands_train_on_pictures(family, album, tmp_path, capsys):
    folder = checkpoint(tmp_path / "model", family)
    data = ["--data", str(album), "--prompt", "problem", "--image", "images"]
    model = ["--model", folder, "--max-new", "4"]
    size = ["--steps", "2", "--tasks", "2", "--quiet"]
    main(["train", *data, *model, "--grade", "contains", "--dry-run", *size, "--out", str(tmp_path / "dry")])
    assert "ForConditionalGeneration" in capsys.readouterr().out
    main(["train", *data, *model, "--grade", "contains", "--kl", "0.1", *size, "--out", str(tmp_path / "rl")])
    first = next(iter(pt.read_rollouts(tmp_path / "rl")))
    asked = first["turns"][0]["messages"][0]["content"]
    assert any(part["type"] == "image" for part in asked)
    assert min(first["turns"][0]["prompt_ids"]) >= 0
    main(["sft", *data, "--response", "answer", *model, *size, "--out", str(tmp_path / "sft")])
    again = vision(str(tmp_path / "sft" / "model"), max_new=4, device="cpu")
    assert again.preprocessing == SMALL
    evaluated = ["--data", str(album), "--prompt", "problem", "--image", "images"]
    main(["eval", *evaluated, *model, "--grade", "contains", "--model", str(tmp_path / "rl" / "model")])
    with pytest.raises(SystemExit):
        main(["train", *data, *model, "--sampler", "http://localhost:9", *size, "--out", str(tmp_path / "no")])
    assert "samples itself" in capsys.readouterr().err


def test_a_chat_server_is_sent_pictures_as_data():
    [message] = as_json(task("a", noise(8, 8)).prompt)
    kinds = [part["type"] for part in message["content"]]
    assert kinds == ["image_url", "text"]
    url = message["content"][0]["image_url"]["url"]
    assert url.startswith("data:image/png;base64,")
    assert SMALL.picture(data_bytes(url)) == SMALL.picture(noise(8, 8))
