"""CaSemCom: quality, experts, what the link charges, the gate's words, the agent, the digital baseline, stages."""

from __future__ import annotations

import importlib.util
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

import posttrain as pt
from posttrain import channel
from posttrain.cli import main
from posttrain.core import Ask, Reply, Turn
from posttrain.lab.world import scenes
from posttrain.systems.casemcom import centred_to_go, control_recipe, lab, recipe
from posttrain.systems.casemcom.control import Reader, load_reader, reader_of
from posttrain.systems.casemcom.digital import PIXEL_BITS, digital_slots, only_outcome, pictures_of, pixel_bits
from posttrain.systems.casemcom.experts import GRID_DB, Experts, load_experts, train_experts
from posttrain.systems.casemcom.gate import (
    decisions_in,
    demonstrations,
    gate_tasks,
    parse_reply,
    prompt_text,
    reply_text,
    rule_table,
    static,
    user_by_user,
)
from posttrain.systems.casemcom.link import slots_of
from posttrain.systems.casemcom.measures import by_band, of_rollouts, of_rule, user_measures
from posttrain.systems.casemcom.quality import psnr, ssim
from posttrain.systems.casemcom.reward import Charges, reward, user_parts
from posttrain.systems.casemcom.slots import Delivery, Slot, User, mask_of, read_captures

sionna = pytest.mark.skipif(
    not importlib.util.find_spec("sionna"), reason="no sionna: pip install 'posttrain[channel]'"
)
SIZES = (8, 32, 96)


def user(**more) -> User:
    plain = User("find disc", "object", 18.0, "high", 30.0, 6.0, (288, 1760))
    return replace(plain, **more)


def delivery(psnr: float = 20.0, symbols: int = 8, again: bool = False, latency_ms: float = 2.0) -> Delivery:
    return Delivery(psnr, 0.5, symbols, again, latency_ms)


def slot(symbols: int = 120, key: str = "a", **more) -> Slot:
    """Three users; decision k delivers 20 + k dB."""
    users = (user(**more), user(task="inspect sky", region="whole", least_db=23.0), user(priority="low"))
    outcomes = tuple(delivery(20.0 + k, SIZES[k % 3]) for k in range(6))
    return Slot(key, symbols, SIZES, users, (outcomes,) * 3)


def rollout_of(one: Slot, *replies) -> pt.Rollout:
    turns = [Turn(Ask(()), Reply(content, torch.zeros(3), None)) for content in replies]
    return pt.Rollout(pt.Task(one.key, (), one), turns)


# ---- quality


def test_psnr_by_hand_and_by_region():
    picture, received = torch.zeros(1, 4, 4), torch.zeros(1, 4, 4)
    received[0, 0, 0] = 0.1
    corner = torch.zeros(1, 4, 4)
    corner[0, 0, 0] = 1
    assert psnr(received, picture, corner).item() == pytest.approx(20)
    assert psnr(received, picture, torch.ones(1, 4, 4)).item() == pytest.approx(20 + 10 * math.log10(16), abs=1e-4)
    assert psnr(received, picture, 1 - corner).item() == pytest.approx(60)


