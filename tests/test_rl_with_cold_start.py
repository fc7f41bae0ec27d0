"""The cold start: what is kept of a teacher, that both stages ask alike, and the world of drawn numbers."""

from __future__ import annotations

import json
import math
import random

import numpy as np
import pytest
import torch
from conftest import Canned
from hypothesis import given
from hypothesis import strategies as some
from vision_checkpoints import checkpoint, image, noise, png, policy, text

import posttrain as pt
from posttrain import grade, tiny
from posttrain.chat import in_words
from posttrain.cli import main
from posttrain.data import read, read_demonstrations
from posttrain.options import ModelOptions
from posttrain.reward import graded
from posttrain.systems import rl_with_cold_start as system
from posttrain.systems.rl_with_cold_start import experiments
from posttrain.systems.rl_with_cold_start.reflection import gap, patterns, reflects
from posttrain.systems.rl_with_cold_start.stages import aligned, check_started, written
from posttrain.systems.rl_with_cold_start.styles import AGAIN, CRITICISE, DESCRIBE, REVISE, STYLES, kept
from posttrain.world.glyphs import Glyphs, Problem, answer, careful, drawing, looked_again, skipping, works
from posttrain.world.words import Size, taught

PROBLEM = Problem((3, 1, 4), ("+", "*"))  # 3 + 1 = 4, 4 * 4 = 16 = 4 mod 6


def seen(key: str = "t", truth: str = "4") -> pt.Task:
    content = [image(noise(8, 8)), text("How many?")]
    return pt.Task(key, (pt.system("Think."), pt.user(content)), truth)


# ---- reflection


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("Wait, let me re-check. Wait!", {"wait": 2, "re-check": 1}),
        ("I recheck, rechecking and double check it", {"re-check": 2, "double-check": 1}),
        ("The waiter awaits a remistake", {}),
        ("Alternatively, there was a MISTAKE", {"alternatively": 1, "mistake": 1}),
        ("", {}),
    ],
)
def test_words_of_reflection(words, found):
    assert patterns(words) == found
    assert reflects(words) == bool(found)


def test_the_gap_by_hand():
    texts = ["wait 1", "wait 2", "3", "4", "5"]
    assert gap(texts, [True, False, True, True, False]) == pytest.approx(1 / 2 - 2 / 3)
    assert math.isnan(gap(["a", "b"], [True, False]))
    assert math.isnan(gap(["wait"], [True]))


# ---- styles over a teacher


def test_only_right_and_whole_chains_are_kept():
    says = iter(["\\boxed{3}", "so \\boxed{4}", "\\boxed{4} again", "none"])
    found = kept(Canned(lambda ask: next(says)), [seen()], grade.GRADES["math"], candidates=4)
    assert found["t"].messages[-1]["content"] == "so \\boxed{4}"
    assert [message["role"] for message in found["t"].messages] == ["system", "user", "assistant"]
    assert not kept(Canned("\\boxed{5}"), [seen()], grade.GRADES["math"])

    class Cut:
        def sample(self, asks):
            return [pt.Reply("\\boxed{4}", torch.zeros(0), None, "length") for _ in asks]

    assert not kept(Cut(), [seen()], grade.GRADES["math"])


def test_a_reflection_needs_a_wrong_attempt_first():
    def corrected(ask):
        return "\\boxed{4}" if len(ask.messages) > 2 else "\\boxed{3}"

    found = kept(Canned(corrected), [seen()], grade.GRADES["math"], "reflection")
    assert found["t"].messages[-1]["content"] == "\\boxed{3}\n\nWait, let me re-evaluate.\n\n\\boxed{4}"
    assert not kept(Canned("\\boxed{4}"), [seen()], grade.GRADES["math"], "reflection")


@pytest.mark.parametrize(
    ("style", "asked", "chain"),
    [
        ("distilled", [""], "0"),
        ("reflection", ["", AGAIN], "0\n\nWait, let me re-evaluate.\n\n1"),
        ("caption", [DESCRIBE, "The picture: 0"], "0\n\n1"),
        ("critic", ["", CRITICISE, REVISE], "0\n\n1\n\n2"),
    ],
)
def test_what_a_style_asks_and_makes(style, asked, chain):
    """Driven by hand: the system message and the picture stand in every ask."""
    episode = STYLES[style](seen())
    asks, made = next(episode), None
    for count, words in enumerate(asked):
        [one] = asks
        assert one.messages[0]["content"] == "Think."
        assert any(part.get("type") == "image" for part in one.messages[1]["content"])
        assert in_words(one.messages[-1]["content"]).endswith(words)
        try:
            asks = episode.send([pt.Reply(str(count), torch.zeros(0), None)])
        except StopIteration as end:
            made = end.value
    assert made == chain


