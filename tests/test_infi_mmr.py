"""Infi-MMR: answers by their type, the reward, problems from files, captions, the phases on a model that sees."""

from __future__ import annotations

import json
import random

import pytest
import torch
import vision_checkpoints
from chat_server import chat_server
from conftest import broken_rows, refusal, said
from hypothesis import given
from hypothesis import strategies as some

import posttrain as pt
from posttrain.cli import main
from posttrain.lab.world import views
from posttrain.lab.world.glyphs import Problem as Arithmetic
from posttrain.lab.world.views import Views
from posttrain.records import Place
from posttrain.systems.infi_mmr import PARTS, lab, recipe, split_steps
from posttrain.systems.infi_mmr.answers import Answer, answer_of, is_right
from posttrain.systems.infi_mmr.captions import description
from posttrain.systems.infi_mmr.data import ASK, captioned_question, problem, problems, task
from posttrain.systems.infi_mmr.overlap import runs, without_overlap
from posttrain.systems.infi_mmr.reward import Weights, boxed_answer, evaluation, is_in_form, reward
from posttrain.systems.infi_mmr.stages import PhaseOptions, accuracies


@pytest.fixture
def write(tmp_path):
    """A file of rows, beside two pictures."""
    for i in range(2):
        vision_checkpoints.png(tmp_path / f"{i}.png", 16, 16, seed=i)

    def file(*rows, name="rows.jsonl"):
        (tmp_path / name).write_text("\n".join(map(json.dumps, rows)))
        return str(tmp_path / name)

    return file


TEXT = {"problem": "What is 3 + 4?", "answer": "7"}
PICTURED = {"qid": "v1", "question": "<image>How wide is it?", "image": ["0.png"], "answer": "\\boxed{16}"}
CAPTIONED = {**PICTURED, "caption": "A square of 16 pixels."}


# ---- answers


@pytest.mark.parametrize(
    ("value", "kind", "found"),
    [
        (7, None, Answer("math", "7")),
        ("\\boxed{\\frac{1}{2}}", None, Answer("math", "\\frac{1}{2}")),
        ("work #### 12", None, Answer("math", "12")),
        ("x", None, Answer("math", "x")),
        ("3 cm", None, Answer("math", "3 cm")),
        ("B", None, Answer("choice", "B")),
        ("(C)", None, Answer("choice", "C")),
        ("\\boxed{\\text{D}}", None, Answer("choice", "D")),
        ("B. the second", "choice", Answer("choice", "B")),
        ("Yes", None, Answer("text", "Yes")),
        ("None", None, Answer("text", "None")),
        ("a red square", None, Answer("math", "a red square")),
        ("red square", None, Answer("text", "red square")),
        ("A", "text", Answer("text", "A")),
        ("C", "expression", Answer("math", "C")),
    ],
)
def test_the_type_of_an_answer(value, kind, found):
    assert answer_of(value, kind) == found


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        ("7", "numeric", "type is 'numeric', none of math, number, expression, choice, text, string"),
        (None, None, "the answer is None, neither text nor a number"),
        (["B"], None, "neither text nor a number"),
        (True, None, "neither text nor a number"),
        ("\\boxed{ }", None, "is empty"),
        ("seven", "choice", "names no letter"),
    ],
)
def test_what_is_no_answer(value, kind, message):
    with pytest.raises(ValueError, match=message):
        answer_of(value, kind)


@pytest.mark.parametrize(
    ("said", "truth", "right"),
    [
        ("0.5", "1/2", True),
        ("\\frac{2}{4}", "0.5", True),
        ("x = 3", "3", True),
        ("4", "3", False),
        ("B", "B", True),
        ("\\text{(b)}", "B", True),
        ("B. Beta", "B", True),
        ("Beta", "B", False),  # a letter inside a word is no choice
        ("Because", "B", False),
        ("A or B", "B", False),
        ("yes.", "Yes", True),
        ("\\text{Yes}", "Yes", True),
        ("yes or no", "Yes", False),
        ("None", "None", True),
        (None, "None", False),  # no box is no answer
        ("", "None", False),
    ],
)
def test_answers_are_compared_by_their_type(said, truth, right):
    assert is_right(said, answer_of(truth)) is right