def test_ssim_is_wangs():
    """In the inside of a picture, where the window is whole, as scipy's Gaussian filter of the same window says."""
    draw = np.random.default_rng(0)
    x, y = draw.random((20, 20)), draw.random((20, 20))
    y = 0.7 * x + 0.3 * y
    local = lambda a: gaussian_filter(a, 1.5, radius=5)  # noqa: E731
    mx, my = local(x), local(y)
    cov, vx, vy = local(x * y) - mx * my, local(x * x) - mx**2, local(y * y) - my**2
    expected = (2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
    inside = torch.zeros(1, 20, 20)
    inside[:, 5:15, 5:15] = 1
    a, b = torch.tensor(y, dtype=torch.float32)[None], torch.tensor(x, dtype=torch.float32)[None]
    assert ssim(a, b, inside).item() == pytest.approx(expected[5:15, 5:15].mean(), abs=1e-4)
    assert ssim(a, a, torch.ones(1, 20, 20)).item() == pytest.approx(1, abs=1e-5)


# ---- experts and link


@pytest.fixture(scope="module")
def small():
    """Experts of few steps, and captures that they were not trained on."""
    torch.manual_seed(0)
    made = Experts(16, (4, 8), hidden=64)
    shown = lab.captures(1, 100, "experts")
    pictures, masks = (torch.cat([getattr(one, name) for one in shown]) for name in ("pictures", "masks"))
    train_experts(made, pictures, masks, updates=200, rate=4e-3, seed=1)
    return made, lab.captures(1, 40, "test")


def test_each_transmission_has_unit_power_and_the_object_alone_is_seen(small):
    made, [one, *_] = small
    symbols = made.encode(1, one.pictures, one.masks, torch.tensor([0.0, 10.0, 20.0]))
    assert symbols.shape == (3, 8)
    torch.testing.assert_close(symbols.abs().square().mean(-1), torch.ones(3))
    elsewhere = one.pictures + 0.3 * (1 - one.masks)
    torch.testing.assert_close(symbols, made.encode(1, elsewhere, one.masks, torch.tensor([0.0, 10.0, 20.0])))


def test_what_a_receiver_expects_is_read_between_the_points(small):
    made, _ = small
    curve = made.expected[2, 1]
    at = torch.tensor([GRID_DB[3], GRID_DB[3] + 2.5, -99.0, 99.0])
    found = made.expected_psnr(2, torch.ones(4, dtype=torch.long), at)
    expected = torch.stack([curve[3], (curve[3] + curve[4]) / 2, curve[0], curve[-1]])
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


def test_experts_learn_to_expect_more_of_a_better_channel(small):
    made, _ = small
    assert made.expected[2, 1, -3] > made.expected[2, 1, 0] + 1


def test_experts_are_saved_and_loaded(small, tmp_path):
    made, captures = small
    made.save(tmp_path)
    assert slots_of(captures, load_experts(tmp_path), 3) == slots_of(captures, made, 3)
    with pytest.raises(ValueError, match="`experts=none`: the folder holds no experts"):
        load_experts("none")


def test_every_transmission_is_charged(small):
    made, captures = small
    captures = [replace(one, users=tuple(replace(u, least_db=16.0) for u in one.users)) for one in captures]
    found = [one for slot in slots_of(captures, made, 3) for outcomes in slot.outcomes for one in outcomes]
    again = [one for one in found if one.retransmitted]
    assert 0 < len(again) < len(found)
    for one in found:
        size = one.symbols // (1 + one.retransmitted)
        assert size in (4, 8)
        assert one.latency_ms == size * 0.25 * (1 + one.retransmitted) + 4 * one.retransmitted


def test_the_receiver_asks_again_by_what_it_expects_and_not_by_what_was_sent(small):
    """Other pictures over the same fading are asked for again in the same places."""
    made, captures = small
    others = [replace(one, pictures=1 - one.pictures) for one in captures]
    asked = lambda some: [d.retransmitted for s in slots_of(some, made, 3) for o in s.outcomes for d in o]  # noqa: E731
    assert asked(captures) == asked(others)
    never = [replace(one, users=tuple(replace(u, least_db=-99.0) for u in one.users)) for one in captures]
    assert not any(asked(never))


@sionna
def test_slots_over_sionnas_fading_are_as_good(small):
    made, captures = small
    means = [
        np.mean([o[3].psnr for s in slots_of(captures * 5, made, 3, by) for o in s.outcomes])
        for by in ("own", "sionna")
    ]
    assert abs(means[0] - means[1]) < 0.5


def test_a_budget_that_is_too_small_is_refused_by_name(small):
    made, [one, *_] = small
    with pytest.raises(ValueError, match="the slot 'test-0' has 11 symbols for 3 users: they need 4 each"):
        slots_of([replace(one, symbols=11)], made, 0)


# ---- the gate


def test_the_prompt_and_the_reply():
    assert prompt_text(slot(), user(), 47) == (
        "task=find disc; priority=high; latency=30ms; snr=5dB; bw=32; items=[0:object:288,1:background:1760]"
    )
    assert reply_text(slot(), 2) == '{"select": [0], "experts": {"image": "E2"}}'
    assert [parse_reply(reply_text(slot(), k), slot()) for k in range(6)] == list(range(6))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "E1",
        '{"select": [0], "experts": {"image": "E3"}}',
        '{"select": [1], "experts": {"image": "E1"}}',  # a background without its object has no expert
        '{"select": [0, 0], "experts": {"image": "E1"}}',
        '{"select": [true], "experts": {"image": "E1"}}',
        '{"select": 0, "experts": {"image": "E1"}}',
        '{"select": [0], "experts": {"image": ["E1"]}}',
        '{"select": [0], "experts": "E1"}',
        '{"select": [0]}',
        '{"select": [0], "experts": {"image": "E1"}, "why": "it is small"}',
        'So: {"select": [0], "experts": {"image": "E1"}}',
        '{"select": [0], "experts": {"image": "E1"}} and',
        "[" * 100_000,
    ],
)
def test_what_is_no_decision(text):
    assert parse_reply(text, slot()) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 3) | st.floats() | st.sampled_from(["E0", "E1", "E9", "image"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["select", "experts", "image"]), inner),
    max_leaves=8,
)


