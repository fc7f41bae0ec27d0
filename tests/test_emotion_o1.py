"""Emotion-o1: what replies state, bands of lengths, the reward and each of its terms, readers, measures, stages."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace

import pytest
import torch
from chat_server import chat_server
from conftest import said
from hypothesis import given
from hypothesis import strategies as st

import posttrain as pt
from posttrain.cli import main
from posttrain.lab.world.signs import LABELS as SIGNS
from posttrain.lab.world.signs import MARKERS as MARKER_WORDS
from posttrain.lab.world.signs import Signs, reply
from posttrain.systems.emotion_o1 import PARTS, recipe
from posttrain.systems.emotion_o1.lengths import Band, band, fit_bands, read_bands, tokens_of, write_bands
from posttrain.systems.emotion_o1.reply import MARKERS, Stated, loose_label, stated, structure
from posttrain.systems.emotion_o1.reward import UNPARSEABLE, Truth, Weights, evaluation, reward
from posttrain.systems.emotion_o1.utterances import labels_of, tasks_of, utterances

pytest.importorskip("sklearn")

LABELS = ("anger", "joy", "not sure")
TRUTH = Truth("emotion", "joy", LABELS)


def whole(label: str, chain: str = "she laughs") -> str:
    return f"<think>{chain}</think>\n<answer>{label}</answer>"


# ---- replies


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (whole("joy"), Stated("joy", "she laughs")),
        (f"  {whole(' Joy. ')}\n", Stated("joy", "she laughs")),
        (whole("**Not sure**"), Stated("not sure", "she laughs")),
        (whole("joy", chain=""), Stated("joy", "")),
        (whole("delight"), None),  # outside of the labels
        (whole("joy or anger"), None),
        (whole(""), None),
        ("so " + whole("joy"), None),  # thoughts outside of the tags would not be counted
        (whole("joy") + " so", None),
        ("<think>a</think> so <answer>joy</answer>", None),
        ("<answer>joy</answer>", None),
        (whole("joy") + whole("joy"), None),
        ("<answer>joy</answer><think>a</think>", None),
        ("<think>a<answer>joy</answer></think>", None),
        ("<think>a</think><answer>joy", None),  # cut off
        ("", None),
    ],
)
def test_what_a_reply_states(text, found):
    assert stated(text, LABELS) == found


@pytest.mark.parametrize(
    ("text", "label"),
    [
        (whole("joy"), "joy"),
        ("<answer>anger</answer> no, <answer>joy</answer> it is", "joy"),
        ("<answer>delight</answer> joy", None),
        ("<think>anger? joy?</think> It is joy.", "joy"),
        ("joy or anger", None),
        ("a joyful day", None),
        ("<think>joy", None),  # the thinking is still open
        ("", None),
    ],
)
def test_the_looser_reading_of_the_evaluation(text, label):
    assert loose_label(text, LABELS) == label


BROKEN = (
    st.text(max_size=200)
    | st.text(alphabet="<>/thinkansweroy jmbu*.\ud800\n", max_size=200)
    | st.lists(
        st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "joy", " ", "but", "\ud800"]), max_size=12
    ).map("".join)
)


@given(BROKEN)
def test_no_text_however_broken_is_more_than_a_score(text):
    score = graded(text)
    assert score.value == UNPARSEABLE or -0.1 <= score.value <= 1.4
    assert (score.value == UNPARSEABLE) == (stated(text, LABELS) is None)
    assert all(map(math.isfinite, score.parts.values()))
    [mark] = evaluation()([said(text, TRUTH)])
    assert mark.value in (0, 1)
    assert 0 <= structure(text) <= 1


def test_a_long_reply_keeps_nobody_busy():
    for text in ("<think>" * 50_000, "</think> <answer>" * 50_000, "joy " * 100_000, "<answer>" * 50_000 + "joy"):
        assert graded(text).value == UNPARSEABLE
        evaluation()([said(text, TRUTH)])
    assert graded(whole("joy", "joy " * 50_000)).parts["redundancy"] > 0.99


def test_a_reply_begins_inside_of_thinking_that_its_prompt_has_opened(make):
    policy = make()
    tokens = policy.chat.demonstration_tokens((pt.user("hi"),), "x")
    trace = pt.Reply("she laughs</think><answer>joy</answer>", -torch.ones(1), tokens_with(tokens, "hi <think>\n"))
    rollout = pt.Rollout(pt.Task("t", (pt.user("hi"),), TRUTH), [pt.Turn(pt.Ask((pt.user("hi"),)), trace)])
    [score] = reward({"emotion": Band(2, 2, 2, 1)}, str.split)([rollout])
    assert (score.parts["accuracy"], score.parts["chain"]) == (1.0, 2.0)


def tokens_with(tokens, before):
    from dataclasses import replace

    return replace(tokens, before=before)


# ---- the reward

PLAIN = Weights()
BANDS = {"emotion": Band(low=4, median=5, high=6, chains=8)}


def graded(text: str, weights: Weights = PLAIN, truth: Truth = TRUTH) -> pt.Score:
    [score] = reward(BANDS, lambda chain: chain.split(), weights)([said(text, truth)])
    return score


def test_the_reward_by_hand():
    """Five words, of which "but" and "because" are of two classes: everything is paid."""
    full = graded(whole("joy", "she laughs but because so"))
    assert full.value == pytest.approx(1.0 + 0.3 + 0.1)
    assert full.parts == {"accuracy": 1, "length": 1, "structure": 1, "redundancy": 0, "chain": 5, "parsed": 1}
    short = graded(whole("joy", "she laughs"))  # two tokens from the nearest edge, of a median of five
    assert short.value == pytest.approx(1.0 + 0.3 * math.exp(-2 / 5))
    long = graded(whole("joy", "a b c d e f g h i j k"))
    assert long.value == pytest.approx(1.0 + 0.3 * math.exp(-5 / 5))
    looping = graded(whole("joy", "a b c d a b c d"))  # four 4-grams that differ of five
    assert looping.value == pytest.approx(1.0 + 0.3 * math.exp(-2 / 5) - 0.1 * 1 / 5)


def test_length_and_structure_pay_for_right_labels_only():
    text = whole("anger", "first but because wait so")
    assert graded(text).value == 0.0
    assert graded(text).parts["structure"] == 1.0, "it is measured all the same"
    assert graded(text, Weights(ungated=True)).value == pytest.approx(0.3 + 0.1)
    assert graded(whole("anger", "a b c d a b c d")).value == pytest.approx(-0.1 * 1 / 5)


@pytest.mark.parametrize(
    ("name", "lost"),
    [("accuracy_weight", 1.0), ("length_weight", 0.3), ("structure_weight", 0.1), ("redundancy_weight", -0.1 * 1 / 9)],
)
def test_each_term_can_be_left_out(name, lost):
    text = whole("joy", "but because a b but because a b c d e f")
    bands = {"emotion": Band(1, 5, 20, 9)}
    by = {weights: reward(bands, str.split, weights) for weights in (Weights(), Weights(**{name: 0.0}))}
    [[one], [other]] = [made([said(text, TRUTH)]) for made in by.values()]
    assert one.value - other.value == pytest.approx(lost)
    assert one.parts == other.parts, "what is not paid is measured"


def test_an_answer_outside_of_the_labels_costs_half():
    assert graded(whole("delight", "first but because wait so")).value == UNPARSEABLE == -0.5
    assert graded(whole("delight")).parts.keys() == graded(whole("joy")).parts.keys()


def test_a_task_without_a_band_is_named():
    with pytest.raises(ValueError, match="'humour' has no band of lengths, only emotion"):
        graded(whole("joy"), truth=Truth("humour", "joy", LABELS))
    assert graded(whole("joy"), Weights(length_weight=0), Truth("humour", "joy", LABELS)).value == 1.0


def test_classes_of_words_of_reasoning():
    assert structure("nothing of it: thenceforth, awaited, butter") == 0.0
    assert structure("But, but ALTHOUGH") == 0.5
    assert structure("First this. On second thought that.") == 1.0
    assert all(sum(p.search(word) is not None for p in MARKERS.values()) == 1 for word in MARKER_WORDS)
    with pytest.raises(ValueError, match="`length_weight=-1`: it must be at least 0"):
        Weights(length_weight=-1)


# ---- bands


def test_bands_by_hand():
    assert band([2, 4, 6, 8, 10]) == Band(low=4, median=6, high=8, chains=5)
    assert band([7]) == Band(7, 7, 7, 1)
    assert fit_bands({"a": [1, 1], "b": [3]}, ["b"]) == {"b": Band(3, 3, 3, 1)}
    for tasks, known in ((["a", "c"], "a, b"), (["c"], "a, b")):
        with pytest.raises(ValueError, match=f"the task 'c' has no chain with the right label, only {known}"):
            fit_bands({"a": [1], "b": [3]}, tasks)


@given(st.lists(st.integers(0, 500), min_size=1, max_size=30), st.integers(0, 1000))
def test_closeness_is_one_inside_and_falls_outside(lengths, length):
    made = band(lengths)
    assert min(lengths) <= made.low <= made.median <= made.high <= max(lengths)
    inside = made.low <= length <= made.high
    assert (made.closeness(length) == 1) == inside
    assert 0 <= made.closeness(length) <= 1
    if length > made.high:
        assert made.closeness(length + 1) <= made.closeness(length)


def test_bands_are_kept_with_their_tokenizer(make, tmp_path):
    policy, file = make(), tmp_path / "bands.json"
    write_bands(file, BANDS, policy)
    assert read_bands(str(file), policy, ["emotion"]) == BANDS
    with pytest.raises(ValueError, match="the task 'humour' has no chain"):
        read_bands(str(file), policy, ["humour"])
    kept = json.loads(file.read_text())
    file.write_text(json.dumps({**kept, "tokenizer": 1}))
    with pytest.raises(ValueError, match="in another tokenizer's tokens; give its chains.jsonl"):
        read_bands(str(file), policy, ["emotion"])
    for broken in ("[]", "{", '{"bands": {"emotion": {"low": 1}}}', '{"bands": 1}'):
        file.write_text(broken)
        with pytest.raises(ValueError, match=r"bands\.json"):
            read_bands(str(file), policy, ["emotion"])
    with pytest.raises(ValueError, match="there is no such file; stage distil writes it"):
        read_bands("no.json", policy, ["emotion"])


def test_bands_from_chains_count_the_chain_alone(make, tmp_path):
    policy, file = make(), tmp_path / "chains.jsonl"
    chains = ["so", "so it is", "so it is and was"]
    rows = [{"task": "emotion", "label": "joy", "response": whole("joy", chain)} for chain in chains]
    rows.append({"task": "emotion", "label": "joy", "response": "no form at all"})
    file.write_text("\n".join(map(json.dumps, rows)))
    lengths = [len(policy.chat.encode(chain)) for chain in chains]
    assert read_bands(str(file), policy, ["emotion"]) == {"emotion": band(lengths)}
    assert tokens_of(policy)("\ud800a"), "a lone surrogate is counted, and raises nothing"
    file.write_text(json.dumps({"text": "x"}))
    with pytest.raises(ValueError, match="line 1: a chain has `task`, `label` and `response`, and this one text"):
        read_bands(str(file), policy, ["emotion"])


# ---- utterances


@pytest.fixture
def write(tmp_path):
    def file(*records, name="utterances.jsonl"):
        path = tmp_path / name
        path.write_text("\n".join(map(json.dumps, records)))
        return str(path)

    return file


def meld(dialogue, number, text, emotion="joy", sentiment="positive", speaker="Ross"):
    return {
        "Utterance": text, "Speaker": speaker, "Emotion": emotion, "Sentiment": sentiment,
        "Dialogue_ID": str(dialogue), "Utterance_ID": str(number),
    }  # fmt: skip


MUSTARD = {
    "id": "1_1", "utterance": "Oh,\ngreat.", "speaker": "RAJ", "context": ["It is broken.", "All of it."],
    "context_speakers": ["SHELDON", "PERSON"], "sarcasm": True,
}  # fmt: skip


def test_meld_s_dialogues_are_the_context(write):
    rows = [meld(0, 0, "a"), meld(1, 0, "other"), meld(0, 1, "b"), meld(0, 2, "c\nd", "anger", "negative", "Monica")]
    found = utterances(write(*rows), context=2)
    assert [one.key for one in found] == [
        "emotion-dia0_utt0",
        "emotion-dia1_utt0",
        "emotion-dia0_utt1",
        "emotion-dia0_utt2",
    ]
    assert found[3].context == ("Ross: a", "Ross: b")
    assert utterances(write(*rows), context=1)[3].context == ("Ross: b",)
    assert utterances(write(*rows), context=0)[3].context == ()
    [*_, asked] = tasks_of(found, labels_of(found))
    assert asked.truth == Truth(
        "emotion", "anger", ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise")
    )
    text = asked.prompt[0]["content"]
    assert text.startswith("Task: emotion. Which emotion")
    assert "\n\nRoss: a\nRoss: b\nMonica: c d\n\nThink first, in a few words, between <think>" in text
    sentiment = utterances(write(*rows), name="sentiment")
    assert [one.label for one in sentiment] == ["positive"] * 3 + ["negative"]


def test_mustard_and_one_s_own_rows(write):
    [one] = utterances(write(MUSTARD), name="whatever")
    assert (one.key, one.task, one.label) == ("sarcasm-1_1", "sarcasm", "sarcastic")
    assert (one.context, one.text) == (("SHELDON: It is broken.", "PERSON: All of it."), "RAJ: Oh, great.")
    [asked] = tasks_of([one], labels_of([one]))
    assert "step by step" in asked.prompt[0]["content"]
    marks = (1, 0, True, False, "True", "false")
    assert [utterances(write({**MUSTARD, "sarcasm": mark}))[0].label for mark in marks] == ["sarcastic", "sincere"] * 3
    own = [
        {"text": "bad", "label": "no", "task": "help"},
        {"id": "x", "text": "good", "label": "yes", "task": "help", "context": "before"},
        {"text": "so", "label": 3, "context": ["a", "b"]},
        {"text": "so so", "label": 4},
    ]
    found = utterances(write(*own))
    assert [(one.key, one.task, one.label) for one in found] == [
        ("help-1", "help", "no"), ("help-x", "help", "yes"), ("utterances-3", "utterances", "3"), ("utterances-4", "utterances", "4"),
    ]  # fmt: skip
    assert [one.context for one in found] == [(), ("before",), ("a", "b"), ()]
    assert labels_of(found) == {"help": ("no", "yes"), "utterances": ("3", "4")}
    assert utterances(write(own[3]), name="stars")[0].task == "stars"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"quote": "x"}, "line 1: no utterance: give `text` and `label`"),
        ({"text": "x"}, "line 1: there is no column 'label'"),
        ({"text": "", "label": "a"}, "line 1: the column 'text' is empty"),
        ({"text": "x", "label": ["a"]}, "line 1: the column 'label' holds list"),
        ({"text": "x", "label": "a", "context": {"b": 1}}, "line 1: the context is neither"),
        ({"text": "x", "label": "a", "context": [1]}, "line 1: the context is neither"),
        ({**MUSTARD, "sarcasm": "perhaps"}, "line 1: sarcasm is 'perhaps', neither true nor false"),
        ({**MUSTARD, "context": True}, "line 1: `context` and `context_speakers` are not two lists"),
        ({**MUSTARD, "context_speakers": ["A"]}, "line 1: `context` and `context_speakers` are not two lists"),
        ({**meld(0, 0, "a"), "Utterance_ID": "x"}, "line 1: the Utterance_ID 'x' is no number"),
        ({"Utterance": "a"}, "line 1: there is no column 'Emotion'"),
    ],
)
def test_bad_rows_are_named(record, message, write):
    with pytest.raises(ValueError, match=message):
        utterances(write(record))


def test_labels_outside_of_a_task_s_are_named(write):
    found = utterances(write({"text": "x", "label": "Yes"}, {"text": "y", "label": "maybe"}), name="help")
    with pytest.raises(ValueError, match=r"utterances.jsonl, line 2: the label 'maybe' is none of yes, no"):
        tasks_of(found, labels_of(found, ["help=yes,no"]))
    given = tasks_of(found, labels_of(found, ["help=yes,maybe,no"]))
    assert [task.truth.label for task in given] == ["yes", "maybe"], "as the labels spell it"
    with pytest.raises(ValueError, match="the task 'help' is none of those that have labels: emotion"):
        tasks_of(found, {"emotion": ("a", "b")})
    with pytest.raises(ValueError, match=r"line 1: the label 'bliss' is none of anger"):
        tasks_of(bad := utterances(write(meld(0, 0, "a", "bliss"))), labels_of(bad))
    for entry in ("help", "help=yes", "help=yes,YES", "=", "help=a,!"):
        with pytest.raises(ValueError, match=r"`labels=.*there must be two or more"):
            labels_of(found, [entry])
    one = utterances(write({"text": "x", "label": "yes"}), name="help")
    with pytest.raises(ValueError, match=r"the task 'help' has the labels 'yes': .* give `labels=help=A,B`"):
        labels_of(one)
    with pytest.raises(ValueError, match="line 2: the id 'help-1' was already used in line 1"):
        utterances(write(*[{"id": 1, "text": "x", "label": "yes"}] * 2), name="help")


@given(st.lists(st.dictionaries(st.sampled_from(
    ["text", "label", "task", "context", "Utterance", "Emotion", "Dialogue_ID", "Utterance_ID", "utterance", "sarcasm",
     "context_speakers", "id"]), st.none() | st.booleans() | st.text(max_size=4) | st.lists(st.text(max_size=2), max_size=2)
), min_size=1, max_size=4))  # fmt: skip
def test_rows_are_read_or_named(tmp_path_factory, rows):
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    problem = None
    try:
        found = utterances(str(file))
        assert len(tasks_of(found, labels_of(found))) == len(found) == len(rows)
    except ValueError as error:
        problem = str(error)
    assert problem is None or str(file) in problem or "the task" in problem


def test_labels_of_a_task_that_is_not_there_are_refused(write):
    found = utterances(write({"text": "a", "label": "joy"}, {"text": "b", "label": "anger"}), name="emotion")
    with pytest.raises(ValueError, match="the data have no task of this name, but emotion"):
        labels_of(found, ["emotoin=joy,anger"])


def test_of_labels_within_one_another_the_longest_is_meant():
    labels = ("positive", "very positive", "negative")
    assert loose_label("It is very positive.", labels) == "very positive"
    assert loose_label("<answer>The label is positive</answer>", labels) == "positive"
    assert loose_label("positive, or rather very positive", labels) is None


# ---- measures


def test_measures_by_hand():
    from posttrain.systems.emotion_o1.measures import as_table, measures_of, prediction

    texts = [whole("joy", "a b"), whole("joy", "a b c d"), "It is anger.", "nothing"]
    truths = ["joy", "anger", "anger", "joy"]
    wanted = [Truth("emotion", label, LABELS) for label in truths]
    made = [prediction(text, "a", truth, str.split) for text, truth in zip(texts, wanted, strict=True)]
    [row] = measures_of(made).values()
    # joy: 1 of 2 said are right, 1 of 2 found: 1/2; anger: 1 of 1, 1 of 2: 2/3; each is wanted twice
    assert row["weighted F1"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert (row["accuracy"], row["length"], row["unparseable"], row["replies"]) == (0.5, 3.0, 0.5, 4)
    empty = measures_of([prediction("nothing", "a", TRUTH, str.split)])
    assert empty["emotion"]["length"] is None
    assert as_table(empty)[1].split() == ["emotion", "1", "0.000", "0.000", "-", "-", "-", "1.000"]


# ---- the recipe and its parts


def test_the_recipe(make):
    policy = make()
    made = recipe(evaluation(), policy)
    assert isinstance(made.advantage, pt.Gae)
    assert (made.advantage.gamma, made.advantage.lam, made.advantage.critic.clip) == (1.0, 1.0, 0.2)
    assert (made.samples, made.epochs, made.updates, made.across) == (1, 4, 1, pt.whitened)
    grpo = recipe(evaluation(), policy, method="grpo")
    assert (grpo.samples, grpo.advantage) == (16, pt.normalised)
    assert grpo.reference is not None
    assert recipe(evaluation(), policy, method="grpo", kl=0).reference is None


def test_parts_for_any_recipe():
    plain = pt.grpo(pt.each(lambda rollout: float(rollout.text.startswith("yes"))), samples=5)
    group = [said("yes", decisions=n) for n in (2, 4, 6, 8, 20)] + [said("no", decisions=6)]
    scores = PARTS["length_band"](plain, True).reward(group)  # quartiles 4, 6, 8
    assert [round(score.value, 4) for score in scores] == [
        round(1 + 0.3 * x, 4) for x in (math.exp(-2 / 6), 1, 1, 1, math.exp(-12 / 6))
    ] + [0.0]
    assert PARTS["length_band"](plain, True).evaluation is plain.reward
    assert PARTS["length_band"](plain, True).reward([said("no")])[0].value == 0
    made = PARTS["no_repetition"](plain, True)
    assert made.reward([said("yes a b c yes a b c")])[0].value == pytest.approx(1 - 0.1 * 1 / 5)
    invalid = pt.grpo(pt.each(lambda rollout: pt.Invalid("no")), samples=5)
    for part in PARTS.values():
        assert isinstance(part(invalid, True).reward([said("x")])[0], pt.Invalid)


# ---- the world


def test_the_world_of_signs():
    world, draw = Signs(0), random.Random(0)
    assert sum(world.signs) == 0
    for _ in range(50):
        asked = world.question(draw)
        product = (
            world.signs[asked.words[0]] if asked.kind == "basic" else math.prod(world.signs[w] for w in asked.words)
        )
        assert asked.label == ("pos" if product > 0 else "neg")
        text = reply(world.chain(asked, draw), asked.label)
        found = stated(text, SIGNS)
        assert found is not None
        assert found.label == asked.label
        assert set(text.split()) | set(asked.prompt.split()) <= set(world.vocabulary)
        assert len(text.split()) + 1 <= world.longest + 5
    long = world.questions(1, "x", "advanced")[0].steps(True)
    assert len(long) == 6
    assert long[-1][-1] == ("+" if world.questions(1, "x", "advanced")[0].label == "pos" else "-")
    assert all(len(set(one.words)) < 6 for one in world.questions(20, "x", repeated=True))


# ---- stages


def test_a_teacher_s_first_chain_with_the_right_label_is_kept(write):
    from posttrain.systems.emotion_o1.stages import right_chain

    [one, *_] = tasks_of(
        utterances(write({"text": "a", "label": "joy"}, {"text": "b", "label": "anger"}), name="emotion"),
        {"emotion": LABELS},
    )
    replies = [replace(said(text), task=one) for text in ("joy", whole("anger"), whole("joy", "x"), whole("joy", "y"))]
    kept = right_chain(replies)
    assert isinstance(kept, dict)
    assert (kept["task"], kept["label"], kept["response"]) == ("emotion", "joy", whole("joy", "x"))
    assert right_chain(replies[:2])["response"] is None
    lost = pt.Rollout(one, [], pt.Failure("down"))
    assert right_chain([lost]) == pt.Invalid("down")


def test_what_is_missing_is_said(write, tmp_path, capsys):
    data = write(*[{"text": text, "label": label} for text, label in (("a", "joy"), ("c", "anger"))])
    own = ["--model", "tiny", "--max-new", "4", "--data", data, "--out", str(tmp_path / "out"), "--quiet"]
    for stage, message in (
        (
            "distil",
            "not one reply to 2 questions was right and in form: give a stronger --teacher",
        ),
        ("train", "the reward's term of length needs --bands of stage distil, or --length-weight 0"),
    ):
        with pytest.raises(SystemExit):
            main(["run", "emotion-o1", "--stage", stage, *own])
        assert message in " ".join(capsys.readouterr().err.split())


def teacher(messages):
    """Thinks briefly about moods and longer about irony, and is always right about `so`."""
    chain, label = ("so", "good") if "Task: mood" in messages[-1]["content"] else ("so but because so", "yes")
    return whole(label, chain)


def test_from_a_chat_server_s_chains_to_a_trained_model(write, tmp_path, capsys):
    """Distil, learn, reinforce, evaluate, each by what the stage before has written."""
    rows = [("mood", "good"), ("mood", "bad"), ("irony", "yes"), ("irony", "no")]
    data = write(*[{"text": f"that is {label}", "label": label, "task": task} for task, label in rows])
    small = ["--max-new", "8", "--quiet"]

    def stage(name, model, *options):
        main(["run", "emotion-o1", "--stage", name, "--model", model, *small, "--out", str(tmp_path / name), *options])

    with chat_server(teacher) as url:
        stage("distil", "tiny", "--data", data, "--teacher", url, "--candidates", "1")
    chains, bands = tmp_path / "distil" / "chains.jsonl", tmp_path / "distil" / "bands.json"
    assert [json.loads(line)["id"] for line in chains.read_text().splitlines()] == ["mood-1", "irony-3"]
    kept = json.loads(bands.read_text())["bands"]
    assert kept["irony"]["median"] > kept["mood"]["median"] == kept["mood"]["low"]
    stage("sft", "tiny", "--data", str(chains), "--steps", "1", "--tasks", "2")
    learnt = str(tmp_path / "sft" / "model")
    few = ["--steps", "1", "--tasks", "2", "--samples", "2"]
    stage("train", learnt, "--data", data, "--bands", str(bands), *few, "--held-out", data)
    assert {"part/accuracy", "part/length", "part/structure", "part/redundancy", "critic_loss"} <= set(
        pt.read_metrics(tmp_path / "train")[0]
    )
    stage("evaluate", str(tmp_path / "train" / "model"), "--data", data)
    assert set(json.loads((tmp_path / "evaluate" / "measures.json").read_text())) == {"mood", "irony"}
    assert "weighted F1" in capsys.readouterr().out


def test_files_with_names_are_tasks_side_by_side(write):
    from posttrain.systems.emotion_o1.stages import UtteranceOptions

    one, other = write(meld(0, 0, "a"), name="one.jsonl"), write(meld(0, 0, "b", "anger"), name="other.jsonl")
    options = UtteranceOptions((f"emotion={one}", f"sentiment={one}", f"dev={other}", write(MUSTARD)), context=0)
    tasks, tests = options.with_tests((other,))
    keys = ["emotion/emotion-dia0_utt0", "sentiment/sentiment-dia0_utt0", "dev/emotion-dia0_utt0"]
    assert [task.key for task in tasks] == [*keys, "utterances/sarcasm-1_1"]
    assert [task.truth.label for task in tasks] == ["joy", "positive", "anger", "sarcastic"]
    assert [task.truth.label for task in tests[""]] == ["anger"]
    with pytest.raises(ValueError, match="`data`: there must be at least one file"):
        UtteranceOptions(()).tasks()
    with pytest.raises(ValueError, match="`data=.*two sets named one"):
        UtteranceOptions((one, f"one={other}")).tasks()
