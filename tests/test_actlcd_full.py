"""ActLCD at the scale of a checkpoint: collecting, what is refused before, resuming, decoding three ways."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch
from conftest import task

import posttrain as pt
from posttrain.cli import main
from posttrain.core import Invalid, Score
from posttrain.decode.decode import Decoding
from posttrain.lab.world.words import Size
from posttrain.reward import each
from posttrain.systems.actlcd import collecting, lab
from posttrain.systems.actlcd.bcq import Bcq
from posttrain.systems.actlcd.checking import Checker
from posttrain.systems.actlcd.collecting import collect, graded_sequences, read_along, tokens_to_read
from posttrain.systems.actlcd.comparison import three_ways
from posttrain.systems.actlcd.features import width
from posttrain.systems.actlcd.gate import Constant, GatePolicy, Net
from posttrain.systems.actlcd.labels import (
    NEITHER,
    token_rewards,
)
from posttrain.systems.actlcd.stages import load_gate

HOW = Decoding((0, 1))


def gate_policy(make, gate=None, **options):
    torch.manual_seed(0)
    return GatePolicy(make(max_new=5), gate or Net(width("values", 2), (16,)), HOW, **options)


def test_reading_along_compares_with_the_reference(make):
    policy = gate_policy(make, Constant(0.5))
    tasks = [task("a", truth="four 4"), task("b", truth="the answer is long, longer than its limit")]
    data = read_along(policy, tasks, seed=0)
    assert len(data) == tokens_to_read(policy, tasks)
    chat = policy.speaker.chat
    replies = [chat.demonstration_tokens(one.prompt, one.truth).reply[:5] for one in tasks]
    assert data.done.nonzero()[:, 0].tolist() == [len(replies[0]) - 1, len(replies[0]) + len(replies[1]) - 1]
    assert len(data) == sum(map(len, replies))
    assert 0 < data.action.sum() < len(data), "both actions are in the data"
    paid = data.reward[data.done]
    assert data.reward[~data.done].eq(0).all()
    assert paid[0].item() == token_rewards(data.action.bool(), data.label)[: len(replies[0])].sum().item()


def test_a_grader_may_pay_sequences(make):
    policy = gate_policy(make, Constant(0.5))

    def grade(one):
        return Invalid("no") if one.task.key == "bad" else Score(0.25)

    found = graded_sequences(policy, [task("a"), task("bad")], Checker(each(grade)), 2, 0)
    assert found.reward[found.done].tolist() == [0.25, 0.25]
    assert found.label.eq(NEITHER).all()


def test_three_ways_at_both_penalties(make):
    policy = gate_policy(make, temperature=0.0)
    found = dict(three_ways(policy, [task("a"), task("b")], Checker(each(lambda one: 1.0))))
    assert list(found) == [f"{n}, penalty {p}" for n in ("greedy", "DoLa", "ActLCD") for p in ("1", "1.2")]
    assert found["DoLa, penalty 1.2"]["contrast rate"] == 1.0
    assert found["greedy, penalty 1.2"]["contrast rate"] == 0.0


@pytest.fixture
def questions(tmp_path) -> str:
    path = tmp_path / "questions.jsonl"
    lines = [{"prompt": f"What is {i}+{i}?", "answer": f"The answer is {2 * i}", "count": i} for i in range(4)]
    path.write_text("\n".join(map(json.dumps, lines)))
    return str(path)


@pytest.fixture
def checkpoint(make, tmp_path) -> str:
    make().save(tmp_path / "model")
    return str(tmp_path / "model")


def test_train_then_decode(checkpoint, questions, tmp_path, capsys):
    common = ["run", "actlcd", "--scale", "full", "--model", checkpoint, "--data", questions, "--max-new", "6"]
    out = str(tmp_path / "run")
    options = ["--layers", "0,1", "--reward", "grader", "--samples", "2", "--grade", "number"]
    main([*common, *options, "--steps", "5", "--tasks", "8", "--out", out, "--quiet"])
    assert json.loads((tmp_path / "run" / "model" / "config.json").read_text())["decoding"]["layers"] == "0,1"
    assert "ActLCD" not in capsys.readouterr().out, "nothing was held out"
    common = ["run", "actlcd", "--stage", "decode", *common[4:]]
    decode = [*common, "--gate", f"{out}/model", "--grade", "exact", "--out", str(tmp_path / "d")]
    main(decode)
    shown = capsys.readouterr()
    assert "ActLCD, penalty 1.2" in shown.out
    assert "not one reply was right" in shown.err
    assert set(json.loads((tmp_path / "d" / "decoding.json").read_text())) == {
        f"{n}, penalty {p}" for n in ("greedy", "DoLa", "ActLCD") for p in ("1", "1.2")
    }
    with pytest.raises(SystemExit):
        main(decode)
    assert "already holds a run" in capsys.readouterr().err
    main([*decode, "--resume"])
    with pytest.raises(SystemExit):
        main([*decode[:-1], out, "--overwrite"])
    assert "it holds the --gate" in capsys.readouterr().err
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--stage", "decode", "--gate", "."], "holds no gate"),
        (["--stage", "decode", "--gate", "{checkpoint}"], "is not of a gate"),
        (["--held-out", "{questions}", "--grade", "judge"], "--grade judge needs --judge"),
        (["--held-out", "{questions}", "--judge", "http://x"], "--judge http://x is an option of --grade judge"),
        (["--held-out", "{questions}", "--registry", "http://x/{{name}}"], "is an option of --grade packages"),
        (["--held-out", "{questions}", "--grade", "packages", "--registry", "http://here"], "must hold {name}"),
        (["--held-out", "{questions}", "--grade", "yes-no"], "task '1': --grade yes-no needs yes, no"),
        (["--held-out", "{questions}", "--grade", "choice"], "task '1': --grade choice needs one letter"),
        (["--held-out", "{questions}", "--grade", "nubmer"], "did you mean number?"),
        (["--held-out", "nosuch.jsonl"], "--held-out nosuch.jsonl: there is no such file"),
        (["--grade", "number"], "nothing is graded without --held-out or --reward grader"),
        (["--stop", "."], "--stop .: nothing is graded"),
        (["--reward", "grader", "--grade", "yes-no"], "task '1': --grade yes-no needs yes, no"),
        (["--samples", "8"], "--samples 8 is an option of --reward grader"),
        (["--reward", "grader", "--samples", "0"], "--samples 0: it must be at least 1"),
        (["--penalty", "0"], "--penalty 0.0: it must be above 0"),
        (["--layers", "7"], "layers 0"),
        (["--answer", "None"], "task '1': its answer is None"),
        (["--answer", "count"], "task '1': its answer is 0"),
        (["--tasks", "0"], "--tasks 0: it must be at least 1"),
        (["--max-new", "250"], "task '1': its prompt has"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_collected(
    wrong, message, checkpoint, questions, tmp_path, capsys, monkeypatch
):
    for name in ("read_along", "graded_sequences"):
        monkeypatch.setattr(f"posttrain.systems.actlcd.stages.{name}", lambda *_, **__: pytest.fail("it collects"))
    options = [one.format(checkpoint=checkpoint, questions=questions) for one in wrong]
    common = ["run", "actlcd", "--scale", "full", "--model", checkpoint, "--data", questions, "--max-new", "6"]
    with pytest.raises(SystemExit):
        main([*common, *options, "--out", str(tmp_path / "none"), "--quiet"])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("stage", "wrong"),
    [
        ("decode", ["--layers", "high"]),
        ("decode", ["--penalty", "1.5"]),
        ("decode", ["--held-out", "x.jsonl"]),
        ("train", ["--gate", "."]),
        *((stage, option) for stage in ("train", "decode") for option in (["--temperature", "7"], ["--lora", "3"])),
        *((stage, option) for stage in ("train", "decode") for option in (["--checkpointing"], ["--image", "picture"])),
    ],
)
def test_a_stage_has_no_option_without_effect(stage, wrong, capsys):
    gate = ["--gate", "."] if stage == "decode" else []
    with pytest.raises(SystemExit):
        main(["run", "actlcd", "--stage", stage, "--data", "x.jsonl", *gate, *wrong])
    assert f"Unrecognized options: {wrong[0]}" in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_decode_needs_a_gate(capsys):
    with pytest.raises(SystemExit):
        main(["run", "actlcd", "--stage", "decode", "--data", "x.jsonl"])
    assert "--gate" in capsys.readouterr().err


def test_several_ranks_and_engines_are_refused_with_the_reason(capsys, monkeypatch):
    for stage in ("laptop", "train", "decode"):
        with pytest.raises(SystemExit):
            main(["run", "actlcd", "--stage", stage, "--sampler", "vllm"])
        assert "too small to shard; leave it out" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit):
        main(["run", "actlcd"])
    assert "start it without torchrun" in capsys.readouterr().err


def test_a_dry_run_collects_and_writes_nothing(checkpoint, questions, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(lab, "TOLD", Size(hidden=32, layers=3, steps=5, rows=8))
    monkeypatch.setattr("posttrain.systems.actlcd.stages.read_along", lambda *_, **__: pytest.fail("it collects"))
    monkeypatch.setattr(lab, "collect", lambda *_, **__: pytest.fail("it collects"))
    out = ["--out", str(tmp_path / "run"), "--dry-run"]
    full = ["--scale", "full", "--model", checkpoint, "--data", questions, "--max-new", "6", "--held-out", questions]
    for options, items in ((full, "24 items"), ([], "6,144 items"), (["--learner", "grpo"], "768 tasks")):
        main(["run", "actlcd", *options, *out])
        assert f" {items}, " in capsys.readouterr().out
    assert sorted(one.name for one in tmp_path.iterdir()) == ["cache", "model", "questions.jsonl"]


def test_held_out_sets_are_graded_while_it_learns_and_decoded_by_name(checkpoint, questions, tmp_path):
    out = tmp_path / "run"
    sets = ["--held-out", f"first={questions}", f"second={questions}", "--grade", "exact", "--eval-every", "2"]
    common = ["run", "actlcd", "--scale", "full", "--model", checkpoint, "--data", questions, "--max-new", "6"]
    main([*common, *sets, "--steps", "4", "--tasks", "8", "--out", str(out), "--quiet"])
    graded = [[f"held_out/{name}/reward" in line for name in ("first", "second")] for line in pt.read_metrics(out)]
    assert graded == [[True, True], [False, False], [True, True], [True, True]]
    rows = json.loads((out / "decoding.json").read_text())
    assert list(rows) == [
        f"{name}/{way}, penalty {p}"
        for name in ("first", "second")
        for way in ("greedy", "DoLa", "ActLCD")
        for p in ("1", "1.2")
    ]


def test_an_out_that_holds_a_run_is_refused_before_anything_is_collected(
    checkpoint, questions, tmp_path, capsys, monkeypatch
):
    out = tmp_path / "run"
    out.mkdir()
    (out / "run.json").write_text('{"started": "before"}')
    common = ["run", "actlcd", "--out", str(out), "--quiet", "--steps", "1"]
    monkeypatch.setattr("posttrain.systems.actlcd.stages.read_along", lambda *_, **__: pytest.fail("it collects"))
    monkeypatch.setattr(lab, "collect", lambda *_, **__: pytest.fail("it collects"))
    for scale in ([], ["--scale", "full", "--model", checkpoint, "--data", questions, "--max-new", "6"]):
        with pytest.raises(SystemExit):
            main([*common, *scale])
        assert "already holds a run, started before" in capsys.readouterr().err


def test_pieces_are_those_of_one_go_and_are_made_once(make, tmp_path, monkeypatch):
    policy = gate_policy(make, Constant(0.5))
    tasks = [task(str(i), truth=f"the answer is {i}") for i in range(7)]
    whole, made = read_along(policy, tasks, seed=3), []

    def piece(some, start):
        made.append(start)
        return read_along(policy, some, 3, start)

    def stops(some, start):
        if start == 4:
            raise KeyboardInterrupt
        return piece(some, start)

    monkeypatch.setattr(collecting, "AT_ONCE", 2)
    folder = tmp_path / "c"
    folder.mkdir()
    with pytest.raises(KeyboardInterrupt) as stop:
        collect(folder, tasks, {"read": stops})
    assert "`resume=True`" in stop.value.__notes__[0]
    found = collect(folder, tasks, {"read": piece})["read"]
    assert made == [0, 2, 4, 6]
    # rounded otherwise in another batch
    torch.testing.assert_close(found.features, whole.features, atol=1e-4, rtol=1e-4)
    for name in ("action", "label", "reward", "done"):
        assert getattr(found, name).equal(getattr(whole, name)), name
    (folder / "read-000002.safetensors").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"read-000002.safetensors cannot be read"):
        collect(folder, tasks, {"read": piece})


def test_a_run_that_was_stopped_goes_on_where_it_was(checkpoint, questions, tmp_path, capsys, monkeypatch):
    """Stopped while it collects, then while it decodes: nothing is done again, and the gate is that of one go."""
    from posttrain.systems.actlcd import comparison, stages

    common = ["run", "actlcd", "--scale", "full", "--model", checkpoint, "--data", questions, "--max-new", "6"]
    common += ["--reward", "grader", "--grade", "number", "--samples", "2", "--held-out", questions]
    common += ["--steps", "6", "--tasks", "8", "--quiet"]
    monkeypatch.setattr(collecting, "AT_ONCE", 2)
    main([*common, "--out", str(tmp_path / "whole")])
    places = {"graded_sequences": stages, "rate": comparison}  # `rate` is asked once for each row of the table
    plain, asked = {name: getattr(place, name) for name, place in places.items()}, Counter()

    def stopping(name, after):
        def stops(*args, **options):
            asked[name] += 1
            if asked[name] > after:
                raise KeyboardInterrupt
            return plain[name](*args, **options)

        asked[name] = 0
        monkeypatch.setattr(places[name], name, stops)

    out = tmp_path / "run"
    stopping("graded_sequences", 1)
    with pytest.raises(SystemExit) as stop:
        main([*common, "--out", str(out)])
    assert stop.value.code == 130
    assert "continue with the same command and --resume" in capsys.readouterr().err
    assert sorted(file.name for file in (tmp_path / "run-collected").iterdir()) == [
        *["collected.json", "graded-000000.safetensors", "read-000000.safetensors", "read-000002.safetensors"]
    ]
    monkeypatch.setattr(stages, "read_along", lambda *_, **__: pytest.fail("it was read already"))
    stopping("graded_sequences", 9)
    stopping("rate", 3)
    with pytest.raises(SystemExit):
        main([*common, "--out", str(out), "--resume"])
    known = json.loads((out / "decoding.json").read_text())
    assert "the rows so far are in" in capsys.readouterr().err
    assert list(known) == ["greedy, penalty 1", "greedy, penalty 1.2", "DoLa, penalty 1"]
    stopping("rate", 3)
    main([*common, "--out", str(out), "--resume"])
    assert asked == {"graded_sequences": 1, "rate": 3}
    for file in ("decoding.json", "model/model.safetensors"):
        assert (out / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file
    with pytest.raises(SystemExit):
        main([*common, "--out", str(out), "--resume", "--penalty", "1.1"])
    assert "was started with penalty = 1.2, not 1.1" in capsys.readouterr().err


def test_pictures_are_refused(make):
    policy = gate_policy(make)
    shown = pt.Task("seen", (pt.user([{"type": "image", "image": "x.png"}, {"type": "text", "text": "what"}]),), "a")
    with pytest.raises(ValueError, match="task 'seen': its prompt shows a picture"):
        policy.check([task("a"), shown])


def test_a_gate_of_another_model_is_refused(make, words, tmp_path):
    gate = Bcq(width("values", 2), (8,), cloned=True)
    policy = GatePolicy(make(), gate, HOW, temperature=0.0)
    policy.save(tmp_path)
    again = load_gate(str(tmp_path), make())
    x = torch.randn(20, policy.inputs)
    assert gate.act(x).equal(again.gate.act(x))
    assert again.gate.cloned
    about = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(about | {"inputs": 99}))
    with pytest.raises(ValueError, match="reads 99 features, and this model has 49"):
        load_gate(str(tmp_path), make())