@given(st.text() | JSON.map(json.dumps) | st.text(alphabet='{}[]":,01E selctxpri', max_size=60))
@settings(deadline=None)
def test_any_text_is_a_decision_or_misread(text):
    one = slot()
    decision = parse_reply(text, one)
    assert decision is None or parse_reply(reply_text(one, decision), one) == decision
    [score] = reward()([rollout_of(one, text, text, text)])
    assert math.isfinite(score.value)
    assert score.parts["misread"] in (0, 1 / 3, 2 / 3, 1)


@given(st.lists(st.integers(0, 5), min_size=3, max_size=3), st.sampled_from([24, 48, 120, 288]))
@settings(deadline=None)
def test_the_users_never_have_more_than_the_budget(wanted, symbols):
    one = slot(symbols)
    decided = decisions_in(rollout_of(one, *(reply_text(one, k) for k in wanted)))
    assert sum(one.size(d.decision) for d in decided) <= symbols
    assert all(d.misread or d.decision == k for d, k in zip(decided, wanted, strict=True))


def test_the_episode_asks_user_after_user_with_what_is_left():
    one, said = slot(48), []
    episode = user_by_user("be brief")(gate_tasks([one])[0])
    asks = next(episode)
    for text in ('{"select": [0], "experts": {"image": "E1"}}', "nonsense"):
        said.append(asks[0].messages)
        asks = episode.send([Reply(text, torch.zeros(1), None)])
    said.append(asks[0].messages)
    with pytest.raises(StopIteration):
        episode.send([Reply("", torch.zeros(1), None)])
    assert [messages[0]["content"] for messages in said] == ["be brief"] * 3
    rooms = [messages[1]["content"].split("bw=")[1].split(";")[0] for messages in said]
    assert rooms == ["32", "8", "8"]  # of 48: 32 and two times the least; then 8 and 8


def test_rules_and_demonstrations():
    one = slot(120)
    assert [d.decision for _, [*some] in [(0, next(iter(of_rule([one], rule_table)))[1])] for d in some] == [0, 4, 0]
    assert [d.decision for d in next(iter(of_rule([one], static("whole", 96))))[1]] == [4, 4, 4]  # a share of 40
    assert [d.decision for d in next(iter(of_rule([slot(48)], static("object", 96))))[1]] == [0, 0, 0]
    shown = demonstrations([one])
    assert [parse_reply(d.messages[-1]["content"], one) for d in shown] == [0, 4, 0]


# ---- the reward


def test_the_reward_by_hand():
    plain = Charges()
    assert user_parts(user(), delivery(), False, plain)["reward"] == pytest.approx(1 - 0.5 * 8 / 96)
    low = user_parts(user(priority="low"), delivery(symbols=96, again=True, latency_ms=31), True, plain)
    assert low["reward"] == pytest.approx(0.5 - 0.5 - 0.3 - 0.3 - 0.5)
    slow = user_parts(user(), delivery(), False, Charges(gate_ms=29))
    assert (slow["late"], slow["latency_ms"]) == (1.0, 31.0)
    with pytest.raises(ValueError, match="`late_charge=-1`: it must be at least 0"):
        Charges(late_charge=-1)


def test_each_user_has_its_share_of_the_score():
    one = slot()
    texts = [reply_text(one, k) for k in (0, 3, 0)]
    [by_turn] = reward()([rollout_of(one, *texts)])
    [by_decision] = reward()([rollout_of(one, (0, 3, 0))])
    assert by_turn.value == pytest.approx(sum(by_turn.turns)) == pytest.approx(by_decision.value)
    assert by_decision.decisions.tolist() == pytest.approx(list(by_turn.turns))
    others = rollout_of(one, (0, 0, 0))
    credit = centred_to_go([rollout_of(one, (0, 3, 0)), others], [by_decision, reward()([others])[0]])
    gap = 3 / 20 / 3 / 2  # 3 dB of one user of three, half of it on either side of the mean
    torch.testing.assert_close(credit[0], torch.tensor([gap, gap, 0.0]), atol=1e-6, rtol=0)


