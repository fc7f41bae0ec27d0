"""DNA and points in a language model: what is sampled is what is scored, by embeddings in the place of tokens."""

from __future__ import annotations

import copy
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import vision_checkpoints
from hypothesis import given
from hypothesis import strategies as some
from injection_checkpoints import TASKS, dna, esm, points, policy, task, text, text_checkpoint

import posttrain as pt
from posttrain.policy.encoders import Payload
from posttrain.policy.injection import InjectedVisionPolicy, Injection
from posttrain.policy.load import load_policy
from posttrain.row import rows_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("injection")


def rows(shown, tasks=TASKS, samples=2, env=pt.single_turn):
    groups = pt.rollout(env, tasks, {"policy": shown}, samples, 1)
    return [row for group in groups for one in group for row in rows_of(shown, one, one.turns)]


def kept(shown) -> dict[int, torch.Tensor]:
    return shown.modalities["dna"].frozen.kept


# ---- what is sampled is what is scored


@pytest.mark.parametrize("lora", [0, 4])
@pytest.mark.parametrize("plain", [False, True])
def test_density_is_what_was_sampled(folder, lora, plain):
    shown = policy(folder, lora=lora)
    if plain:
        shown = type(shown)(shown.model, shown.tokenizer, shown.sampling, plain=True)
    assert shown.dense is shown.lines is not plain
    pt.check_policy(shown, TASKS, tolerance=1e-5)


def test_density_is_that_of_the_model_called_with_embeddings(folder):
    """By hand, one row at a time: text embedded by the table, parts by encoder and projector, in order."""
    shown = policy(folder)
    table, ids = shown.model.get_input_embeddings(), shown.tokenizer.convert_tokens_to_ids
    for row in rows(shown):
        tokens = row.turns[0].reply.trace
        content = [part for message in tokens.asked for part in message["content"] if part["type"] != "text"]
        embedded = list(table(torch.tensor([max(i, 0) for i in (*tokens.prompt, *tokens.reply)])))
        at = 0
        for part in content:
            payload = part[part["type"]]
            at = next(k for k in range(at, len(tokens.prompt)) if tokens.prompt[k] == payload.name)
            modality = shown.modalities[part["type"]]
            if part["type"] == "dna":
                out = modality.encoder.whole.base_model(torch.from_numpy(payload.content)[None]).last_hidden_state[0]
                assert tokens.prompt[at - 1] == ids("<|dna_start|>")
                assert tokens.prompt[at + payload.tokens] == ids("<|dna_end|>")
            else:
                out = modality.encoder.features(torch.from_numpy(payload.content))
            embedded[at : at + payload.tokens] = modality.projector(out)
            at += payload.tokens
        logits = shown.model(inputs_embeds=torch.stack(embedded)[None]).logits[0].float()
        logits[:, shown.head.never] = -torch.inf
        start = len(tokens.prompt)
        logp = logits.log_softmax(-1)[start - 1 : -1].gather(1, torch.tensor(tokens.reply)[:, None])[:, 0]
        torch.testing.assert_close(logp, row.turns[0].reply.logp, atol=2e-5, rtol=0)


@pytest.mark.parametrize("family", vision_checkpoints.FAMILIES)
def test_pictures_points_and_dna_in_one_prompt(folder, family):
    seen = policy(folder, vision_checkpoints.checkpoint(folder / family, family))
    assert isinstance(seen, InjectedVisionPolicy)
    noise = vision_checkpoints.noise
    picture = vision_checkpoints.image
    tasks = [
        *TASKS,
        task("seen", picture(noise(16, 24)), points(3)),
        task("all", dna("ACGTT"), picture(noise(8, 8)), text("between"), points(4), picture(noise(8, 16))),
    ]
    pt.check_policy(seen, tasks, tolerance=1e-5)
    again = load_policy(saved(seen, folder / f"saved-{family}"), max_new=6, threads=1)
    asks = [pt.Ask(one.prompt, seed=5) for one in tasks]
    for a, b in zip(seen.sample(asks), again.sample(asks), strict=True):
        assert a.trace.reply == b.trace.reply
        torch.testing.assert_close(a.logp, b.logp, atol=1e-6, rtol=0)


def test_a_later_turn_shows_more_parts(folder):
    shown = policy(folder)

    def two_turns(one):
        first = yield from pt.ask(one.prompt)
        yield from pt.ask([*one.prompt, pt.assistant(first), pt.user([text("and"), dna("TTTACA"), text("?")])])

    found = rows(shown, TASKS, env=two_turns)
    assert len(found) == 2 * len(TASKS), "turns that extend one another are one row"
    with torch.no_grad():
        logp = shown.density(found).logp
    sampled = torch.cat([turn.reply.logp for row in found for turn in row.turns])
    torch.testing.assert_close(logp, sampled, atol=1e-5, rtol=0)


