"""BioReason: published columns, the five terms, the floor, pooling, pretraining, and stages one after another."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import injection_checkpoints
import pytest
import torch
from conftest import broken_rows, refusal, said
from hypothesis import given
from hypothesis import strategies as st

import posttrain as pt
from posttrain.cli import main
from posttrain.lab.world import genome
from posttrain.lab.world.genome import Genome
from posttrain.records import Place
from posttrain.systems.bioreason import PARTS, recipe
from posttrain.systems.bioreason.data import demonstration, fitting_tasks, read_variants, tasks_of, variant
from posttrain.systems.bioreason.measures import NONE, floor, measures, named, prediction
from posttrain.systems.bioreason.pooling import DnaClassifier, learn_in_memory, require_readable
from posttrain.systems.bioreason.pretraining import MaskedModel, dna_tokenizer, read_sequences, windows
from posttrain.systems.bioreason.pretraining import learn_in_memory as pretrain_in_memory
from posttrain.systems.bioreason.reward import evaluation, reward, terms

KEGG = {
    "question": "Which disease?",
    "answer": "Parkinson's Disease",
    "reasoning": "Step 1: so.\nStep 2: and so.",
    "reference_sequence": "acgtACGT",
    "variant_sequence": "ACGAACGT",
}
EFFECT = {
    "ID": "7",
    "question": "Is it pathogenic?",
    "answer": "Pathogenic; Seizures; more",
    "reference_sequence": "ACGT",
    "mutated_sequence": "ACG",
}
TAUGHT = "<think>\nStep 1: so.\nStep 2: and so.\n</think>\n\nAnswer: als"


@pytest.fixture
def write(tmp_path):
    def file(*rows, name="variants.jsonl"):
        path = tmp_path / name
        path.write_text("\n".join(map(json.dumps, rows)))
        return str(path)

    return file


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bioreason")


@pytest.fixture(scope="module")
def encoder(folder):
    return injection_checkpoints.esm(folder / "esm", size=6)


# ---- rows


def test_traces_and_effects_in_the_published_columns(write):
    [one] = read_variants(write(KEGG))
    assert (one.label, one.reference) == ("parkinson's disease", "ACGTACGT")
    assert one.reply == "<think>\nStep 1: so.\nStep 2: and so.\n</think>\n\nAnswer: parkinson's disease"
    [effect] = read_variants(write(EFFECT))
    assert (effect.label, effect.variant) == ("pathogenic", "ACG")
    assert effect.reply == "<think>\nAnswer: pathogenic\n</think>\n\nAnswer: pathogenic", "as released"
    [coding] = read_variants(write({**KEGG, "reasoning": "so", "answer": "a; b"}))
    assert coding.label == "a; b", "of a row with a trace the answer is the label"


def test_what_of_the_dna_is_shown(write):
    found = read_variants(write(KEGG))
    [dna] = tasks_of(found, "dna")
    assert dna.prompt[0]["content"] == [
        {"type": "dna", "dna": "ACGTACGT"},
        {"type": "dna", "dna": "ACGAACGT"},
        {"type": "text", "text": "Which disease?"},
    ]
    assert (dna.truth, len(dna.prompt)) == ("parkinson's disease", 1), "the prompt stops before the answer"
    [letters], [none] = tasks_of(found, "letters"), tasks_of(found, "none")
    assert letters.prompt[0]["content"] == (
        "Reference sequence: ACGTACGT\nVariant sequence: ACGAACGT\n\nWhich disease?"
    )
    assert none.prompt[0]["content"] == "Which disease?"
    long = {**KEGG, "reference_sequence": "A" * 1024 + "C" * 9 + "G" * 1024}
    [cut] = tasks_of(read_variants(write(long)), "letters")
    assert cut.prompt[0]["content"].startswith(f"Reference sequence: {'C' * 9}\n")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**KEGG, "variant_sequence": "ACGU"}, "line 2: 'variant_sequence' has 'U' at base 4"),
        ({**KEGG, "reference_sequence": ["ACGT", "ACGA"]}, "line 2: the column 'reference_sequence' holds list"),
        ({**KEGG, "reference_sequence": " "}, "line 2: the column 'reference_sequence' holds str, or nothing"),
        ({**KEGG, "answer": ""}, "line 2: the column 'answer' is empty"),
        ({**EFFECT, "answer": ";x"}, "line 2: the answer ';x' has no label before its ';'"),
        ({name: KEGG[name] for name in KEGG if name != "variant_sequence"}, "line 2: there is no column 'variant_seq"),
    ],
)
def test_bad_rows_are_named(row, message, write):
    with pytest.raises(ValueError, match=message):
        read_variants(write(KEGG, row))


@given(broken_rows(KEGG, EFFECT))
def test_rows_are_read_or_named(row):
    problem = refusal(variant, row, Place("rows.jsonl", 1))
    assert problem is None or problem.startswith("rows.jsonl, line 1: ")


def test_what_a_model_cannot_be_shown_is_named_before_any_work(write, folder, encoder, make):
    text = injection_checkpoints.text_checkpoint(folder / "plain")
    shown = pt.inject(text, [pt.DnaEncoder(encoder, longest=20)], max_new=4)
    found = read_variants(write(KEGG, {**KEGG, "variant_sequence": "ACGTAC" * 30}))
    with pytest.raises(ValueError, match=r"variants.jsonl, line 2: .*of 180 bases takes 32 tokens, and its encoder 20"):
        fitting_tasks(found, "dna", shown)
    with pytest.raises(ValueError, match=r"variants.jsonl, line 2: .*takes 32 tokens"):
        require_readable(pt.DnaEncoder(encoder, longest=20), found)
    with pytest.raises(ValueError, match=r"line 1: .*of type 'dna', for which the model has no encoder"):
        fitting_tasks(found, "dna", make())
    assert len(fitting_tasks(found[:1], "dna", shown)) == 1
    with pytest.raises(ValueError, match=r"variants.jsonl, line 2: .*takes 32 tokens"):
        pt.sft(shown, [demonstration(one, "dna") for one in found], pt.Run(folder / "run", steps=1, quiet=True))


# ---- the reward


def test_the_text_that_was_taught_earns_everything_and_little_by_the_released_expressions():
    assert terms(TAUGHT, "ALS") == {
        "correctness": 2.0, "concise": 0.5, "strict_format": 0.5, "soft_format": 0.5, "xmlcount": 0.25
    }  # fmt: skip
    released = terms(TAUGHT, "als", legacy=True)
    assert released == {
        "correctness": 2.0, "concise": 0.5, "strict_format": 0.0, "soft_format": 0.0, "xmlcount": 0.25
    }  # fmt: skip
    [full], [legacy] = reward()([answered(TAUGHT)]), reward(legacy=True)([answered(TAUGHT)])
    assert (full.value, legacy.value) == (3.75, 2.75)
    assert full.parts == terms(TAUGHT, "als")
    one_line = "<think>\nso\n</think>\nAnswer: als\n"
    assert sum(terms(one_line, "als", legacy=True).values()) == 3.25, (
        "strict alone: a trace of a line, a last end of line"
    )
    assert terms("<think>so</think> als", "als", legacy=True)["soft_format"] == 0.5


def answered(text, label="als"):
    return replace(said(text), task=pt.Task("a", (), label))


def test_terms_by_hand():
    assert terms("als", "als")["correctness"] == 2.0, "without a closing mark the whole text is the answer"
    assert terms("<think>\nals\n</think>\nnone", "als")["correctness"] == 0.0
    assert terms("a</think>b als</think> no", "als")["correctness"] == 0.0, "behind the last mark"
    every = "<think>\nx\n</think>\n\nAnswer: als, lissencephaly, asthma"
    assert terms(every, "als")["correctness"] == 2.0, "the paper's rule can be gamed"
    assert terms(every, "als", exact=True)["correctness"] == 0.0
    assert terms("<think>\nx\n</think>\n\nANSWER:  ALS.", "als", exact=True)["correctness"] == 2.0
    assert terms("</think>" + "w " * 10, "x")["concise"] == 0.5
    assert terms("</think>" + "w " * 11, "x")["concise"] == 0.0
    twice = "<think>\n<think>\na\n</think>\nb"
    assert terms(twice, "x")["xmlcount"] == 0.125
    assert terms("so " + TAUGHT, "als")["strict_format"] == 0.0
    [right, wrong] = evaluation()([answered(TAUGHT), answered("<think>als</think> no")])
    assert (right.value, wrong.value) == (1.0, 0.0)


@given(st.text(), st.text(min_size=1), st.booleans(), st.booleans())
def test_any_reply_earns_between_nothing_and_the_sum(text, label, exact, legacy):
    found = terms(text, label, exact=exact, legacy=legacy)
    assert 0 <= sum(found.values()) <= 3.75
    whole = sum(terms(text, label).values())
    assert sum(terms(text, label, legacy=True).values()) <= whole, "the released formats are stricter"


@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=30), st.sampled_from(["als", "bone loss"]))
def test_what_is_taught_is_in_form_whatever_the_trace(trace, label):
    if "think>" not in trace:
        assert sum(terms(f"<think>\n{trace}\n</think>\n\nAnswer: {label}", label).values()) == 3.75


def test_parts_for_any_recipe():
    plain = pt.grpo(pt.each(lambda rollout: float("yes" in rollout.text)), samples=2)
    [full, bare] = PARTS["thinking_format"](plain, True).reward([said(f"{TAUGHT} yes"), said("yes")])
    assert (full.value, bare.value) == (2.25, 1.0)
    [brief, long] = PARTS["concise"](plain, True).reward([said("yes"), said("yes " * 11)])
    assert (brief.value, long.value) == (1.5, 1.0)
    assert PARTS["concise"](plain, True).evaluation is plain.reward
    invalid = pt.grpo(pt.each(lambda rollout: pt.Invalid("no")), samples=2)
    assert isinstance(PARTS["concise"](invalid, True).reward([said("x")])[0], pt.Invalid)


def test_both_released_versions(make):
    policy = make(max_new=8)
    made = recipe(reward(), policy)
    assert (made.samples, made.advantage, made.reference) == (8, pt.normalised, None)
    first = recipe(reward(), policy, method="grpo")
    assert (first.samples, first.advantage) == (4, pt.normalised)
    assert first.reference is not None
    assert recipe(reward(), policy, method="grpo", kl=0).reference is None


# ---- measures and the floor


def test_the_only_label_that_an_answer_names():
    labels = ("als", "bone loss", "late bone loss")
    assert prediction(TAUGHT, labels) == "als"
    assert prediction("<think>als</think> It is late bone loss.", labels) == "late bone loss"
    assert prediction("als or bone loss", labels) == NONE
    assert prediction("falsely", labels) == NONE
    assert prediction("<think>als</think>", labels) == NONE
    assert named("<think>ALS</think> no", "als"), "the released evaluation takes a label in the trace"


def test_measures_by_hand():
    # a: 1 of 2 said, 1 of 2 found, F1 1/2; b: 1 of 1 said, 1 of 2 found, F1 2/3; NONE makes no class
    found = measures(["a", "a", "b", "b"], ["a", NONE, "a", "b"])
    assert found == pytest.approx({"accuracy": 0.5, "precision": 0.75, "recall": 0.5, "F1": (1 / 2 + 2 / 3) / 2})
    effects = measures(["pathogenic", "pathogenic", "benign"], ["pathogenic", "benign", "pathogenic"])
    assert effects == pytest.approx({"accuracy": 1 / 3, "precision": 0.5, "recall": 0.5, "F1": 0.5}), "of pathogenic"


def test_the_floor_is_a_look_up_of_the_question(write):
    rows = [("q1", "a"), ("q1", "b"), ("q1", "b"), ("q2", "c"), ("q3", "b")]
    lowest = floor(read_variants(write(*[{**KEGG, "question": q, "answer": a} for q, a in rows])))
    assert [lowest.label(question) for question in ("q1", "q2", "new")] == ["b", "c", "b"]
    tests = read_variants(write(*[{**KEGG, "question": q, "answer": a} for q, a in [("q1", "b"), ("q2", "a")]]))
    assert lowest.measures(tests)["accuracy"] == 0.5


# ---- DNA alone


def test_padding_does_not_change_what_is_pooled(encoder, write):
    model = DnaClassifier(pt.DnaEncoder(encoder), ["a", "b", "c"], device="cpu")
    longer = {**KEGG, "reference_sequence": "ACGTAC" * 5, "variant_sequence": "ACGTTC" * 9}
    some = read_variants(write(KEGG, longer))
    with torch.no_grad():
        together, alone = model.logits(some), torch.cat([model.logits([one]) for one in some])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    assert (together[0] - together[1]).abs().max() > 1e-4


def test_a_classifier_learns_and_is_loaded_again(encoder, write, tmp_path):
    rows = [
        {**KEGG, "answer": label, "reference_sequence": start * 6, "variant_sequence": start * 5 + "ACGTAC"}
        for label, start in (("a", "AAAAAA"), ("b", "CCCCCC"), ("c", "GGGTTT"))
    ]
    some = read_variants(write(*rows))
    model = DnaClassifier(pt.DnaEncoder(encoder, longest=64), ["a", "b", "c"], device="cpu")
    before = {name: value.clone() for name, value in model.frozen.encoder.state_dict().items()}
    learn_in_memory(model, some, steps=60, rows=3, rate=1e-2, seed=0)
    assert model.predictions(some) == ["a", "b", "c"]
    assert all(torch.equal(value, before[name]) for name, value in model.frozen.encoder.state_dict().items())
    model.save(tmp_path / "model")
    again = DnaClassifier.load(tmp_path / "model", device="cpu")
    assert (again.labels, again.frozen.encoder.longest) == (("a", "b", "c"), 64)
    torch.testing.assert_close(again.logits(some), model.logits(some), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="it holds no classifier.json"):
        DnaClassifier.load(tmp_path)


# ---- pretraining


def test_six_mers_are_the_published_vocabulary():
    words = dna_tokenizer(6)
    assert len(words) == 4107
    assert words.tokenize("ACGTACGTACGTNA") == ["ACGTAC", "GTACGT", "N", "A"]
    assert len(dna_tokenizer(1)) == 11


def test_masks_hide_fifteen_of_a_hundred_tokens():
    model = MaskedModel(dna_tokenizer(1), 16, 1, 2, device="cpu")
    ids = model.tokenizer(["ACGT" * 500] * 4, return_tensors="pt")["input_ids"]
    shown, wanted = model.masked(ids, torch.Generator().manual_seed(0))
    assert wanted.float().mean().item() == pytest.approx(0.15, abs=0.015)
    assert not wanted[:, [0, -1]].any(), "the first and the last token are no bases"
    hidden = (shown == model.tokenizer.mask_token_id)[wanted].float().mean().item()
    assert hidden == pytest.approx(0.8, abs=0.04)
    assert torch.equal(shown[~wanted], ids[~wanted])
    short = model.tokenizer(["A"], return_tensors="pt")["input_ids"]
    assert all(model.masked(short, torch.Generator().manual_seed(i))[1].sum() == 1 for i in range(5))


def test_pretraining_learns_and_the_same_seed_gives_the_same_encoder(tmp_path):
    def window(draw: random.Random) -> str:
        return "ACGT" * 3 if draw.random() < 0.5 else "TTGG" * 3

    def made(seed: int) -> MaskedModel:
        model = MaskedModel(dna_tokenizer(1), 16, 1, 2, seed=seed, device="cpu")
        found = pretrain_in_memory(model, window, steps=150, rows=8, rate=1e-2, seed=seed)
        assert found < 1.0
        return model

    first, second = made(0), made(0)
    for name, value in first.state_dict().items():
        torch.testing.assert_close(value, second.state_dict()[name], atol=0, rtol=0)
    first.save(tmp_path / "encoder")
    encoder = pt.DnaEncoder(str(tmp_path / "encoder"))
    assert encoder.read({"dna": "ACGT"}).tokens == 6


def test_sequences_of_both_kinds_of_files(write, tmp_path):
    file = tmp_path / "genome.fa"
    file.write_text("\n>one and more\nACG\nTTA\n\n>two\nnn\n")
    assert read_sequences(str(file)) == ["ACGTTA", "NN"]
    assert read_sequences(write({"sequence": "ac gt"})) == ["ACGT"]
    file.write_text(">one\nACG\n>two\nACX\n")
    with pytest.raises(ValueError, match=r"genome.fa, line 3: 'sequence' has 'X' at base 3"):
        read_sequences(str(file))
    file.write_text("ACG\n")
    with pytest.raises(ValueError, match=r"genome.fa, line 1: a sequence before the first line"):
        read_sequences(str(file))
    file.write_text("\n")
    with pytest.raises(ValueError, match="genome.fa`: the file is empty"):
        read_sequences(str(file))
    assert windows(["ACGTACGT", "AC"], 4, 0) == windows(["ACGTACGT", "AC"], 4, 0)
    assert [len(one) for one in windows(["ACGTACGT", "AC"], 4, 1)] == [4, 2]


# ---- the world


def test_the_genome():
    world, other = Genome(0), Genome(1)
    assert world.items(3, "a") == Genome(0).items(3, "a") != other.items(3, "a")
    for row in world.diseases:
        assert sorted(row) == list(range(genome.GENES))
    assert all(len(set(of_gene)) == genome.PATHWAYS for of_gene in zip(*world.diseases, strict=True))
    for one in world.items(50, "a"):
        changed = [i for i in range(genome.WINDOW) if one.reference[i] != one.variant[i]]
        assert changed == [genome.WINDOW // 2]
        assert one.disease == world.diseases[one.pathway][one.gene]
    assert len(world.window(random.Random(0))) == genome.WINDOW


def test_the_tokenizer_of_the_genome_keeps_every_blank_and_end_of_line(tmp_path):
    words = genome.tokenizer()
    for width in (1, 3):
        record = Genome(0).items(1, "a")[0].record(width)
        one = variant(record, Place("genome", 1))
        for text in (one.reply, one.prompt("letters")[0]["content"], one.question):
            ids = words(text)["input_ids"]
            assert words.pad_token_id not in ids
            assert words.decode(ids) == text


# ---- stages, one after another


def test_from_sequences_to_an_evaluated_model(write, folder, tmp_path, capsys):
    """An encoder is pretrained, a language model learns to be shown DNA by it, is reinforced, and is evaluated."""
    rows = [
        {**KEGG, "answer": label, "question": f"q{i}", "variant_sequence": "ACGTAC" * 2 + label}
        for i, label in enumerate(("AC", "GT", "AC", "GT"))
    ]
    data = write(*rows)
    sequences = write(*[{"sequence": "ACGTTGCA" * 9}] * 3, name="sequences.jsonl")
    text = injection_checkpoints.text_checkpoint(folder / "text")

    def stage(name, *options):
        main(["run", "bioreason", "--stage", name, "--quiet", "--out", str(tmp_path / name), *options])

    few = ["--steps", "2", "--tasks", "2"]
    stage("pretrain", "--data", sequences, *few, "--size", "3", "--width", "16", "--layers", "1", "--heads", "8",
          "--window", "30", "--held-out", sequences)  # fmt: skip
    encoder = str(tmp_path / "pretrain" / "model")
    assert "held_out/loss" in pt.read_metrics(tmp_path / "pretrain")[-1]
    stage("pool", "--data", data, "--dna-encoder", encoder, *few, "--held-out", data)
    assert {"held_out/accuracy", "held_out/F1"} <= set(pt.read_metrics(tmp_path / "pool")[-1])
    small = ["--max-new", "8", "--model"]
    stage("sft", "--data", data, *few, *small, text, "--dna-encoder", encoder, "--lora", "4", "--held-out", data)
    assert "floor" in capsys.readouterr().out
    model = str(tmp_path / "sft" / "model")
    stage("train", "--data", data, *few, *small, model, "--samples", "2", "--held-out", data)
    logged = pt.read_metrics(tmp_path / "train")
    assert {f"part/{name}" for name in terms("", "")} <= set(logged[0])
    assert "held_out/reward" in logged[-1]
    capsys.readouterr()
    trained = str(tmp_path / "train" / "model")
    stage("evaluate", "--data", data, "--training", data, *small, trained)
    found = json.loads((tmp_path / "evaluate" / "measures.json").read_text())
    assert found["floor"]["accuracy"] == 1.0, "every question has come in training"
    assert 0 <= found["model"]["accuracy"] <= found["model"]["named"] <= 1
    assert len((tmp_path / "evaluate" / "predictions.jsonl").read_text().splitlines()) == 4
    assert "floor" in capsys.readouterr().out


def test_a_run_is_not_started_on_a_file_with_one_bad_line(write, folder, encoder, tmp_path, capsys):
    model = str(folder / "reader")
    pt.inject(injection_checkpoints.text_checkpoint(folder / "base"), [pt.DnaEncoder(encoder)]).save(folder / "reader")
    bad = write(KEGG, {**KEGG, "variant_sequence": "ACGU"})
    for stage in ("train", "sft", "pool"):
        options = ["--dna-encoder", encoder] if stage == "pool" else ["--model", model]
        with pytest.raises(SystemExit):
            main(["run", "bioreason", "--stage", stage, "--data", bad, "--out", str(tmp_path / stage), *options])
        assert "line 2: 'variant_sequence' has 'U' at base 4" in " ".join(capsys.readouterr().err.split())
        assert not (tmp_path / stage).exists()


def test_the_arms_run_and_share_an_encoder(monkeypatch, tmp_path):
    """On a small budget."""
    from posttrain.lab.trial import QUICK
    from posttrain.lab.world.words import Size
    from posttrain.systems.bioreason import lab

    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path))
    for name in ("ENCODER", "READER", "BRIEFLY"):
        monkeypatch.setattr(lab, name, Size(hidden=16, layers=1, steps=4, rows=4))
    found = {name: lab.ARMS[name](0, QUICK) for name in ("DNA-LLM, 192", "DNA alone, 192", "brief SFT, RL")}
    assert all(0 <= value <= 1 for measures in found.values() for value in measures.values())
    assert len(list(tmp_path.glob("bioreason-encoder-*[!k]"))) == 1
