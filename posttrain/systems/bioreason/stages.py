"""Supervised learning, GRPO and evaluation of a language model that is shown DNA; the arm of DNA alone; an encoder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import posttrain as pt
from posttrain.grade.stated import whole_reply
from posttrain.systems.bioreason import Method, recipe
from posttrain.systems.bioreason.data import Shown, VariantOptions, demonstration, fitting_tasks
from posttrain.systems.bioreason.measures import floor, measures, named, prediction, print_floor, table
from posttrain.systems.bioreason.reward import evaluation, reward

PREDICTIONS = "predictions.jsonl"


def sft(
    variant: VariantOptions,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    run: pt.Run = pt.Run(
        "runs/bioreason-sft", steps=725, tasks=8, lr=5e-5, schedule="cosine", warmup=73, weight_decay=0.01
    ),
    shown: Shown = "dna",
    dna_encoder: str | None = None,
    longest: int = 2048,
    held_out: tuple[str, ...] = (),
) -> pt.Session:
    """Learn traces and answers; OUT/model holds the language model, the encoder and what lies between them.

    shown        dna; letters, the bases as text, for a model without an encoder; or none, the question alone
    dna_encoder  Hub id or folder of the frozen encoder, in Nucleotide Transformer's first format; a model that has one
                 already needs none
    longest      most tokens of a sequence
    held_out     variants whose loss is only measured: FILE, or NAME=FILE
    """
    scale.refuse_sampler()
    found, tests = variant.variants(), variant.tests(held_out)
    encoders = [pt.DnaEncoder(dna_encoder, longest=longest, weights=model.weights)] if dna_encoder else []
    policy = model.policy(*encoders)
    learned = [demonstration(one, shown) for one in found]
    print_floor(found, tests)
    sets = {name: [demonstration(one, shown) for one in some] for name, some in tests.items()}
    return pt.sft(policy, learned, run, held_out=sets)


def train(
    variant: VariantOptions,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    run: pt.Run = pt.Run("runs/bioreason", steps=1000, tasks=16, lr=1e-5, schedule="cosine", warmup=30),
    shown: Shown = "dna",
    method: Method = "dr_grpo",
    samples: int | None = None,
    kl: float = 0.04,
    exact: bool = False,
    legacy: bool = False,
    held_out: tuple[str, ...] = (),
) -> pt.Session:
    """GRPO on the five terms, from the checkpoint that stage sft has written. It was released at temperature 0.7.

    shown     as in stage sft
    method    dr_grpo, as the published numbers, or grpo, as first released
    samples   replies to a question; 8 for dr_grpo and 4 for grpo if not given
    kl        grpo: weight of the divergence from the starting model; 0 loads no reference
    exact     pay for an answer that is the label and nothing else; the paper pays for one that contains it
    legacy    the released expressions of the formats, which the text that was taught does not match
    held_out  variants that are only evaluated, by the label: FILE, or NAME=FILE
    """
    found, tests = variant.variants(), variant.tests(held_out)
    policy = model.policy()
    tasks = fitting_tasks(found, shown, policy)
    sets = {name: fitting_tasks(some, shown, policy) for name, some in tests.items()}
    print_floor(found, tests)
    paid = reward(exact=exact, legacy=legacy)
    made = recipe(paid, policy, method=method, samples=samples, kl=kl, evaluation=evaluation())
    return scale.train(policy, tasks, made, run, held_out=sets)


def evaluate(
    variant: VariantOptions,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    training: str,
    output: pt.Output = pt.Output("runs/bioreason-evaluation"),
    shown: Shown = "dna",
    samples: int = 1,
) -> Path:
    """Accuracy, precision, recall and F1, with the floor beside them, in OUT/measures.json; OUT/predictions.jsonl.

    training  the variants that the model has learnt from: the floor is a look-up of the question in them
    shown     as in stage sft
    samples   replies to a question, each of which counts
    """
    pt.at_least(1, samples=samples)
    pt.measure.require_f1()
    found, known = variant.variants(), VariantOptions(training).variants()
    policy = model.policy()
    tasks, lowest = fitting_tasks(found, shown, policy), floor(known)
    replies, played = scale.evaluate(policy, tasks, evaluation(), samples, output)
    labels = {one.label for one in (*known, *found)}
    questions = {one.key: one.question for one in found}
    predictions = [
        {
            "id": one.task.key,
            "label": one.task.truth,
            "predicted": prediction(text, labels),
            "named": named(text, one.task.truth),
            "floor": lowest.label(questions[one.task.key]),
            "reply": text,
        }
        for one, _ in played.graded
        for text in [whole_reply(one)]
    ]
    rows = evaluation_rows(predictions)
    replies.write(rows)
    if pt.ranks.is_primary():
        pt.Lines(replies.folder / PREDICTIONS, resume=False).replace(predictions)
        print("\n".join(table(rows)))
    return replies.folder


def evaluation_rows(predictions: list[dict[str, Any]]) -> dict[str, Mapping[str, float]]:
    """The model's measures, and the floor's on the same questions."""
    wanted = [one["label"] for one in predictions]
    said, looked_up = [[one[name] for one in predictions] for name in ("predicted", "floor")]
    shares = {"named": sum(one["named"] for one in predictions) / len(predictions)}
    by_floor = measures(wanted, looked_up)
    return {"model": measures(wanted, said) | shares, "floor": by_floor | {"named": by_floor["accuracy"]}}


# ---- the encoder, and what it knows by itself


@pt.one_process("features are computed once, and a classifier of them is quickest there")
def pool(
    variant: VariantOptions,
    dna_encoder: str,
    run: pt.Run = pt.Run("runs/bioreason-dna", steps=1000, tasks=8, lr=3e-4),
    longest: int = 2048,
    held_out: tuple[str, ...] = (),
    device: str | None = None,
) -> pt.Session:
    """The arm of DNA alone: a classifier on features of a frozen encoder, without the question.

    dna_encoder  Hub id or folder, as in stage sft
    longest      most tokens of a sequence
    held_out     variants that are only evaluated: FILE, or NAME=FILE
    device       cpu, cuda, cuda:1, mps; the best one here if not given
    """
    from posttrain.systems.bioreason.pooling import DnaClassifier, learn_classifier, require_readable

    pt.measure.require_f1()
    found, tests = variant.variants(), variant.tests(held_out)
    encoder = pt.DnaEncoder(dna_encoder, longest=longest)
    require_readable(encoder, [*found, *(one for some in tests.values() for one in some)])
    print_floor(found, tests)
    labels = sorted({one.label for one in found})
    return learn_classifier(DnaClassifier(encoder, labels, run.seed, device), found, run, tests)


@pt.one_process("encoders that are worth pretraining here are small")
def pretrain(
    data: str,
    run: pt.Run = pt.Run("runs/dna-encoder", steps=10_000, tasks=64, lr=1e-3, schedule="linear", warmup=100),
    size: int = 6,
    width: int = 256,
    layers: int = 6,
    heads: int = 8,
    window: int = 1000,
    held_out: tuple[str, ...] = (),
    device: str | None = None,
) -> pt.Session:
    """Pretrain a small encoder of masked tokens; OUT/model is what stage sft takes as its encoder.

    data      FASTA file, or a JSONL, CSV or Parquet file with a column `sequence`
    size      bases of a token
    width     of a feature
    layers    of the network
    heads     of attention
    window    bases of a sequence that are shown at a time, from anywhere in it
    held_out  sequences whose loss is only measured: FILE, or NAME=FILE
    device    cpu, cuda, cuda:1, mps; the best one here if not given
    """
    from posttrain.systems.bioreason.pretraining import MaskedModel, dna_tokenizer, learn_encoder, read_sequences

    pt.at_least(1, size=size, width=width, layers=layers, heads=heads, window=window)
    found = read_sequences(data)
    sets = {name: read_sequences(file) for name, file in pt.named_files(held_out).items()}
    shape = {"width": width, "layers": layers, "heads": heads, "seed": run.seed, "device": device}
    return learn_encoder(MaskedModel(dna_tokenizer(size), **shape), found, window, run, sets)


def laptop(
    shown: Shown = "dna",
    method: Method = "dr_grpo",
    run: pt.Run = pt.Run("runs/bioreason", steps=50, tasks=32, lr=1e-4),
) -> pt.Session:
    """Genes, variants and pathways: an encoder is pretrained, its reader learns traces, and GRPO goes on from there.

    shown   dna, letters (the bases as text), or none
    method  dr_grpo or grpo
    """
    from posttrain.systems.bioreason import lab

    return lab.laptop_run(shown, method, run)


STAGES = {
    "laptop": laptop,
    "sft": sft,
    "train": train,
    "evaluate": evaluate,
    "pool": pool,
    "pretrain": pretrain,
}
