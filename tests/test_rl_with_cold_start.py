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
from posttrain.chat import readable_content
from posttrain.cli import main
from posttrain.cli.options import ModelOptions
from posttrain.core import Failure
from posttrain.data import read, read_demonstrations
from posttrain.lab.trial import QUICK
from posttrain.lab.world import glyphs
from posttrain.lab.world.glyphs import (
    Glyphs,
    Problem,
    answer,
    careful_chain,
    drawing,
    second_look,
    shows_work,
    skipping_chain,
)
from posttrain.lab.world.words import Size, train_base
from posttrain.reward import group_scores
from posttrain.run.lines import Lines
from posttrain.systems import rl_with_cold_start as system
from posttrain.systems.rl_with_cold_start import lab
from posttrain.systems.rl_with_cold_start.chains import collect_chains, record
from posttrain.systems.rl_with_cold_start.reflection import gap, patterns, reflects
from posttrain.systems.rl_with_cold_start.stages import check_cold_start, freeze_tower
from posttrain.systems.rl_with_cold_start.styles import AGAIN, CRITICISE, DESCRIBE, REVISE, STYLES, right_chains

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
    found = right_chains(Canned(lambda ask: next(says)), [seen()], grade.GRADES["math"], candidates=4)
    assert found["t"].messages[-1]["content"] == "so \\boxed{4}"
    assert [message["role"] for message in found["t"].messages] == ["system", "user", "assistant"]
    assert not right_chains(Canned("\\boxed{5}"), [seen()], grade.GRADES["math"])

    class Cut:
        def sample(self, asks):
            return [pt.Reply("\\boxed{4}", torch.zeros(0), None, "length") for _ in asks]

    assert not right_chains(Cut(), [seen()], grade.GRADES["math"])


def test_a_reflection_needs_a_wrong_attempt_first():
    def corrected(ask):
        return "\\boxed{4}" if len(ask.messages) > 2 else "\\boxed{3}"

    found = right_chains(Canned(corrected), [seen()], grade.GRADES["math"], "reflection")
    assert found["t"].messages[-1]["content"] == "\\boxed{3}\n\nWait, let me re-evaluate.\n\n\\boxed{4}"
    assert not right_chains(Canned("\\boxed{4}"), [seen()], grade.GRADES["math"], "reflection")


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
        assert readable_content(one.messages[-1]["content"]).endswith(words)
        try:
            asks = episode.send([pt.Reply(str(count), torch.zeros(0), None)])
        except StopIteration as end:
            made = end.value
    assert made == chain


def test_chains_survive_their_file(tmp_path):
    path = png(tmp_path / "a.png", 8, 16)
    prompts = [(pt.system("Think."), pt.user([image(str(path)), text("How many?")])), seen().prompt]
    prompts.append((pt.system("Think."), pt.system("In millimetres."), pt.user("How many?")))  # the data has its own
    chains = [pt.Demonstration((*prompt, pt.assistant("4"))) for prompt in prompts]
    lines = [record(f"k{i}", one, tmp_path / f"picture-{i}", "Think.") for i, one in enumerate(chains)]
    Lines(tmp_path / "chains.jsonl").replace(lines)
    *back, words = read_demonstrations(tmp_path / "chains.jsonl", image="images", system=system.SYSTEM)
    assert [one.messages[0]["content"] for one in back] == [system.SYSTEM] * 2, "one system message, the stage's own"
    assert [readable_content(one.messages[1]["content"]) for one in back] == ["<image>How many?"] * 2
    assert [message["content"] for message in words.messages] == [system.SYSTEM, "In millimetres.", "How many?", "4"]
    shown = [policy().chat.read_parts(one.messages)[1]["content"][0]["image"] for one in back]
    assert (shown[0].pixels == noise(8, 16)).all()
    assert (shown[1].pixels == noise(8, 8)).all()


# ---- full scale: the traps