@given(some.text(max_size=30), some.sampled_from(["B", "Yes", "None"]))
def test_any_box_is_right_or_wrong(said, truth):
    assert is_right(said, answer_of(truth)) in (True, False)


# ---- the reward


WHOLE = "<think>because</think> It is \\boxed{7}."


@pytest.mark.parametrize(
    ("text", "form", "box"),
    [
        (WHOLE, True, "7"),
        (" \n<think></think>\\boxed{\\text{a {b}}}", True, "\\text{a {b}}"),
        ("<think>\\boxed{1}</think>\\boxed{2}", True, "2"),
        ("so <think>a</think>\\boxed{7}", False, "7"),
        ("<think>a</think>\\boxed{7} or \\boxed{8}", False, "8"),
        ("<think>a</think>7", False, None),
        ("<think>a \\boxed{7}", False, None),
        ("<think>a</think><think>b</think>\\boxed{7}", False, "7"),
        ("<think>a</think>\\boxed{7", False, None),
        ("\\boxed{7}", False, "7"),
        ("", False, None),
    ],
)
def test_the_form_and_the_box(text, form, box):
    assert is_in_form(said(text)) is form
    assert boxed_answer(text) == box


def test_the_reward_by_hand():
    truth = answer_of("7")
    texts = (WHOLE, WHOLE.replace("7", "8"), "\\boxed{7}", "7", "<think>a</think>\\boxed{None}")
    assert [score.value for score in reward()([said(text, truth) for text in texts])] == [1.0, 0.1, 0.9, 0.0, 0.1]
    assert [score.value for score in evaluation()([said(text, truth) for text in texts])] == [1, 0, 1, 0, 0]
    [score] = reward(Weights(0.5, 2.0))([said(WHOLE, truth)])
    assert (score.value, score.parts) == (2.5, {"format": 1.0, "accuracy": 1.0})
    with pytest.raises(ValueError, match="`format_weight=-1`"):
        Weights(-1)


@given(some.text(alphabet=list("<>/think boxed\\{}7"), max_size=60))
def test_any_text_has_a_reward(text):
    [score] = reward()([said(text, answer_of("B"))])
    assert score.value in (0.0, 0.1, 0.9, 1.0)


def test_the_recipe_and_its_part(make):
    made = recipe(reward(), policy := make(), samples=4)
    assert made.reference is not None
    assert made.reference is not policy
    assert (made.samples, made.admit) == (4, pt.informative)
    assert recipe(reward(), policy, kl=0).reference is None
    right = pt.grpo(pt.each(lambda rollout: float("7" in rollout.text)), samples=2)
    formed = PARTS["thinking_form"](right, True)
    assert [score.value for score in formed.reward([said(WHOLE), said("7")])] == [1.0, 0.9]
    assert formed.evaluation is right.reward


# ---- problems


def test_problems_of_the_three_views(write):
    [one] = problems(write(TEXT))
    assert task(one, "text") == pt.Task("1", (pt.user(TEXT["problem"] + ASK),), Answer("math", "7"))
    [one] = problems(write(CAPTIONED))
    [shown, asked] = task(one, "pictures").prompt[0]["content"]
    assert shown["image"].endswith("/0.png")
    assert asked["text"] == "How wide is it?" + ASK
    [shown, asked] = task(one, "captioned").prompt[0]["content"]
    assert asked["text"] == "Image description: A square of 16 pixels.\n\nHow wide is it?" + ASK
    assert task(one, "captioned").key == "v1"