def test_the_gates_latency_is_charged_where_a_prompt_is_new():
    one, texts = slot(), [reply_text(slot(), k) for k in (0, 3, 0)]
    again = [rollout_of(one, *texts), rollout_of(replace(one, key="b"), *texts)]
    found = list(user_measures(of_rollouts(again), Charges(gate_ms=50)))
    assert [parts["fresh"] for parts in found] == [1, 1, 1, 0, 0, 0]
    assert [parts["latency_ms"] for parts in found] == [52, 52, 52, 2, 2, 2]
    assert [parts["late"] for parts in found] == [1, 1, 1, 0, 0, 0]
    rows = by_band(found)
    assert list(rows) == ["all", "0 to 15 dB"]
    assert rows["all"]["fresh"] == 0.5


# ---- the agent


def test_a_blind_agent_sees_channels_and_budget_alone(tmp_path):
    one, other = slot(), slot(task="watch cross", region="whole", priority="low", latency_ms=10.0)
    blind, reads = reader_of([one, other], False), reader_of([one, other], True)
    assert blind.state(one) == blind.state(other) == [1.2, 0.3, 0.3, 0.3]
    assert reads.state(one) != reads.state(other)
    assert len(reads.state(one)) == reads.features
    assert reads.state(slot(task="unheard"))[3:6] != reads.state(one)[3:6]
    reads.save(tmp_path)
    assert load_reader(tmp_path) == reads
    with pytest.raises(ValueError, match="`control=none`: the folder holds no agent"):
        load_reader("none")
    with pytest.raises(ValueError, match="the slot 'a' has 3 users"):
        Reader((), 2, SIZES).slot_tasks([one])


def test_an_agent_keeps_to_the_budget():
    slots = [slot(symbols, str(symbols)) for symbols in (24, 48, 120, 288)]
    reader = reader_of(slots, True)
    policy = pt.DecisionPolicy(reader.network())
    for group in pt.rollout(pt.single_turn, reader.slot_tasks(slots), {"policy": policy}, 20):
        for one in group:
            assert sum(one.task.truth.size(d.decision) for d in decisions_in(one)) <= one.task.truth.symbols


@pytest.mark.slow
@pytest.mark.parametrize("method", ["grpo", "ppo"])
def test_an_agent_learns_what_pays(method):
    """Decision 5 delivers most; all three can have it."""
    one = slot(288)
    outcomes = tuple(delivery(20.0 + 2 * k, 8) for k in range(6))
    slots = [replace(one, key=str(i), outcomes=(outcomes,) * 3) for i in range(4)]
    reader = reader_of(slots, True)
    torch.manual_seed(0)
    policy = pt.DecisionPolicy(reader.network())
    made = control_recipe(reward(), policy, method=method, entropy=0.0)
    pt.train_in_memory(policy, reader.slot_tasks(slots), made, steps=40, per_step=4, lr=1e-2)
    found = pt.evaluate({"policy": policy}, reader.slot_tasks(slots), reward(), temperature=0.0)
    assert [d.decision for d in decisions_in(found.rollouts[0])] == [5, 5, 5]


def test_a_tiny_gate_takes_a_step_of_grpo():
    world = lab.Gates(0)
    policy = lab.base(world, 0, lab.Size(hidden=16, layers=1, steps=2, rows=4))
    before = [p.detach().clone() for p in policy.parameters()]
    made = recipe(reward(), samples=4, entropy=0.01)
    tasks = gate_tasks([slot(key=str(i)) for i in range(2)])
    [metrics] = pt.train_in_memory(policy, tasks, made, steps=1, per_step=2, lr=1e-3)
    assert metrics["turns"] == 3
    assert any(not torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True))


def test_unseen_tasks_are_of_words_that_were_seen():
    words = {word for pair in scenes.SEEN for word in pair.split()}
    assert all(set(pair.split()) <= words for pair in scenes.UNSEEN)
    assert not set(scenes.SEEN) & set(scenes.UNSEEN)
    assert {len(picture) for picture in [scenes.silhouette(s) for s in scenes.SHAPES]} == {scenes.BOX}