RUN = ["run", "rl-with-cold-start", "--stage"]


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
    cold, chains, rl = tmp_path / "cold", tmp_path / "chains", [*RUN, "rl", *data, *size]
    main([*RUN, "distil", *data, "--teacher", "it", "--quiet", "--out", str(chains)])
    lines = (chains / "chains.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["2"]  # the one whose answer is 1
    learnt = ["--data", str(chains / "chains.jsonl"), "--image", "images", "--min-pixels", "64", *size]
    main([*RUN, "sft", *learnt, "--model", folder, "--out", str(cold)])
    check_cold_start(str(cold / "model"))
    with pytest.raises(SystemExit):  # the released script starts from the base model, which is RL alone
        main([*rl, "--model", folder, "--out", str(tmp_path / "rl")])
    assert "there was no cold start; give one (RUN/model), or --no-cold-start" in capsys.readouterr().err
    main([*rl, "--model", str(cold / "model"), "--out", str(tmp_path / "rl")])
    main([*rl, "--no-cold-start", "--model", folder, "--out", str(tmp_path / "alone")])
    asked = next(iter(pt.read_rollouts(tmp_path / "rl")))["turns"][0]["messages"]
    assert asked[0] == {"role": "system", "content": system.SYSTEM}, "all stages ask alike"


def test_no_right_chain_is_said(album, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ModelOptions, "player", lambda *_: Canned("I do not know"))
    data = ["--data", str(album), "--prompt", "problem", "--image", "images", "--max-new", "6"]
    with pytest.raises(SystemExit):
        main([*RUN, "distil", *data, "--teacher", "it", "--quiet", "--out", str(tmp_path / "c")])
    assert "not one chain of the teacher was right" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*RUN, "distil", *data, "--teacher", "it", "--sampler", "vllm", "--out", str(tmp_path / "d")])
    assert "--sampler vllm samples for the model, and --teacher is asked in its place" in capsys.readouterr().err


class Counted(Canned):
    """A teacher that says how often it was asked; after `most` questions it is switched off."""

    asked, most = 0, 1000

    def sample(self, asks):
        Counted.asked += len(asks)
        if Counted.asked > Counted.most:
            raise KeyboardInterrupt
        return super().sample(asks)


@pytest.fixture
def distil(album, tmp_path, monkeypatch):
    """The distil stage from the command line, with a teacher that counts; more options may follow."""
    monkeypatch.setattr(ModelOptions, "player", lambda *_: Counted("it is \\boxed{1}"))
    monkeypatch.setattr(Counted, "asked", 0)
    data = ["--data", str(album), "--prompt", "problem", "--image", "images", "--max-new", "6", "--quiet"]

    def run(*more: str) -> None:
        main([*RUN, "distil", *data, "--teacher", "http://one/v1#large", "--out", str(tmp_path / "run"), *more])

    return run


def test_finished_chains_are_seen_before_the_teacher_is_asked(distil, tmp_path, capsys):
    distil()
    chains = (tmp_path / "run" / "chains.jsonl").read_bytes()
    assert Counted.asked == 12
    for more in ([], ["--style", "caption"]):
        with pytest.raises(SystemExit):
            distil(*more)
        assert "already holds chains.json: continue with --resume" in " ".join(capsys.readouterr().err.split())
    assert Counted.asked == 12
    assert (tmp_path / "run" / "chains.jsonl").read_bytes() == chains
    distil("--overwrite")
    assert Counted.asked == 24


def test_chains_are_resumed_with_the_same_settings_only(distil, tmp_path, capsys):
    folder = tmp_path / "run"
    distil()
    answered = (folder / "answers.jsonl").read_text().splitlines(keepends=True)
    (folder / "chains.jsonl").unlink()  # as a kill leaves it: one problem answered, the next line cut short
    (folder / "answers.jsonl").write_text(answered[0] + answered[1][:10])
    for more in (["--style", "critic"], ["--limit", "2"], ["--teacher", "http://one/v1#small"], ["--seed", "1"]):
        with pytest.raises(SystemExit):
            distil("--resume", *more)
        assert "was started with" in capsys.readouterr().err
    asked = Counted.asked
    distil("--resume", "--teacher", "http://elsewhere/v1#large")
    assert Counted.asked == asked + 8, "two problems of three"
    assert sorted((folder / "answers.jsonl").read_text().splitlines(keepends=True)) == sorted(answered)
    assert [json.loads(line)["id"] for line in (folder / "chains.jsonl").read_text().splitlines()] == ["2"]


