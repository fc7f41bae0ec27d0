"""MM-UPT: unsupervised post-training by majority vote (arXiv:2505.22453), its reward on text.

GRPO with one change: nobody knows the answer, so the one that most samples agree on stands in for it. A task's truth is
never looked at. Where the majority is right more often than a sample, this approaches training with labels; where it is
wrong, the policy agrees on the wrong answer ever more.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from posttrain.advantage import normalised
from posttrain.claim import Claim
from posttrain.core import Group, Reward, Score
from posttrain.evaluation import Evaluation, evaluate
from posttrain.grade.text import final, normal
from posttrain.grade.verify import equivalent, last_boxed
from posttrain.kl import k3, kl_to_reference
from posttrain.loss import clipped, token_mean, total
from posttrain.measure import majority_at_k, mean_pass_at_k
from posttrain.options import ModelOptions, RunOptions, TaskOptions
from posttrain.policy.text import TextPolicy
from posttrain.recipe import Part, Recipe
from posttrain.reward import each
from posttrain.run import Session
from posttrain.step import practised, train
from posttrain.world.habits import Habits, answer, right
from posttrain.world.words import Size, base

Answer = Callable[[str], str | None]  # a reply's text -> its answer, or None
Same = Callable[[str, str], bool]


def clusters(answers: Sequence[str | None], same: Same = str.__eq__) -> list[int | None]:
    """[G] the cluster of each answer, by equivalence and not by spelling; None for a missing one.

    Equivalence is made transitive: what two answers share with a third joins them (union-find).
    """
    spellings = sorted({a for a in answers if a is not None})
    parent = {a: a for a in spellings}

    def root(a: str) -> str:
        while parent[a] != a:
            a = parent[a]
        return a

    for i, a in enumerate(spellings):
        for b in spellings[:i]:
            if root(a) != root(b) and same(a, b):
                parent[root(a)] = root(b)
    index = {name: i for i, name in enumerate(sorted({root(a) for a in spellings}))}
    return [None if a is None else index[root(a)] for a in answers]


def majority(find: Answer, same: Same = str.__eq__) -> Reward:
    """1 for every sample whose answer is the one that most samples give, by equivalence; 0 for the others.

    A reply without an answer neither votes nor earns: in the release two of them agree on having none. With fewer than
    two answers in a group nobody earns. Of tied clusters the one that came first wins, as released.
    """

    def reward(group: Group) -> list[Score]:
        found = clusters([find(rollout.text) for rollout in group], same)
        votes = Counter(cluster for cluster in found if cluster is not None)
        if votes.total() < 2:
            return [Score(0.0, {"agreement": 0.0}) for _ in group]
        winner, count = votes.most_common(1)[0]
        parts = {"agreement": count / len(group), "semantic_entropy": semantic_entropy(found)}
        return [Score(float(cluster == winner), parts) for cluster in found]

    return reward


def semantic_entropy(found: Sequence[int | None]) -> float:
    """H = -sum p log p over the clusters of a question's answers, in nats; missing answers are one cluster."""
    return -sum(n / len(found) * math.log(n / len(found)) for n in Counter(found).values())


def recipe(reward: Reward, *, kl: float = 0.01, reference: TextPolicy | None = None, samples: int = 10) -> Recipe:
    """GRPO as in EasyR1: clip 0.2/0.3 with the dual clip at 3, token mean, a k3 term of 0.01."""
    loss = clipped(0.2, 0.3, dual=3.0)
    return Recipe(
        reward,
        advantage=normalised,
        loss=total((1.0, loss), (kl, kl_to_reference(k3))) if kl else loss,
        reduce=token_mean,
        samples=samples,
        reference=reference if kl else None,
    )


PARTS: Mapping[str, Part] = {
    "majority": lambda plain, tiny: replace(
        plain, reward=majority(settled), evaluation=plain.evaluation or plain.reward
    ),
}


def settled(text: str) -> str | None:
    """The answer of a reply in words: what is boxed, or follows its last answer mark, or else its last word."""
    marked = last_boxed(text) or final(text)
    words = normal(marked).split()
    return None if not words else words[-1] if marked == text else " ".join(words)


# ---- at two scales


def laptop(
    labels: bool = False,
    reliable: bool = True,
    run: RunOptions = RunOptions("runs/mm-upt", steps=40, tasks=16, lr=1e-3),
) -> Session:
    """Two habits: a base model whose majority is mostly right, or (`--no-reliable`) mostly wrong."""
    world = world_of(run.seed, reliable)
    policy = base(world, run.seed)
    reward = each(right) if labels else majority(answer)
    made = replace(recipe(reward, reference=policy.frozen()), evaluation=each(right))
    described = {"labels": labels, "reliable": reliable}
    return train(policy, world.training(), made, run.run(**described), held_out=world.held_out())