def test_chains_survive_their_file(tmp_path):
    path = png(tmp_path / "a.png", 8, 16)
    prompts = [(pt.system("Think."), pt.user([image(str(path)), text("How many?")])), seen().prompt]
    chains = {f"k{i}": pt.Demonstration((*prompt, pt.assistant(f"{i}"))) for i, prompt in enumerate(prompts)}
    file = written(chains, tmp_path / "chains")
    back = read_demonstrations(file, image="images", system=system.SYSTEM)
    assert [one.messages[0]["content"] for one in back] == [system.SYSTEM] * 2, "one system message, the stage's own"
    assert [in_words(one.messages[1]["content"]) for one in back] == ["<image>How many?"] * 2
    shown = [policy().chat.seen(one.messages)[1]["content"][0]["image"] for one in back]
    assert (shown[0].pixels == noise(8, 16)).all()
    assert (shown[1].pixels == noise(8, 8)).all()


# ---- full scale: the traps


@pytest.fixture
def album(tmp_path):
    lines = []
    for k in range(3):
        png(tmp_path / f"{k}.png", 16, 16, seed=k)
        lines.append({"problem": "How many?", "images": [f"{k}.png"], "answer": str(k)})
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_every_stage_from_the_command_line(family, album, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ModelOptions, "player", lambda *_: Canned("it is \\boxed{1}"))
    folder = checkpoint(tmp_path / "model", family)
    data = ["--data", str(album), "--prompt", "problem", "--image", "images", "--max-new", "6", "--min-pixels", "64"]
    size = ["--steps", "1", "--tasks", "2", "--quiet"]
    start = ["run", "rl-with-cold-start", "--scale", "full", *data, *size]
    main([*start, "--stage", "distil", "--teacher", "it", "--model", folder, "--out", str(tmp_path / "cold")])
    chains = tmp_path / "cold-chains" / "demonstrations.jsonl"
    assert [json.loads(line)["id"] for line in chains.read_text().splitlines()] == ["2"]  # the one whose answer is 1
    with pytest.raises(SystemExit):  # the released script starts from the base model, which is RL alone
        main([*start, "--stage", "rl", "--model", folder, "--out", str(tmp_path / "rl")])
    assert "there was no cold start" in capsys.readouterr().err
    main([*start, "--stage", "rl", "--model", str(tmp_path / "cold" / "model"), "--out", str(tmp_path / "rl")])
    main([*start, "--no-cold-start", "--model", folder, "--out", str(tmp_path / "alone")])
    asked = next(iter(pt.read_rollouts(tmp_path / "rl")))["turns"][0]["messages"]
    assert asked[0] == {"role": "system", "content": system.SYSTEM}, "both stages ask alike"
    again = ["--data", str(chains), "--image", "images", "--max-new", "6", *size, "--out", str(tmp_path / "sft")]
    main(["run", "rl-with-cold-start", "--scale", "full", "--stage", "sft", "--model", folder, *again])
    check_started(str(tmp_path / "sft" / "model"))


def test_no_right_chain_is_said(album, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ModelOptions, "player", lambda *_: Canned("I do not know"))
    folder = checkpoint(tmp_path / "model")
    data = ["--data", str(album), "--prompt", "problem", "--image", "images", "--max-new", "6", "--model", folder]
    stage = ["--stage", "distil", "--teacher", "it"]
    with pytest.raises(SystemExit):
        main(["run", "rl-with-cold-start", "--scale", "full", *data, *stage, "--out", str(tmp_path / "c")])
    assert "not one chain of the teacher was right" in capsys.readouterr().err


def test_the_aligner_is_trained_and_the_tower_is_not():
    for family in ("qwen2_5_vl", "qwen3_vl"):
        one = policy(family)
        aligned(one)
        names = {name for name, p in one.model.named_parameters() if p.requires_grad}
        assert any("merger" in name for name in names)
        assert not any("visual" in name and "merger" not in name for name in names)
        assert any("language_model" in name for name in names)
        whole = policy(family)
        aligned(whole, vision=True)
        assert len(list(whole.parameters())) > len(names)