def test_every_answer_is_written_when_it_comes(tmp_path):
    """Groups of a teacher that streams end one after another: what was paid for is not lost."""

    class Dies:
        def sample(self, asks):
            raise AssertionError("it streams")

        def stream(self, asks):
            for i in range(5):
                yield i, pt.Reply("\\boxed{4}", torch.zeros(0), None)
            raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        collect_chains(Dies(), [seen("a"), seen("b")], grade.GRADES["math"], "distilled", 4, 0, tmp_path, quiet=True)
    assert [json.loads(line)["id"] for line in (tmp_path / "answers.jsonl").read_text().splitlines()] == ["a"]
    count = collect_chains(
        Canned("\\boxed{4}"), [seen("a"), seen("b")], grade.GRADES["math"], "distilled", 4, 0, tmp_path, quiet=True
    )
    assert count == 2
    lines = (tmp_path / "chains.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["a", "b"]


def test_a_teacher_that_refuses_is_not_one_that_is_wrong(tmp_path, capsys):
    refusal = Failure("http://teacher refused (status 400): no pictures here")
    tasks = [seen(str(i)) for i in range(20)]
    with pytest.raises(
        ValueError, match=r"20 of 20 problems could not be answered; the first because: .*no pictures here"
    ):
        collect_chains(Canned(refusal), tasks, grade.GRADES["math"], "distilled", 2, 0, tmp_path, quiet=True)
    assert not (tmp_path / "chains.jsonl").exists()

    def moody(ask):
        return refusal if ask.messages == tasks[3].prompt else "\\boxed{4}"

    tasks[3] = pt.Task("3", (pt.user("other"),), "4")
    count = collect_chains(Canned(moody), tasks, grade.GRADES["math"], "distilled", 2, 0, tmp_path, quiet=True)
    assert count == 19
    assert "warning: 1 of 20 problems could not be answered" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stage", "options"),
    [
        ("distil", ["--held-out", "x.jsonl"]),
        ("sft", ["--teacher", "http://x"]),
        ("rl", ["--style", "caption"]),
        ("rl", ["--tower"]),
        ("sft", ["--no-cold-start"]),
    ],
)
def test_options_of_other_stages_are_refused(stage, options, capsys, tmp_path):
    with pytest.raises(SystemExit):
        main([*RUN, stage, "--data", "x.jsonl", "--out", str(tmp_path / "run"), *options])
    shown = capsys.readouterr()
    assert f"unrecognized options: {options[0]}" in (shown.out + shown.err).lower()


def test_a_limit_of_pixels_moves_the_system_s_other_one():
    assert ModelOptions().with_pixel_limits(262_144, 1_204_224) == ModelOptions(
        min_pixels=262_144, max_pixels=1_204_224
    )
    assert ModelOptions(max_pixels=50_000).with_pixel_limits(262_144, 1_204_224).min_pixels == 50_000
    assert ModelOptions(min_pixels=2_000_000).with_pixel_limits(262_144, 1_204_224).max_pixels == 2_000_000
    assert ModelOptions(max_pixels=0).with_pixel_limits(None, 1_204_224) == ModelOptions(max_pixels=0), "to be refused"


def test_the_aligner_is_trained_and_the_tower_is_not():
    for family in ("qwen2_5_vl", "qwen3_vl"):
        one = policy(family)
        freeze_tower(one)
        names = {name for name, p in one.model.named_parameters() if p.requires_grad}
        assert any("merger" in name for name in names)
        assert not any("visual" in name and "merger" not in name for name in names)
        assert any("language_model" in name for name in names)
        assert len(list(policy(family).parameters())) > len(names)


def test_the_reward_has_no_part_for_a_format(album):
    made = system.recipe(grade.GRADES["math"], reference=policy())
    assert (made.samples, made.reference is not None) == (10, True)
    [task, *_] = read(album, "problem", image="images")
    reply = pt.Reply("<think> \\boxed{9} </think>", torch.zeros(1), None)
    [score] = group_scores(made.reward, [pt.Rollout(task, [pt.Turn(pt.Ask(task.prompt), reply)])])
    assert score.value == 0.0