def test_a_reply_may_spell_what_stands_for_a_part(folder):
    """By tokens of its own it is text: the next turn shows as many parts as before."""
    shown = shared(folder)
    plain, spelled = (
        (*TASKS[0].prompt, {"role": "assistant", "content": said}, pt.user("and?")) for said in ("no", "<|dna_pad|>")
    )
    counts = [sum(i < 0 for i in shown.chat.prompt(messages)[0]) for messages in (plain, spelled)]
    assert counts[0] == counts[1] > 0
    pad = shown.tokenizer.convert_tokens_to_ids("<|dna_pad|>")
    assert pad not in shown.chat.prompt(spelled)[0]


def test_a_trained_encoder_has_no_dropout(folder):
    shown = policy(folder, trained=["dna"], checkpointing=True)
    dropouts = [getattr(one, "dropout", 0.0) for one in shown.modalities.modules()]
    assert not any(isinstance(one, float) and one > 0 for one in dropouts)


def test_equal_text_with_unlike_parts_is_unlike(folder):
    shown = policy(folder)
    first, second = (shown.chat.prompt(TASKS[i].prompt)[0] for i in (0, 4))
    assert len(first) == len(second)
    assert first != second
    replies = shown.sample([pt.Ask(TASKS[i].prompt, seed=0, temperature=0.0) for i in (0, 4)])
    assert not torch.equal(replies[0].logp, replies[1].logp)


# ---- what learns


def gradients(shown) -> dict[str, torch.Tensor]:
    for p in shown.parameters():
        p.grad = None
    shown.density(rows(shown)).logp.sum().backward()
    return {name: p.grad for name, p in shown.model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}


def test_a_frozen_encoder_stays_and_the_projector_learns(folder):
    shown = policy(folder, lora=4)
    touched = gradients(shown)
    assert {"modalities.dna.projector.weight", "modalities.points.projector.bias"} <= {
        name.removeprefix("base_model.model.") for name in touched
    }
    assert not any("encoder" in name or "learning" in name for name, _ in shown.model.named_parameters())
    assert set(shown.state_dict()) == {name for name, p in shown.model.named_parameters() if p.requires_grad}


def test_a_trained_encoder_learns_and_is_saved(folder):
    shown = policy(folder, trained=["dna"])
    assert "modalities.dna.learning.whole.esm.encoder.layer.0.attention.self.query.weight" in gradients(shown)
    with torch.no_grad():
        for p in shown.parameters():
            p.add_(0.01)
    again = load_policy(saved(shown, folder / "trained"), max_new=6, threads=1)
    assert again.modalities["dna"].frozen is None
    assert_equal_weights(shown, again)
    pt.check_policy(shown, TASKS, tolerance=1e-5)


def test_what_a_frozen_encoder_says_is_kept_once(folder, monkeypatch):
    shown = policy(folder)
    encoder = shown.modalities["dna"].encoder
    calls = []
    plain = type(encoder).forward
    monkeypatch.setattr(type(encoder), "forward", lambda self, some: calls.append(len(some)) or plain(self, some))
    rows(shown)
    rows(shown)
    assert sum(calls) == 4, "four sequences are distinct"
    reference = shown.frozen_copy()
    assert reference.modalities["dna"].encoder is encoder
    with torch.no_grad():
        reference.density(rows(shown))
    assert sum(calls) == 4