def test_a_caption_stands_behind_the_marks_that_a_question_begins_with():
    assert captioned_question("<image> <image>Which?", "Two.") == "<image> <image>Image description: Two.\n\nWhich?"
    assert captioned_question("Is <image> red?", "One.") == "Image description: One.\n\nIs <image> red?"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**PICTURED, "question": "How wide?"}, "line 2: the question has 0 <image>, and the line has 1 pictures"),
        (
            {**PICTURED, "question": "<image><image>?"},
            "line 2: the question has 2 <image>, and the line has 1 pictures",
        ),
        ({"problem": "<image>?", "answer": "1"}, "line 2: the question has 1 <image>, and the line has 0 pictures"),
        ({"problem": "?", "answer": "1", "type": "numeric"}, "line 2: the answer's type is 'numeric'"),
        ({"problem": "?", "answer": None}, "line 2: the column 'answer' is empty"),
        ({"problem": "?"}, "line 2: there is no column 'answer'"),
        ({"problem": "", "answer": "1"}, "line 2: no question: there is no text in a column problem or question"),
        ({"problem": "?", "answer": "1", "id": "1"}, "line 2: the id '1' was already used in line 1"),
    ],
)
def test_bad_rows_are_named(row, message, write):
    with pytest.raises(ValueError, match=message):
        problems(write(TEXT, row))


def test_rows_with_other_marks_than_pictures_are_left_out_and_counted(write, capsys):
    lost = {**PICTURED, "qid": "v2", "question": "How wide?"}
    kept = problems(file := write(PICTURED, lost), drop=True)
    assert [one.key for one in kept] == ["v1"]
    assert "1 of 2 lines left out" in capsys.readouterr().out
    with pytest.raises(ValueError, match="leave such out: `drop_mismatched=True`"):
        problems(file)
    with pytest.raises(ValueError, match="no line of .* has as many <image> as pictures"):
        problems(write(lost), drop=True)


def test_a_problem_that_is_not_of_its_phase_is_named(write):
    [text, pictured] = problems(write(TEXT, PICTURED))
    for one, view, message in (
        (pictured, "text", "line 2: a problem of the phase text has pictures"),
        (text, "pictures", "line 1: a problem of the phase pictures has no pictures"),
        (pictured, "captioned", "line 2: there is no column 'caption'"),
    ):
        with pytest.raises(ValueError, match=message):
            task(one, view)


@given(broken_rows({**TEXT, "type": "number"}, {**CAPTIONED, "image": []}))
def test_rows_are_read_or_named(row):
    message = refusal(lambda one, where: problem(where, one), row, Place("rows.jsonl", 3))
    assert message is None or "rows.jsonl, line 3" in message


def test_problems_whose_words_are_held_out(write):
    long = "one two three four five six seven eight nine ten eleven twelve thirteen {}"
    asked = [long.format("fourteen?"), "Find x.", "Find y."]
    train = problems(write(*[{"problem": text, "answer": "1"} for text in asked], PICTURED))
    held = problems(write({"problem": "ONE " + long.format(""), "answer": "1"}, {"problem": "find X", "answer": "2"}))
    assert [one.question for one in without_overlap(train, held)] == ["Find y.", PICTURED["question"]]
    assert len(runs(long.format("fourteen"))) == 2
    same = problems(write(PICTURED, name="same.jsonl"))
    assert without_overlap(same, same) == same, "of short questions on pictures the words say nothing"


# ---- steps