# ---- digital


@given(st.integers(1, 8), st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_pixels_survive_being_written_as_bits(grid, seed):
    picture = torch.rand(1, grid, grid, generator=torch.Generator().manual_seed(seed))
    bits = pixel_bits(picture, grid)
    assert bits.shape == (1, grid * grid * PIXEL_BITS)
    assert (pictures_of(bits, grid, grid) - picture).abs().max() <= 0.5 / 31 + 1e-6


@sionna
def test_the_digital_baseline_has_a_cliff(small):
    made, captures = small
    good, bad = (
        [replace(one, users=tuple(replace(u, snr_db=at) for u in one.users)) for one in captures]
        for at in (30.0, -13.0)
    )
    for some, share in ((good, 0.0), (bad, 1.0)):
        found = digital_slots(slots_of(some, made, 0), some, 0)
        users = list(user_measures(of_rule(found, only_outcome), Charges()))
        again = np.mean([u["retransmitted"] for u in users])
        assert abs(again - share) < 0.15
    assert max(u["symbols"] for u in users) == 2 * (288 // 3)
    with pytest.raises(ValueError, match="the slot 'test-0': 10 symbols for a user hold no pixel; 16 do"):
        digital_slots(slots_of(captures[:1], made, 0), [replace(captures[0], symbols=30)], 0)


# ---- files


def row(tmp_path, **more):
    from vision_checkpoints import png

    png(tmp_path / "a.png", 20, 40)
    one = {"task": "find the car", "image": "a.png", "box": [10, 5, 20, 15], "region": "object", "priority": "high"}
    return {**one, "latency_ms": 30, "snr_db": 7.5, **more}


def write(tmp_path, **more) -> str:
    path = tmp_path / "slots.jsonl"
    path.write_text(json.dumps({"id": "s", "symbols": 60, "users": [row(tmp_path, **more)] * 2}))
    return str(path)


def test_slots_of_a_file(tmp_path):
    [one] = read_captures(write(tmp_path), 16)
    assert (one.key, one.symbols, one.pictures.shape) == ("s", 60, (2, 16, 16))
    assert one.users[0] == User("find the car", "object", 18.0, "high", 30.0, 7.5, (8 * 32, 8 * 224))
    assert torch.equal(one.masks[0], mask_of((4, 4, 8, 12), 16))
    assert 0 <= one.pictures.min() <= one.pictures.max() <= 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"box": [10, 5, 50, 15]}, r"line 1: `box` is .* within 40 x 20 pixels"),
        ({"image": "none.png"}, "line 1: there is no picture"),
        ({"region": "sky"}, "line 1: `region` is 'sky', not object or whole"),
        ({"snr_db": "high"}, "line 1: `snr_db` is 'high', and no number"),
        ({"snr_db": -400}, "line 1: `snr_db` is -400.0; it is from -100 to 100"),
        ({"latency_ms": 0}, "line 1: `latency_ms` is 0.0; it is above 0"),
        ({"task": "a; snr=30dB"}, "line 1: the task .* holds a sign that divides the prompt"),
        ({"task": None}, "line 1: the column 'task' is empty"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(tmp_path, more, message):
    with pytest.raises(ValueError, match=message):
        read_captures(write(tmp_path, **more), 16)


def test_experts_agent_and_evaluation_by_the_command(tmp_path, capsys):
    data, made, agent = write(tmp_path), str(tmp_path / "experts"), str(tmp_path / "agent")
    run = ["run", "casemcom", "--stage"]
    main([*run, "experts", "--data", data, "--side", "12", "--sizes", "4", "8", "--updates", "2", "--out", made])
    some = ["--data", data, "--experts", made]
    main([*run, "control", *some, "--steps", "1", "--tasks", "1", "--out", agent, "--quiet"])
    main([*run, "evaluate", *some, "--agent", agent, "--out", str(tmp_path / "evaluation"), "--quiet"])
    measures = pt.read_json(tmp_path / "evaluation" / "measures.json")
    assert set(measures) == {"all", "0 to 15 dB"}
    assert measures["all"]["misread"] == 0
    assert "retransmitted" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*run, "evaluate", *some, "--agent", agent, "--baseline", "table", "--out", str(tmp_path / "e")])
    assert "give one of them" in capsys.readouterr().err
    assert channel.By.__args__ == ("own", "sionna")
