"""MM-UPT on a laptop: two habits of which one mostly works, and drawn numbers; with the majority, and with labels."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Sequence

import posttrain as pt
from posttrain.lab.world import glyphs, habits
from posttrain.lab.world.glyphs import SIGNS, Glyphs
from posttrain.lab.world.habits import Habits
from posttrain.lab.world.words import Size
from posttrain.systems.mm_upt.lmsi import learn_majority
from posttrain.systems.mm_upt.questions import Mode, parts_of, questions
from posttrain.systems.mm_upt.vote import Answer, clusters, majority, recipe, semantic_entropy

SAMPLES = 10
PICTURE_SIZE = Size(hidden=64, layers=2, steps=300)
STEPS, PER_STEP, RATE, PICTURES = 40, 12, 1e-4, 480  # on pictures


def two_habits(seed: int, reliable: bool) -> Habits:
    """A base model of about 0.67 whose guesses fail at random, or one of about 0.4 that insists on its mistakes."""
    return Habits(seed, worked=0.7) if reliable else Habits(seed, worked=0.4, stubborn=True)


def measures(lab: pt.Lab, tasks: Sequence[pt.Task], grade: pt.Reward, find: Answer, seed: int) -> pt.Measures:
    found = lab.evaluate(tasks, grade, samples=2 * SAMPLES, seed=seed)
    greedy = lab.evaluate(tasks, grade, seed=seed, temperature=0.0)
    said = [[find(rollout.text) for rollout in group] for group in found.groups]
    votes = [pt.measure.majority_at_k([a], [v], SAMPLES) for a, v in zip(said, found.values, strict=True)]
    return {
        "mean@1": found.reward,
        "greedy": greedy.reward,
        "pass@10": pt.measure.mean_pass_at_k(found.values, SAMPLES),
        "majority@10": statistics.fmean(votes),
        "semantic entropy": statistics.fmean(semantic_entropy(clusters(one)) for one in said),
        "agreement": statistics.fmean(max(Counter(one).values()) / len(one) for one in said),
    }


def text_arm(labels: bool | None, reliable: bool) -> pt.Arm:
    """With labels or with the majority; None: the base model."""

    def build_recipe(lab: pt.Lab) -> pt.Recipe:
        return recipe(
            pt.each(habits.is_right) if labels else majority(habits.answer), reference=lab.policy.frozen_copy()
        )

    return pt.trial(
        lambda seed: two_habits(seed, reliable),
        None if labels is None else build_recipe,
        lambda lab: measures(lab, lab.world.held_out_tasks(), pt.each(habits.is_right), habits.answer, lab.seed),
        steps=40,
        per_step=16,
        lr=1e-3,
    )


# ---- pictures


def drawn_numbers(seed: int) -> Glyphs:
    """Most questions on pictures are worked out, and mostly right; the rest are guessed, and mostly wrong at random."""
    return Glyphs(seed, captions=0.1, questions=0.2, careful=0.7, careful_right=0.9, guess_right=0.15)


def to_write(mode: Mode) -> Callable[[pt.Task], tuple[pt.Message, ...]]:
    """In the world's words: `+ * = is 4 ask ?`, or `ask ?` alone."""

    def request(task: pt.Task) -> tuple[pt.Message, ...]:
        pictures, question = parts_of(task)
        words = f"{question} is {task.truth} ask ?" if mode == "in-context" else "ask ?"
        return (pt.user([*pictures, {"type": "text", "text": words}]),)

    return request


def read(task: pt.Task, text: str) -> str | None:
    """Two operations, other than the task's own."""
    signs = text.split()
    question = " ".join((*signs, "="))
    return question if len(signs) == 2 and set(signs) <= set(SIGNS) and question != parts_of(task)[1] else None


def picture_tasks(policy: pt.TextPolicy, world: Glyphs, mode: Mode | None, count: int = PICTURES) -> list[pt.Task]:
    """Questions on pictures of the training part: the world's, or by a mode the policy's own that can be answered."""
    tasks = world.tasks(count, "train")
    return tasks if mode is None else questions(policy, tasks, to_write(mode), read, pt.mix(world.seed, "questions"))