def test_steps_of_the_phases():
    names = ("text", "captioned", "pictures")
    assert split_steps(8, dict.fromkeys(names)) == {"text": 3, "captioned": 3, "pictures": 2}
    assert split_steps(9, {"text": 5, "captioned": None, "pictures": None})["captioned"] == 2
    assert split_steps(3, {"text": 1, "pictures": 2}) == {"text": 1, "pictures": 2}
    for total, wanted, message in (
        (2, dict.fromkeys(names), "`steps=2`: .* leave 2 for 3 more"),
        (9, {"text": 5}, "`steps=9`: .* leave 4 for 0 more"),
        (3, {"text": 5}, "leave -2 for 0 more"),
        (3, {"text": 0, "pictures": None}, "`text_steps=0`: it must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            split_steps(total, wanted)


def test_a_phase_without_data(write):
    with pytest.raises(ValueError, match="a curriculum needs data: give `text`, `captioned` or `pictures`"):
        PhaseOptions().files()
    with pytest.raises(ValueError, match="`captioned_steps=3`: this phase has no data; give `captioned`"):
        PhaseOptions(text="x.jsonl", captioned_steps=3).files()


# ---- text on a model that sees


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_text_alone_on_a_vision_model(family, tmp_path):
    """Sampled, scored alike, and trained: everything but the vision tower moves."""
    policy = vision_checkpoints.policy(family, max_new=4)
    tasks = [pt.Task(str(i), (pt.user(f"{i} + {i} = ?"),), answer_of(i)) for i in range(4)]
    [group] = pt.rollout(pt.single_turn, tasks[:1], {"policy": policy}, 4, 0)
    rows = [row for one in group for row in pt.rows_of(policy, one, one.turns)]
    with torch.no_grad():
        assert torch.allclose(policy.density(rows).logp, torch.cat([row.logp for row in rows]), atol=1e-5)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    varied = pt.each(lambda rollout: sum(map(ord, rollout.text)) % 7 / 6)
    made = recipe(varied, policy, samples=4)
    pt.train(policy, tasks, made, pt.Run(tmp_path / "run", steps=1, tasks=4, lr=1e-2, quiet=True))
    moved = {name for name, value in policy.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert not any("visual" in name for name in moved)
    assert {name for name in before if "visual" not in name} - moved == set()


# ---- the world


def test_the_world_of_views():
    world, one = Views(0), Arithmetic((3, 1, 4), ("+", "*"))
    assert views.chain(one) == "<think> 3 1 4 so 3 + 1 = 4 , 4 * 4 = 4 </think> \\boxed{4}"
    assert views.content(one, "text", random.Random(0)) == "3 1 4 + * ="
    shown, asked = views.content(one, "captioned", random.Random(0))
    assert asked["text"] == captioned_question("+ * =", "3 1 4"), "as at full scale"
    assert shown["image"].shape == (8, 24, 3)
    known = set(world.vocabulary)
    draw = random.Random(0)
    for _ in range(50):
        shown = world.demonstration(draw)
        reply = str(shown.messages[-1]["content"])
        assert set(reply.split()) <= known
        assert len(reply.split()) < world.longest
        assert is_in_form(said(reply))
    trained, tested = (lab.tasks(world, "text", 300, "x", held) for held in (False, True))
    assert not {str(one.prompt) for one in trained} & {str(one.prompt) for one in tested}
    assert lab.tasks(world, "text", 3, "x")[0].truth.kind == "math"


def test_the_area_under_a_curve():
    assert lab.area([0.2, 0.4, 1.0]) == pytest.approx((0.3 + 0.7) / 2)
    assert lab.area([0.5]) == 0.5


# ---- stages


def test_captions_of_a_server_and_a_curriculum_of_three_phases(write, tmp_path, capsys):
    """Describe, train, go on after the first phase, evaluate by type: each from what the stage before has written."""
    model = vision_checkpoints.checkpoint(tmp_path / "qwen2.5-vl", "qwen2_5_vl")
    pictured = write(*[{**PICTURED, "qid": f"v{i}", "image": [f"{i}.png"]} for i in range(2)], name="pictured.jsonl")
    plain = write(TEXT, {**TEXT, "problem": "Which?", "answer": "B"}, name="plain.jsonl")
    asked = []

    def captioner(messages):
        asked.append(messages)
        return "<think>look</think>A square." if len(asked) != 2 else "<think>never ends"

    def stage(name, *options):
        main(["run", "infi-mmr", "--stage", name, "--model", model, "--min-pixels", "64", *options, "--quiet"])

    with chat_server(captioner) as url:
        stage("caption", "--data", pictured, "--captioner", url, "--out", str(tmp_path / "captions"))
    rows = [json.loads(line) for line in (tmp_path / "captions" / "captions.jsonl").read_text().splitlines()]
    [row] = rows
    assert (row["id"], row["caption"]) in (("v0", "A square."), ("v1", "A square."))
    assert "1 of 2 problems with their captions" in capsys.readouterr().out
    captions = str(tmp_path / "captions" / "captions.jsonl")
    out = tmp_path / "run"
    files = ["--text", plain, "--captioned", captions, "--pictures", pictured, "--held-out", f"wide={pictured}", plain]
    small = ["--tasks", "1", "--samples", "2", "--max-new", "4", "--steps", "4", "--text-steps", "1"]
    stage("train", *files, "--no-decontaminate", *small, "--out", str(out))
    assert [line["phase"] for line in pt.read_metrics(out)] == [1, 2, 2, 3]
    assert {"held_out/wide/reward", "held_out/plain/reward"} <= set(pt.read_metrics(out / "3-pictures")[0])
    assert (out / "report.html").is_file()
    assert (out / "2-captioned" / "report.html").is_file()
    assert list((out / "model").glob("*.safetensors"))
    stage("train", *files, "--no-decontaminate", *small, "--out", str(out), "--resume")
    assert len(pt.read_metrics(out)) == 4
    with pytest.raises(SystemExit):
        stage("train", *files, "--no-decontaminate", *small, "--out", str(out), "--resume", "--pictures-steps", "1")
    with pytest.raises(SystemExit):
        stage("train", *files, *small, "--out", str(tmp_path / "other"))
    assert "all problems of the phase text stand in files of --held-out; --no-decontaminate" in " ".join(
        capsys.readouterr().err.split()
    )
    stage("evaluate", "--data", plain, "--max-new", "4", "--out", str(tmp_path / "evaluation"), "--samples", "2")
    measures = json.loads((tmp_path / "evaluation" / "measures.json").read_text())
    assert {kind: row["replies"] for kind, row in measures.items()} == {"all": 4, "choice": 2, "math": 2}


def test_a_description_that_nobody_gave():
    lost = pt.Rollout(pt.Task("a", (), None), [], pt.Failure("down"))
    assert description([lost]) == pt.Invalid("down")
    assert description([said("<think>a</think> \n")]) == {"caption": None}


def test_accuracies_by_type():
    from dataclasses import replace

    found = pt.Evaluation()
    for truth, right in (("7", 1.0), ("8", 0.0), ("B", 1.0)):
        one = said("x")
        found.groups.append([replace(one, task=replace(one.task, truth=answer_of(truth)))])
        found.scores.append([pt.Score(right)])
    assert accuracies(found) == {
        "all": {"accuracy": pytest.approx(2 / 3), "replies": 3.0},
        "choice": {"accuracy": 1.0, "replies": 1.0},
        "math": {"accuracy": 0.5, "replies": 2.0},
    }


def test_captions_in_a_parquet_file_of_pictures(tmp_path):
    """Pictures that are bytes are written as files, which the phase captioned reads."""
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    from posttrain.systems.infi_mmr.captions import write_captions

    png = vision_checkpoints.png(tmp_path / "a.png", 16, 16).read_bytes()
    rows = [{"question": "<image>?", "images": [{"bytes": png, "path": None}], "answer": "16"}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    found = problems(str(tmp_path / "rows.parquet"))
    (tmp_path / "out").mkdir()
    assert write_captions(tmp_path / "out", found, [{"id": "1", "caption": "Noise."}]) == 1
    [again] = problems(str(tmp_path / "out" / "captions.jsonl"))
    [shown, _] = task(again, "captioned").prompt[0]["content"]
    assert (tmp_path / "out" / shown["image"]).is_file()