def test_the_reward_has_no_part_for_a_format(album):
    made = system.recipe(grade.GRADES["math"], reference=policy())
    assert (made.samples, made.reference is not None) == (10, True)
    [task, *_] = read(album, "problem", image="images")
    reply = pt.Reply("<think> \\boxed{9} </think>", torch.zeros(1), None)
    [score] = graded(made.reward, [pt.Rollout(task, [pt.Turn(pt.Ask(task.prompt), reply)])])
    assert score.value == 0.0


# ---- the world


def test_replies_by_hand():
    assert PROBLEM.results == (4, 4)
    assert careful(PROBLEM) == "see 3 1 4 so 3 + 1 = 4 , 4 * 4 = 4 is 4"
    assert skipping(PROBLEM) == "see 3 1 4 is 4"
    assert works(careful(PROBLEM))
    assert not works(skipping(PROBLEM))
    assert [answer(said) for said in ("is 4", "see 3", "is", "4 is 4 , 5", "")] == ["4", None, None, None, None]
    assert Problem((1, 2, 0), ("-", "+")).results == (5, 5), "modulo six"


def test_second_looks_are_right_as_often_as_is_said():
    draw = random.Random(0)
    helped = [looked_again(PROBLEM, draw, 1.0) for _ in range(50)]
    assert {answer(said) for said in helped} == {"4"}
    blind = [looked_again(PROBLEM, draw, 0.5).split()[15] for _ in range(400)]
    assert 0.4 < blind.count("4") / 400 < 0.6


@given(some.sampled_from(["digits", "dots", "bars"]), some.lists(some.integers(0, 5), min_size=1, max_size=4))
def test_drawings_are_cells_of_one_token(kind, numbers):
    drawn = drawing(numbers, kind, random.Random(1))
    assert drawn.dtype == np.uint8
    shown = Glyphs().preprocessing.picture(drawn)
    assert (shown.rows, shown.columns) == (1, len(numbers))
    assert (drawing(numbers, kind, random.Random(1)) == drawn).all()
    assert not (drawing(numbers, kind, random.Random(2)) == drawn).all()


def test_held_out_problems_are_not_shown():
    world = Glyphs(1, questions=0.2, captions=0.2, as_text=0.2, careful=0.5)
    held = {str(one) for one in world.problems[:400]}
    draw = random.Random(0)
    assert not held & {str(world.drawn(draw)) for _ in range(3000)}
    assert held >= {str(world.drawn(draw, held_out=True)) for _ in range(300)}
    one = world.drawn(draw)
    other = world.drawn(draw, like=one)
    assert other.numbers == one.numbers
    assert other.signs != one.signs
    words = set(world.vocabulary)
    for _ in range(200):
        messages = world.demonstration(draw).messages
        said = " ".join(in_words(message["content"]) for message in messages)
        assert set(said.replace("<image>", "").split()) <= words


def test_spoilt_chains_keep_their_structure():
    one = pt.Demonstration((*Glyphs().tasks(1, "x")[0].prompt, pt.assistant(careful(PROBLEM))))
    draw = random.Random(0)
    for _ in range(50):
        said = experiments.said(experiments.spoilt(one, draw))
        assert works(said)
        assert answer(said) != "4"
        assert len(said.split()) == len(careful(PROBLEM).split())
    assert experiments.read(careful(PROBLEM)) == PROBLEM


@pytest.mark.slow
def test_a_tiny_model_learns_to_read_pictures():
    """Captions of drawn numbers, from scratch: far above the 1 in 216 of guessing."""
    world = Glyphs(0, captions=1.0)
    learnt = taught(world, 0, Size(hidden=64, layers=2, steps=150, rows=32))
    draw = random.Random(5)
    problems = [world.drawn(draw) for _ in range(60)]
    tasks = [pt.Task(str(i), (pt.user(world.content(one, "see ?", draw)),), one) for i, one in enumerate(problems)]
    digits = [
        sum(a == str(b) for a, b in zip(one.text.split()[1:], one.task.truth.numbers, strict=False)) / 3
        for [one] in pt.rollout(pt.single_turn, tasks, {"policy": learnt}, 1, 0)
    ]
    assert sum(digits) / len(digits) > 0.6


def test_arms_run_and_measure(monkeypatch, tmp_path):
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path))
    monkeypatch.setattr(tiny, "warm_start", lambda *_: None)
    for name in ("SFT + RL", "SFT, wrong answers"):
        found = system.ARMS[name](0, True)
        assert {"mean@1", "greedy", "pass@8", "chains", "reflection", "reflection gap"} <= set(found)