def picture_arm(mode: Mode | None = None, labels: bool = False, rate: float = RATE) -> pt.Arm:
    """GRPO by the majority, on given questions or on the policy's own, or by labels."""

    def build_recipe(lab: pt.Lab) -> pt.Recipe:
        return recipe(
            pt.each(glyphs.is_right) if labels else majority(glyphs.answer), reference=lab.policy.frozen_copy()
        )

    return pt.trial(
        drawn_numbers,
        build_recipe,
        picture_measures,
        steps=STEPS,
        per_step=PER_STEP,
        lr=rate,
        size=PICTURE_SIZE,
        tasks=lambda lab: picture_tasks(lab.policy, lab.world, mode),
    )


def picture_measures(lab: pt.Lab) -> pt.Measures:
    tasks = lab.world.tasks(lab.budget.items(150), "test", held_out=True)
    return measures(lab, tasks, pt.each(glyphs.is_right), glyphs.answer, pt.mix(lab.seed, "test"))


def imitate(lab: pt.Lab) -> pt.Measures:
    """From as many pictures, samples and optimizer steps as the vote takes."""
    tasks = lab.world.tasks(lab.budget.items(PICTURES), "train")
    learn_majority(lab.policy, tasks, glyphs.answer, SAMPLES, lab.seed, steps=lab.budget.steps(STEPS), lr=RATE)
    return picture_measures(lab)


ARMS = {
    "base": text_arm(None, True),
    "majority": text_arm(False, True),
    "labels": text_arm(True, True),
    "weak base": text_arm(None, False),
    "weak, majority": text_arm(False, False),
    "weak, labels": text_arm(True, False),
    "pictures, base": pt.trial(drawn_numbers, None, picture_measures, size=PICTURE_SIZE),
    "pictures, majority": picture_arm(),
    "pictures, labels": picture_arm(labels=True),
    "pictures, in-context questions": picture_arm("in-context"),
    "pictures, direct questions": picture_arm("direct"),
    "pictures, majority, thrice the rate": picture_arm(rate=3 * RATE),
    "pictures, LMSI": pt.trial(drawn_numbers, None, imitate, size=PICTURE_SIZE),
}
CLAIMS = pt.claims("""
    voting improves the model without labels
        paper: 49.5 to 53.2 on average; here by at least 0.1
        mean@1: majority > base + 0.1
    voting comes close to training with labels
        paper: 53.2 against 53.2 with labels on MMR1; here within 0.1
        mean@1 in [0, 1]: majority > labels - 0.1
    a wrong majority teaches wrong answers
        paper: 49.5 to 44.1 on hard data
        mean@1: weak base > weak, majority
    agreement rises even where the majority is wrong
        paper: majority reward 0.5 to 0.8
        agreement: weak, majority > weak base
    voting narrows the answers
        paper: semantic entropy falls
        semantic entropy: majority < base
    voting loses coverage
        paper: pass@10 80.0 to 72.5
        pass@10 in [0, 1]: base > majority
    labels help where the majority is wrong
        ours: the same base model with labels: it can be taught
        mean@1: weak, labels > weak base
    on pictures, voting improves the model without labels
        paper: 49.5 to 53.2 on average; here by at least 0.1
        mean@1: pictures, majority > pictures, base + 0.1
    on pictures, voting comes close to training with labels
        paper: 53.2 against 53.2 with labels on MMR1; here within 0.1
        mean@1: pictures, majority > pictures, labels - 0.1
    on pictures, voting loses coverage
        paper: pass@10 80.0 to 72.5
        pass@10 in [0, 1]: pictures, base > pictures, majority
    questions that the model writes in context do as well as the originals
        paper: synthetic questions 51.8 to 52.7 against 51.2 to 53.2 with the originals; here within 0.05
        mean@1: pictures, in-context questions > pictures, majority - 0.05
    questions that the model writes from the picture alone do as well as the originals
        paper: 52.32/52.67/52.16 with direct questions; here within 0.05
        mean@1: pictures, direct questions > pictures, majority - 0.05
    voting beats imitating the majority's replies
        paper: LMSI scores lower in the paper's table
        mean@1: pictures, majority > pictures, LMSI
    a higher learning rate turns the vote wrong
        ours: three times the learning rate, which training with labels withstands
        mean@1: pictures, majority > pictures, majority, thrice the rate
""")
HEADLINE = pt.Headline("voting improves the model without labels")
SMOKE = pt.Smoke("""
    laptop
    laptop --no-reliable
    laptop --labels
    pictures --own-questions direct
    pictures --labels
    train --data {questions} --max-new 6 --held-out {questions}
    train --data {drawings} --image image --max-new 6 --min-pixels 64 --model {qwen3_vl}
""")
