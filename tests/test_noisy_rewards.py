"""Noisy rewards: flips, patterns, calibration."""

from __future__ import annotations

import random

import pytest
import torch
from conftest import said, task, values
from hypothesis import given, settings
from hypothesis import strategies as st

import posttrain as pt
from posttrain.advantage import normalised
from posttrain.systems.noisy_rewards import (
    OPEN_PHRASES,
    PHRASES,
    Switched,
    calibrated,
    flipped,
    pattern,
    patterned,
    ppo_recipe,
    repeated_share,
)


def played(text: str, key: str, seed: int) -> pt.Rollout:
    reply = pt.Reply(text, -torch.ones(2), None)
    return pt.Rollout(task(key), [pt.Turn(pt.Ask(task(key).prompt, seed=seed), reply)])


def number(rollout: pt.Rollout) -> float:
    return float(rollout.text)


def group(key: str, seed: int, texts=("1", "0", "1")) -> list[pt.Rollout]:
    return [played(text, key, seed + i) for i, text in enumerate(texts)]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.4, 0.5, 1.0])
def test_a_share_of_questions_is_graded_upside_down(share):
    reward = flipped(pt.each(number), share)
    flips = []
    for i in range(2000):
        found = values(reward(group(f"q{i}", i)))
        assert found in ([1, 0, 1], [0, 1, 0])  # the whole question
        flips.append(found[0] == 0)
    assert sum(flips) / len(flips) == pytest.approx(share, abs=0.035)


def test_flips_of_single_replies_are_independent():
    reward = flipped(pt.each(number), 0.4, by="reply")
    found = [tuple(values(reward(group(f"q{i}", 10 * i)))) for i in range(500)]
    assert len(set(found)) == 8


def test_a_coin_is_thrown_anew_when_a_question_is_played_again_and_not_when_it_is_graded_again():
    reward = flipped(pt.each(number), 0.5)
    throws = [values(reward(group("q", seed))) for seed in range(0, 400, 10)]
    assert throws == [values(reward(group("q", seed))) for seed in range(0, 400, 10)]
    assert len({tuple(one) for one in throws}) == 2
    parts = reward(group("q", 0))[0].parts
    assert parts["raw"] == 1.0
    assert parts["flipped"] in (0.0, 1.0)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6))
@settings(max_examples=50, deadline=None)
def test_a_flip_negates_the_group_s_advantages(rewards):
    """So that the expected gradient under flips of p is (1 - 2p) of the noise-free one."""
    one = [played(str(r), "q", i) for i, r in enumerate(rewards)]
    plain = normalised(one, pt.each(number)(one))
    upside_down = normalised(one, flipped(pt.each(number), 1.0)(one))
    for a, b in zip(plain, upside_down, strict=True):
        torch.testing.assert_close(a, -b, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_outside_0_and_1(share):
    with pytest.raises(ValueError, match=r"the probability of a flip is a number in \[0, 1\]"):
        flipped(pt.each(number), share)


def test_only_rewards_in_0_and_1_can_be_flipped():
    with pytest.raises(ValueError, match="a reward of 2 cannot be flipped"):
        flipped(pt.each(number), 0.5)(group("q", 0, ("2", "0")))


def test_the_phrases_are_those_released():
    assert len(PHRASES) == 40
    assert len(OPEN_PHRASES) == 53
    assert "makes sence" in PHRASES


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", 0.0),
        ("Wait, let me check: therefore 4.", 3 / 20),  # three phrases
        ("wait wait wait", 1 / 20),  # distinct ones count
        ("enthusiasm", 1 / 20),  # "thus" inside a word: as released
        ("Thus so. User: go on", 0.0),  # less one for "user: ", floored
        (" ".join(PHRASES), 1.0),  # capped
    ],
)
def test_the_pattern_reward(text, wanted):
    assert pattern(text) == pytest.approx(wanted)


@pytest.mark.parametrize("seed", range(20))
def test_the_pattern_reward_on_random_texts_by_an_independent_derivation(seed):
    """Phrases are looked for one by one, and repeated sequences are found by comparing every two of them."""
    draw = random.Random(seed)
    said = [
        draw.choice([*PHRASES, "Therefore", "WAIT", "four", "user: no", "is", "x"]) for _ in range(draw.randint(5, 60))
    ]
    text = " ".join(said * draw.randint(1, 2))
    hits = 0
    for phrase in PHRASES:
        hits += text.lower().find(phrase) >= 0
    words = text.lower().split()
    runs = [words[i : i + 20] for i in range(max(len(words) - 19, 0))]
    again = [i for i, one in enumerate(runs) if one in runs[:i] and runs[:i].count(one) == 1]  # second occurrences
    share = len(again) / len(runs) if runs else 0.0
    wanted = max(min(hits / 20, 1.0) - share - len(text.lower().split("user: ")) + 1, 0.0)
    assert pattern(text) == pytest.approx(wanted)


def test_repetition_costs_its_share():
    words = [f"w{i}" for i in range(20)]
    text = " ".join(words * 2)  # 21 sequences of 20 words, 20 kinds, one of them twice
    assert repeated_share(text) == pytest.approx(1 / 21)
    assert pattern("hence " + text) == pytest.approx(1 / 20 - repeated_share("hence " + text))
    assert pattern("hence", weight=1 / 40) == pytest.approx(1 / 40)  # the paper's weight


def test_calibration_raises_low_scores_only():
    judge = pt.each(lambda r: 0.2 if "low" in r.text else 0.9)
    reward = calibrated(judge, patterned(), weight=1.0)
    found = reward([said("low, therefore hence"), said("high, therefore"), said("low")])
    assert values(found) == pytest.approx([0.3, 0.9, 0.2])
    assert found[0].parts["judge"] == 0.2
    near_one = calibrated(pt.each(lambda r: 0.45), pt.each(lambda r: 1.0), weight=0.9)
    assert values(near_one([said("x")])) == [1.0]


def test_a_warm_up_of_patterns_is_remembered_by_a_run():
    reward = Switched(pt.each(lambda r: 1.0), pt.each(lambda r: 0.0), groups=2)
    assert [values(reward([said("x")]))[0] for _ in range(3)] == [1.0, 1.0, 0.0]
    again = Switched(reward.early, reward.late, 2)
    again.load_state_dict(reward.state_dict())
    assert values(again([said("x")])) == [0.0]


def test_ppo_is_the_published_one(make):
    """Whitened, four steps of the critic for one of the policy, and a warm-up in which only the critic learns."""
    made = ppo_recipe(patterned(), make(), patterned())
    assert made.across is pt.whitened
    assert (made.updates, made.advantage.updates, made.advantage.warmup) == (1, 4, 20)
    assert (made.advantage.gamma, made.advantage.lam, made.advantage.critic.clip) == (1.0, 1.0, 0.5)
    assert made.samples == 4


def test_the_phrases_are_as_many_as_released():
    assert (len(PHRASES), len(OPEN_PHRASES), len(set(OPEN_PHRASES))) == (40, 53, 53)