# ---- the world


def test_replies_by_hand():
    assert PROBLEM.results == (4, 4)
    assert careful_chain(PROBLEM) == "see 3 1 4 so 3 + 1 = 4 , 4 * 4 = 4 is 4"
    assert skipping_chain(PROBLEM) == "see 3 1 4 is 4"
    assert shows_work(careful_chain(PROBLEM))
    assert not shows_work(skipping_chain(PROBLEM))
    assert [answer(said) for said in ("is 4", "see 3", "is", "4 is 4 , 5", "")] == ["4", None, None, None, None]
    assert Problem((1, 2, 0), ("-", "+")).results == (5, 5), "modulo six"


def test_second_looks_are_right_as_often_as_is_said():
    draw = random.Random(0)
    helped = [second_look(PROBLEM, draw, 1.0) for _ in range(50)]
    assert {answer(said) for said in helped} == {"4"}
    blind = [second_look(PROBLEM, draw, 0.5).split()[15] for _ in range(400)]
    assert 0.4 < blind.count("4") / 400 < 0.6


@given(some.lists(some.integers(0, 5), min_size=1, max_size=4))
def test_drawings_are_cells_of_one_token(numbers):
    drawn = drawing(numbers, random.Random(1))
    assert drawn.dtype == np.uint8
    shown = Glyphs().preprocessing.picture(drawn)
    assert (shown.rows, shown.columns) == (1, len(numbers))
    assert (drawing(numbers, random.Random(1)) == drawn).all()
    assert not (drawing(numbers, random.Random(2)) == drawn).all()


def test_held_out_problems_are_not_shown():
    world = Glyphs(1, questions=0.2, captions=0.2, as_text=0.2, careful=0.5)
    held = {str(one) for one in world.problems[:400]}
    draw = random.Random(0)
    assert not held & {str(world.draw_problem(draw)) for _ in range(3000)}
    one = world.draw_problem(draw)
    other = world.draw_problem(draw, like=one)
    assert other.numbers == one.numbers
    assert other.signs != one.signs
    words = set(world.vocabulary)
    for _ in range(200):
        messages = world.demonstration(draw).messages
        said = " ".join(readable_content(message["content"]) for message in messages)
        assert set(said.replace("<image>", "").split()) <= words


def test_what_is_chosen_by_is_not_tested_on():
    """No problem of validation, numbers and signs, is among the tests, nor is one of either trained on."""
    shown: list[Problem] = []

    class Watched(Glyphs):
        def task(self, problem, key, draw):
            shown.append(problem)
            return super().task(problem, key, draw)

    def problems(tasks) -> set[Problem]:
        assert len(tasks) == len(shown)
        found = set(shown)
        shown.clear()
        return found

    world = Watched(0)
    validation, tests = problems(world.validation(100)), problems(world.tests(300))
    trained = problems(world.tasks(600, "rl"))
    assert len(validation) > 50
    assert not validation & tests
    assert not (validation | tests) & trained


def test_spoilt_chains_keep_their_structure():
    one = pt.Demonstration((*Glyphs().tasks(1, "x")[0].prompt, pt.assistant(careful_chain(PROBLEM))))
    draw = random.Random(0)
    for _ in range(50):
        said = glyphs.chain_text(glyphs.spoil(one, draw))
        assert shows_work(said)
        assert answer(said) != "4"
        assert len(said.split()) == len(careful_chain(PROBLEM).split())
    assert glyphs.problem_of(careful_chain(PROBLEM)) == PROBLEM


@pytest.mark.slow
def test_a_tiny_model_learns_to_read_pictures():
    """Captions of drawn numbers, from scratch: far above the 1 in 216 of guessing."""
    world = Glyphs(0, captions=1.0)
    learnt = train_base(world, 0, Size(hidden=64, layers=2, steps=150, rows=32))
    draw = random.Random(5)
    problems = [world.draw_problem(draw) for _ in range(60)]
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
        found = lab.ARMS[name](0, QUICK)
        assert {"mean@1", "greedy", "pass@8", "chains", "reflection", "reflection gap"} <= set(found)