def full(
    task: TaskOptions,
    model: ModelOptions,
    run: RunOptions = RunOptions("runs/mm-upt", steps=80, tasks=512, lr=1e-6, weight_decay=0.01),
    held_out: str | None = None,
    answers: Literal["math", "text"] = "math",
) -> Session:
    """Your checkpoint on questions without answers; `--held-out` has them, and is graded by `--grade`.

    Ask for an answer that can be found, as published: --prompt "{problem} Please reason step by step, and put your
    final answer within \\boxed{}.", --temperature 0.7 --max-new 2048.

    answers  how replies are compared: boxed mathematics by math-verify, or their text
    """
    policy = model.policy()
    reward = majority(last_boxed, equivalent) if answers == "math" else majority(settled)
    made = replace(recipe(reward, reference=policy.frozen()), evaluation=task.reward(), updates=4)
    tests = task.tasks(held_out, "test") if held_out else []
    tasks = replace(task, answer=None).tasks()
    described = {"answers": answers, **task.describe(), **vars(model)}
    return train(policy, tasks, made, run.run(**described), held_out=tests)


# ---- claims

SAMPLES = 10


def world_of(seed: int, reliable: bool) -> Habits:
    """A base model of about 0.67 whose guesses fail at random, or one of about 0.4 that insists on its mistakes."""
    return Habits(seed, worked=0.7) if reliable else Habits(seed, worked=0.4, stubborn=True)


def measured(policy: TextPolicy, world: Habits, seed: int) -> dict[str, float]:
    found: Evaluation = evaluate({"policy": policy}, world.held_out(), each(right), samples=2 * SAMPLES, seed=seed)
    policy.sampling = replace(policy.sampling, temperature=0.0)
    greedy = evaluate({"policy": policy}, world.held_out(), each(right), seed=seed)
    policy.sampling = replace(policy.sampling, temperature=1.0)
    said = [[answer(rollout.text) for rollout in group] for group in found.groups]
    votes = [majority_at_k([a], [v], SAMPLES) for a, v in zip(said, found.values, strict=True)]
    return {
        "mean@1": found.reward,
        "greedy": greedy.reward,
        "pass@10": mean_pass_at_k(found.values, SAMPLES),
        "majority@10": statistics.fmean(votes),
        "semantic entropy": statistics.fmean(semantic_entropy(clusters(one)) for one in said),
        "agreement": statistics.fmean(max(Counter(one).values()) / len(one) for one in said),
    }


def arm(labels: bool | None, reliable: bool) -> Callable[[int, bool], dict[str, float]]:
    def run(seed: int, quick: bool) -> dict[str, float]:
        world = world_of(seed, reliable)
        policy = base(world, seed, Size(steps=60) if quick else Size())
        if labels is not None:
            made = recipe(each(right) if labels else majority(answer), reference=policy.frozen())
            practised(policy, world.training(), made, steps=4 if quick else 40, per_step=16, lr=1e-3, seed=seed)
        return measured(policy, world, seed)

    return run


ARMS = {
    "base": arm(None, True),
    "majority": arm(False, True),
    "labels": arm(True, True),
    "weak base": arm(None, False),
    "weak, majority": arm(False, False),
    "weak, labels": arm(True, False),
}
CLAIMS = (
    Claim(
        "it improves without labels",
        "49.5 to 53.2 on average; here by 0.1 at least",
        "mean@1",
        "majority",
        "base",
        margin=-0.1,
    ),
    Claim(
        "it approaches labels",
        "53.2 against 53.2 with labels on MMR1",
        "mean@1",
        "majority",
        "labels",
        margin=0.1,
    ),
    Claim(
        "a wrong majority teaches what is wrong",
        "49.5 to 44.1 on hard data",
        "mean@1",
        "weak base",
        "weak, majority",
    ),
    Claim(
        "agreement rises all the same",
        "majority reward 0.5 to 0.8",
        "agreement",
        "weak, majority",
        "weak base",
    ),
    Claim("answers narrow", "semantic entropy falls", "semantic entropy", "majority", "base", larger=False),
    Claim("coverage is lost", "pass@10 80.0 to 72.5", "pass@10", "base", "majority"),
    Claim(
        "labels help where the majority is wrong",
        "the same base with labels: it could be taught",
        "mean@1",
        "weak, labels",
        "weak base",
        control=True,
    ),
)
