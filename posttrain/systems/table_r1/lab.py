"""Table-R1 on a laptop: tables of four rows, four kinds of questions, and a teacher who is wrong on a third of them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import posttrain as pt
from posttrain.lab.world.tables import OPERATIONS, Operation, TableQuestion, Tables, reply
from posttrain.lab.world.words import Size, base
from posttrain.systems.table_r1 import recipe
from posttrain.systems.table_r1.answers import Kind, strict_format
from posttrain.systems.table_r1.reward import Form, Truth, evaluation, reward
from posttrain.tiny import warm_start

READS, ERRS = Size(steps=1400, rows=32), Size(steps=200, rows=32, rate=1e-3)  # after a right teacher, then a wrong one
STEPS, PER_STEP, RATE, SAMPLES = 60, 32, 1e-3, 8
TRACES, SFT_STEPS = 4000, 400
KIND: dict[Operation, Kind] = {"lookup": "TQA", "row": "TQA", "verify": "TFV", "tell": "FF-TQA"}
MORE_ROWS = 5
UNFORMED = 0.0  # of a base model's demonstrations in the whole form, after those of the readers


def start(world: Tables, seed: int, budget: pt.Budget = pt.FULL) -> pt.TextPolicy:
    """A model that has learnt to read tables, and then what the world's teacher says of them."""
    reader = Tables(seed, wrong=0.0)
    return base(reader, seed, budget.size(READS), (world, budget.size(ERRS)))


def task(one: TableQuestion, key: str) -> pt.Task[Truth]:
    return pt.Task(key, (pt.user(one.prompt),), Truth(KIND[one.operation], one.answers))


def tasks(world: Tables, count: int, split: str, operations: Sequence[Operation] = OPERATIONS, **more: int):
    found = world.questions(count, split, tuple(operations), **more)
    return [task(one, f"{split}-{i}") for i, one in enumerate(found)]


def measures(lab: pt.Lab) -> pt.Measures:
    """By the looser scorer; a sentence's score is not 0 or 1, so that answers are told apart from it."""
    out = {}
    sets = {name: tasks(lab.world, lab.budget.items(96), f"test {name}", [name]) for name in OPERATIONS}
    sets["more rows"] = tasks(lab.world, lab.budget.items(96), "test rows", ("lookup", "row"), rows=MORE_ROWS)
    formed = []
    for name, some in sets.items():
        found = lab.evaluate(some, evaluation(), samples=4)
        out[name] = found.reward
        formed += [strict_format(one.text, one.task.truth.kind) for one in found.rollouts]
    out["answers"] = (out["lookup"] + out["row"] + out["verify"]) / 3
    return {**out, "form": sum(formed) / len(formed)}


def arm(operations: Sequence[Operation] = OPERATIONS, form: Form = "strict", formed: float = 1.0) -> pt.Arm:
    """GRPO on these kinds of questions."""
    return pt.trial(
        lambda seed: Tables(seed, formed=formed),
        lambda lab: recipe(reward(form), samples=SAMPLES),
        measures,
        steps=STEPS,
        per_step=PER_STEP,
        lr=RATE,
        policy=start,
        tasks=lambda lab: tasks(lab.world, 2000, "training", operations),
    )


def distilled(seed: int, budget: pt.Budget) -> pt.Measures:
    """Supervised learning of the teacher's replies that are right."""
    world = Tables(seed)
    lab = pt.Lab(seed, budget, world, start(world, seed, budget))
    source = pt.ShuffledSource(traces(world, budget.items(TRACES)), seed)
    warm_start(lab.policy, (source.take(1)[0] for _ in itertools.count()), budget.steps(SFT_STEPS), 32, RATE)
    return measures(lab)


def traces(world: Tables, count: int) -> list[pt.Demonstration]:
    found = world.questions(count, "training")
    return [pt.Demonstration((pt.user(one.prompt), pt.assistant(reply(one)))) for one in found]


ARMS = {
    "instruct": pt.trial(Tables, None, measures, policy=start),
    "Table-R1-Zero": arm(),
    "Table-R1-SFT": distilled,
    "short answers only": arm(("lookup", "row")),
    "base": pt.trial(lambda seed: Tables(seed, formed=UNFORMED), None, measures, policy=start),
    "base, strict": arm(formed=UNFORMED),
    "base, cumulative": arm(form="cumulative", formed=UNFORMED),
}
CLAIMS = pt.claims("""
    reinforcement by rules improves on the instruct model
        paper: WTQ 54.8 to 79.8, HiTab 61.8 to 78.1; here by at least 0.1
        answers in [0, 1]: Table-R1-Zero > instruct + 0.1
    reinforcement by rules generalises at least as well as distillation
        paper: Zero is ahead out of domain; here on tables of more rows
        more rows in [0, 1]: Table-R1-Zero > Table-R1-SFT
    training on all kinds helps those that a single one leaves out
        paper: mixing tasks helps; here verification, which short answers alone do not train
        verify in [0, 1]: Table-R1-Zero > short answers only
    an instruct model is the better start
        paper: instruct start above base start, each with its own reward of form
        answers in [0, 1]: Table-R1-Zero > base, cumulative
    the cumulative reward of form lifts a base model where the strict one does not
        paper: the reason for it
        form in [0, 1]: base, cumulative > base, strict
    reinforcement is as good as distillation in domain
        ours: the same questions, of which distillation sees the teacher's right replies; within 0.05
        answers in [0, 1]: Table-R1-Zero > Table-R1-SFT - 0.05
""")
HEADLINE = pt.Headline("reinforcement by rules improves on the instruct model")
SMOKE = pt.Smoke(
    """
    laptop
    laptop --start base --form cumulative
    train --data {table_questions} --max-new 8 --samples 2 --held-out {table_questions}
    evaluate --data {table_questions} --max-new 8 --samples 2
    """,
    {"lab.TRACES": 20, "lab.SFT_STEPS": 4},
)