def test_kept_features_stay_within_their_room(folder, monkeypatch):
    monkeypatch.setattr("posttrain.policy.injection.KEPT", 1500)
    shown = policy(folder)
    before = rows(shown)
    assert len(kept(shown)) < 4
    with torch.no_grad():
        logp = shown.density(before).logp
    torch.testing.assert_close(logp, torch.cat([r.turns[0].reply.logp for r in before]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("lora", [0, 4])
def test_a_reference_keeps_its_projector(folder, lora):
    shown = policy(folder, lora=lora)
    found = rows(shown)
    reference = shown.frozen_copy()
    assert isinstance(reference, Injection)
    with torch.no_grad():
        before = reference.density(found).logp
        for p in shown.parameters():
            p.add_(0.05 * torch.ones_like(p))
        torch.testing.assert_close(reference.density(found).logp, before, atol=1e-6, rtol=0)
        assert (shown.density(found).logp - before).abs().max() > 1e-3


def test_a_critic_of_it(folder):
    shown = policy(folder)
    critic = pt.Critic(shown)
    found = rows(shown)
    assert critic.values(found).shape == (sum(len(row.advantage) for row in found),)


def test_a_run_learns_and_resumes(folder, tmp_path):
    """A run cut in two ends where a whole one does, to the last digit; its checkpoint is a policy."""

    def reward(group):
        return [pt.Score(float(sum(map(ord, one.text)) % 7)) for one in group]

    def learn(out, steps, **more):
        settings = pt.Run(tmp_path / out, steps=steps, tasks=3, lr=1e-2, save_every=1, quiet=True, **more)
        shown = policy(folder)
        return pt.train(
            shown, TASKS, pt.grpo(reward, samples=4, kl=0.1, reference=shown.frozen_copy()), settings
        ), shown

    _, whole = learn("whole", 4)
    learn("cut", 2)
    _, resumed = learn("cut", 4, resume=True)
    assert_equal_weights(whole, resumed)
    assert_equal_weights(whole, load_policy(str(tmp_path / "whole" / "model"), max_new=6, threads=1))
    with gzip.open(tmp_path / "whole" / "rollouts" / "000000.jsonl.gz", "rt") as file:
        assert '"dna": "ACG' in file.read()


def test_reinforcement_teaches_what_only_a_part_tells(folder):
    """Two clouds under the same words, each with tokens of its own that are right: no prompt says which, but its part."""
    shown = policy(folder, max_new=1)
    clouds = [pt.Task(str(i), (pt.user([points(i), text("which?")]),), i) for i in range(2)]

    def is_right(rollout):
        return float(rollout.turns[0].reply.trace.reply[0] % 2 == rollout.task.truth)

    recipe = pt.grpo(pt.each(is_right), samples=32)
    history = pt.train_in_memory(shown, clouds, recipe, steps=70, per_step=2, lr=1e-2)
    assert 0.3 < history[0]["reward"] < 0.7
    assert sum(line["reward"] for line in history[-3:]) / 3 > 0.9


def test_supervised_learning_reads_parts_of_a_file(folder, tmp_path):
    content = [dna("ACGTAC"), text("what is it?")]
    lines = [{"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "42"}]}] * 4
    file = tmp_path / "demonstrations.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    shown = policy(folder)
    before = copy.deepcopy(shown.state_dict())
    pt.sft(
        shown, pt.read_demonstrations(file, "messages"), pt.Run(tmp_path / "run", steps=2, tasks=2, lr=1e-2, quiet=True)
    )
    moved = {name for name, value in shown.state_dict().items() if not torch.equal(value, before[name])}
    assert "modalities.dna.projector.weight" in moved


def test_a_report_shows_pictures_and_clouds(folder, tmp_path):
    from posttrain.run.drawing import draw_shown

    seen = policy(folder, vision_checkpoints.checkpoint(folder / "drawn", "qwen3_vl"))
    noise, picture = vision_checkpoints.noise, vision_checkpoints.image
    tasks = [task("both", picture(noise(16, 24)), points(3)), task("dna", dna("ACGT")), task("none")]
    pt.train(seen, tasks, pt.grpo(pt.each(lambda r: 0.0), samples=2), pt.Run(tmp_path, steps=1, tasks=3, quiet=True))
    records = list(pt.read_rollouts(tmp_path))
    assert {one["task"] for one in records if "drawing" in one} == {"both"}
    assert not any("undrawn" in one for one in records)
    [[rollout]] = pt.rollout(pt.single_turn, tasks[:1], {"policy": seen}, 1)
    drawn = draw_shown(rollout)
    assert drawn.shape == (96, 144 + 96, 3)
    assert (drawn[:, :144] == noise(16, 24)[np.arange(96) // 6][:, np.arange(144) // 6]).all()
    assert (drawn[:, 144:] < 255).sum() >= 5 * 3, "five points are five dots"


# ---- what cannot be shown


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (dna("ACGU"), "has 'U' at base 4: it may have A, C, G, T and N"),
        (dna("AC GT\nX"), "has 'X' at base 5"),
        (dna(""), "has no sequence under 'dna'"),
        (dna(None), "has no sequence under 'dna'"),
        ({"type": "dna"}, "has no sequence under 'dna'"),
        (dna(["ACGT", "ACGA"]), "takes one sequence, and was given 2: make a part of each"),
        (dna("A" * 2000), "of 2000 bases takes 670 tokens, and its encoder 128 at most"),
        ({"type": "points", "points": [[0.0, 1.0]]}, r"has the shape \[1, 2\], not \[5, 3\]"),
        ({"type": "points", "points": [[0, 1, np.nan]] * 5}, "a coordinate that is not finite"),
        ({"type": "points", "points": "none"}, "holds no points"),
        ({"type": "audio", "audio": "a.wav"}, "of type 'audio'; this model takes 'text' and 'dna' and 'points'"),
        (text("<|dna_pad|>"), r"text has <\|dna_pad\|>, which stands for parts"),
    ],
)
def test_what_cannot_be_shown_is_named(folder, part, said):
    shown = shared(folder)
    with pytest.raises(ValueError, match=said):
        shown.check([task("a", part)])


def test_a_part_without_an_encoder_is_refused_by_text_models(make):
    with pytest.raises(ValueError, match="of type 'dna', for which the model has no encoder"):
        make().check([TASKS[0]])


def test_long_dna_is_cut_around_its_middle(folder):
    encoder = pt.DnaEncoder(esm(folder / "esm"), cut=10)
    whole = "A" * 10 + "ACGTACGTTGCA" + "C" * 10
    assert encoder.read(dna(whole)).name == encoder.read(dna("acgtacgttgca")).name
    assert encoder.read(dna(whole[:28])).tokens == encoder.read(dna("A" * 28)).tokens, "28 bases are not long"


def test_absolute_positions_bound_the_length(folder):
    encoder = pt.DnaEncoder(esm(folder / "absolute", positions="absolute"))
    assert encoder.longest == 128
    payload = encoder.read(dna("ACG" * 126))
    assert payload.tokens == 128, "with its first and last token"
    assert encoder([payload])[0].shape == (128, 24)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"encoders": []}, "has no encoders, and none were given"),
        ({"trained": ["video"]}, "one of a kind, and trained ones of these"),
        ({"encoders": [pt.PointEncoder(5), pt.PointEncoder(6)]}, "one of a kind"),
        ({"min_pixels": 5}, "sees no pictures"),
    ],
)
def test_bad_arguments(folder, options, said):
    model = text_checkpoint(folder / "plain")
    with pytest.raises(ValueError, match=said):
        pt.inject(model, **{"encoders": [pt.PointEncoder(5)], **options})


def test_a_checkpoint_with_encoders_takes_no_others(folder):
    path = saved(shared(folder), folder / "known")
    with pytest.raises(ValueError, match="has encoders of its own"):
        pt.inject(path, [pt.PointEncoder(5)])
    with pytest.raises(ValueError, match="a policy that is shown more than text samples itself"):
        pt.ScaleOptions(sampler="vllm").check(path)


def test_an_encoder_of_another_family_is_refused(folder):
    with pytest.raises(ValueError, match="holds no loadable model"):
        pt.DnaEncoder(text_checkpoint(folder / "plain"))


# ---- invariants


@given(some.lists(some.integers(0, 2), max_size=5))
def test_names_stand_once_for_each_token(folder_of_module, kinds):
    parts = [[text("and")], [points(1)], [dna("ACGTA")]]
    shown = folder_of_module
    messages = (pt.user([part for kind in kinds for part in parts[kind]] + [text("end")]),)
    ids, _ = shown.chat.prompt(messages)
    payloads = [one["points"] for one in shown.chat.read_parts((pt.user([points(1)]),))[0]["content"]]
    counts = {payloads[0].name: 5 * kinds.count(1)}
    assert ids.count(payloads[0].name) == counts[payloads[0].name]
    assert sum(i < 0 for i in ids) == 5 * kinds.count(1) + 5 * kinds.count(2)


@pytest.fixture(scope="module")
def folder_of_module(folder):
    return shared(folder)


def test_fourier_features_by_hand():
    encoder = pt.PointEncoder(1, 2)
    x, y, z = 0.25, -1.0, 2.0
    wanted = [x, y, z, *np.sin([x, 2 * x, y, 2 * y, z, 2 * z]), *np.cos([x, 2 * x, y, 2 * y, z, 2 * z])]
    [found] = encoder([encoder.read({"points": [[x, y, z]]})])
    torch.testing.assert_close(found[0], torch.tensor(wanted, dtype=torch.float32))


def test_the_batch_does_not_change_features(folder):
    encoder = pt.DnaEncoder(esm(folder / "esm")).eval()
    payloads: list[Payload] = [encoder.read(dna("ACGTTGCA" * (1 + i % 4) + "ACGT"[i % 4])) for i in range(6)]
    with torch.no_grad():
        together = encoder(payloads)
        for payload, found in zip(payloads, together, strict=True):
            torch.testing.assert_close(encoder([payload])[0], found, atol=1e-5, rtol=0)


SHARED: dict[Path, Injection] = {}


def shared(folder: Path) -> Injection:
    """One policy for tests that do not change it."""
    if folder not in SHARED:
        SHARED[folder] = policy(folder)
    return SHARED[folder]


def saved(shown, path: Path) -> str:
    shown.save(path)
    return str(path)


def assert_equal_weights(first, second) -> None:
    ours, theirs = dict(first.model.named_parameters()), dict(second.model.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], atol=0, rtol=0, msg=name)
