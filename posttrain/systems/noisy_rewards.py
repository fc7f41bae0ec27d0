"""Noisy rewards and the reasoning pattern reward, RPR (arXiv:2505.22653).

How much of a reward may be wrong before learning stops? Whole questions are graded upside down with some probability.
How far does a reward for phrases of reasoning go, without any correctness? And it calibrates a noisy reward model: it
is added where the model's score is low, since a good answer may have been missed.
"""

from __future__ import annotations

import statistics
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import posttrain as pt
from posttrain.lab.world.habits import Habits, is_right, shows_work
from posttrain.lab.world.words import base

By = Literal["question", "reply"]


def flipped(reward: pt.Reward, share: float, *, seed: int = 0, by: By = "question") -> pt.Reward:
    """With probability `share`, all samples of a question are graded upside down: 1 - r.

    `by="reply"` flips every sample by a coin of its own, which only makes the reward sparse, says the paper. The coin
    depends on the question and on the samples' seeds: it is tossed anew every time the question is played, and falls
    the same when the same rollouts are graded again. Raises ValueError for a share outside [0, 1], or a reward outside
    it.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"`share={share}`: the probability of a flip is a number in [0, 1]")

    def wrapped(group: pt.Group) -> list[pt.Score | pt.Invalid]:
        out: list[pt.Score | pt.Invalid] = []
        for i, score in enumerate(pt.group_scores(reward, group)):
            if isinstance(score, pt.Score):
                if not 0 <= score.value <= 1:
                    raise ValueError(f"a reward of {score.value:g} cannot be flipped: 1 - r is for rewards in [0, 1]")
                heads = coin(group[0] if by == "question" else group[i], seed) < share
                parts = {**score.parts, "raw": score.value, "flipped": float(heads)}
                score = replace(score, value=1 - score.value if heads else score.value, parts=parts)
            out.append(score)
        return out

    return wrapped


def coin(rollout: pt.Rollout, seed: int) -> float:
    played = rollout.turns[0].ask.seed if rollout.turns else 0
    return pt.mix(seed, "flip", rollout.task.key, played) / 2**63


# As released, with its misspelling.
PHRASES = (
    "i need to", "we need to", "wait", "alternatively", "let me check", "let me see", "let's focus on",
    "we know that", "we can observe ", "we can see ", "let me try", "let's try", "let us try", "first, ",
    "firstly, ", "next, ", "finally, ", "let us first", "let's first", "let me first", "try again", "still not",
    "not working", "not correct", "does not work", "doesn't work", "makes sence", "since we ", "because we ",
    "consequently", "as a result", "thus", "therefore", "hence", "so that", "thereby", "if we", "given there ",
    "for instance ", "for example ",
)  # fmt: skip
OPEN_PHRASES = (
    *PHRASES, "1. ", "2. ", "3. ", "4. ", "step 1 ", "step 2 ", "step 3 ", "step 4 ", "considering the", "i'll",
    "i will", "i would", "i should",
)  # fmt: skip


def pattern(text: str, phrases: Sequence[str] = PHRASES, weight: float = 1 / 20) -> float:
    """The reasoning pattern reward of a reply, in [0, 1].

    Distinct phrases that occur, times `weight` (1/20 as released, 1/40 in the paper), at most 1; less the share of
    20-word sequences that are repeats, and one for every "user: ".
    """
    lower = text.lower()
    found = min(sum(phrase in lower for phrase in phrases) * weight, 1.0)
    return max(found - repeated_share(lower) - lower.count("user: "), 0.0)


def repeated_share(text: str, length: int = 20) -> float:
    """Distinct sequences of `length` words that occur more than once, over all such sequences."""
    words = text.split()
    counts = Counter(tuple(words[i : i + length]) for i in range(len(words) - length + 1))
    return sum(count > 1 for count in counts.values()) / counts.total() if counts else 0.0


def patterned(phrases: Sequence[str] = PHRASES, weight: float = 1 / 20) -> pt.Reward:
    """The pattern reward alone: no correctness."""
    return pt.each(lambda rollout: pattern(rollout.text, phrases, weight))


def calibrated(judge: pt.Reward, patterns: pt.Reward, *, threshold: float = 0.5, weight: float = 0.1) -> pt.Reward:
    """The judge's score; below `threshold`, raised by `weight` times the pattern reward, to at most 1."""

    def wrapped(group: pt.Group) -> list[pt.Score | pt.Invalid]:
        out: list[pt.Score | pt.Invalid] = []
        for score, found in zip(pt.group_scores(judge, group), pt.group_scores(patterns, group), strict=True):
            if isinstance(score, pt.Score) and isinstance(found, pt.Score):
                raised = min(1.0, score.value + weight * found.value) if score.value < threshold else score.value
                score = replace(score, value=raised, parts={**score.parts, "judge": score.value, "rpr": found.value})
            out.append(score)
        return out

    return wrapped


class Switched:
    """`early` for the first `groups` groups, then `late`: RPR as a warm-up before correctness. Checkpoints hold the
    count.
    """

    def __init__(self, early: pt.Reward, late: pt.Reward, groups: int):
        self.early, self.late, self.groups, self.seen = early, late, groups, 0

    def __call__(self, group: pt.Group) -> Sequence[pt.Score | pt.Invalid]:
        self.seen += 1
        return (self.early if self.seen <= self.groups else self.late)(group)

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.seen = state["seen"]


def recipe(reward: pt.Reward, raw: pt.Reward, samples: int = 4) -> pt.Recipe:
    """GRPO on the noisy reward; held-out tasks are graded by the raw one."""
    return pt.Recipe(
        reward, advantage=pt.normalised, loss=pt.clipped(), reduce=pt.sequence_mean, samples=samples, evaluation=raw
    )


CRITIC_UPDATES = 4  # minibatches of 128 rollouts in a step of 128 prompts x 4, which the actor takes whole


def ppo_recipe(
    reward: pt.Reward, policy: pt.TextPolicy, raw: pt.Reward, *, samples: int = 4, critic_warmup: int = 20
) -> pt.Recipe:
    """PPO as published: gamma 1, lambda 1, whitened advantages, entropy 0.001, four steps of the critic for one."""
    critic = pt.Critic(policy, lr=5e-6, clip=0.5)
    return pt.Recipe(
        reward,
        advantage=pt.Gae(critic, lam=1.0, warmup=critic_warmup, updates=CRITIC_UPDATES),
        across=pt.whitened,
        loss=pt.total((1.0, pt.clipped()), (0.001, pt.entropy_bonus)),
        samples=samples,
        evaluation=raw,
    )


PARTS: Mapping[str, pt.Part] = {
    "flipped_20": lambda plain, tiny: replace(
        plain, reward=flipped(plain.reward, 0.2), evaluation=plain.evaluation or plain.reward
    ),
    "flipped_40": lambda plain, tiny: replace(
        plain, reward=flipped(plain.reward, 0.4), evaluation=plain.evaluation or plain.reward
    ),
    "patterns": lambda plain, tiny: replace(
        plain, reward=calibrated(plain.reward, patterned()), evaluation=plain.reward
    ),
}


# ---- at two scales

Kind = Literal["flips", "patterns", "judge", "calibrated"]
WORKING = patterned(("w ",), 1.0)  # in the tiny world, reasoning is one word


def laptop(
    kind: Kind = "flips",
    share: float = 0.4,
    run: pt.Run = pt.Run("runs/noisy-rewards", steps=120, tasks=64, lr=1e-3),
) -> pt.Session:
    """Two habits: a base model that can reason and seldom does.

    kind   what makes the reward noisy: flips of it; patterns of reasoning in its place; a judge; the judge, calibrated
    share  of rewards that are flipped, or of worked answers that the judge misses
    """
    world = Habits(run.seed)
    made = recipe(tiny_reward(kind, share, run.seed), pt.each(is_right))
    return pt.train(base(world, run.seed), world.training_tasks(), made, run, held_out=world.held_out_tasks())


def tiny_reward(kind: Kind, share: float, seed: int) -> pt.Reward:
    judge = pt.each(lambda rollout: hasty_score(rollout, share, seed))
    kinds: dict[str, pt.Reward] = {
        "flips": flipped(pt.each(is_right), share, seed=seed),
        "patterns": WORKING,
        "judge": judge,
        "calibrated": calibrated(judge, WORKING),
    }
    return kinds[kind]


def hasty_score(rollout: pt.Rollout, share: float, seed: int) -> float:
    """Of a judge that misses `share` of the right answers that were worked out, and likes a tenth of wrong guesses.

    Its mistakes belong to the text. Patterns can help such a judge: most of what it misses is good reasoning.
    """
    drawn = zlib.crc32(f"{seed} {rollout.task.key} {rollout.text}".encode()) / 2**32
    if is_right(rollout):
        return 0.2 if shows_work(rollout) and drawn < share else 1.0
    return 0.8 if not shows_work(rollout) and drawn < 0.1 else 0.0


def learn(
    task: pt.TaskOptions,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    run: pt.Run = pt.Run("runs/noisy-rewards", steps=400, tasks=128, lr=1e-6),
    kind: Kind = "flips",
    share: float = 0.4,
    judge: str | None = None,
    samples: int = 4,
    critic_warmup: int = 20,
    held_out: tuple[str, ...] = (),
) -> pt.Session:
    """PPO as published, on your checkpoint, data and grader: gamma 1, lambda 1, whitened advantages, a critic that
    takes four steps for one of the policy and is warmed up.

    Give `max_new=4096` for the published length.

    kind           what makes the reward noisy: flips of it; patterns of reasoning in its place; a judge; the judge,
                   calibrated
    share          probability of a flip, for the kind flips
    judge          for the kinds judge and calibrated: a sequence classifier, whose scores of 0 to 1 are the reward: a
                   Hub id, a folder, or the address of a server (posttrain serve --scorer reward-model=FOLDER)
    samples        samples of a task
    critic_warmup  first steps, in which only the critic learns
    held_out       data of tasks that are only evaluated, by the grader itself: FILE, or NAME=FILE
    """
    if (kind in ("judge", "calibrated")) != (judge is not None):
        raise ValueError(f"`kind={kind}`: `judge`, a sequence classifier, goes with the kinds judge and calibrated")
    policy, raw = model.policy(), task.reward()
    reward: pt.Reward = flipped(raw, share, seed=run.seed) if kind == "flips" else patterned()
    if judge:
        loaded = pt.reward_of(judge, device=model.device)
        reward = calibrated(loaded, patterned(OPEN_PHRASES)) if kind == "calibrated" else loaded
    made = ppo_recipe(reward, policy, raw, samples=samples, critic_warmup=critic_warmup)
    return scale.train(policy, task.tasks(), made, run, held_out=task.tests(held_out))


STAGES = {"laptop": laptop, "train": learn}
SMOKE = pt.Smoke("""
    laptop
    laptop --kind patterns
    laptop --kind calibrated --share 0.6
    train --data {questions} --max-new 6 --held-out {questions}
    train --data {questions} --max-new 6 --kind calibrated --judge {classifier}
""")


# ---- claims

STEPS, EVERY, SAMPLES = 120, 10, 4  # of training; between evaluations; samples of a held-out question


def arm(reward: Callable[[int], pt.Reward]) -> pt.Arm:
    """The arm that trains on the reward of a seed."""

    def watch(lab: pt.Lab, step: int) -> pt.Metrics | None:
        if step % EVERY == 0 or step == lab.budget.steps(STEPS):
            found = lab.evaluate(lab.world.held_out_tasks(), pt.each(is_right), samples=SAMPLES)
            lab.notes.setdefault("curve", []).append(found.reward)

    def measures(lab: pt.Lab) -> pt.Measures:
        curve: list[float] = lab.notes["curve"]
        return {"start": curve[0], "accuracy": curve[-1], "peak": max(curve)}

    options = {"steps": STEPS, "per_step": 64, "lr": 1e-3}
    return pt.trial(Habits, lambda lab: recipe(reward(lab.seed), pt.each(is_right)), measures, **options, watch=watch)


def base_measures(lab: pt.Lab) -> pt.Measures:
    found = lab.evaluate(lab.world.held_out_tasks(), pt.each(is_right), samples=16)
    worked = statistics.fmean(map(shows_work, found.rollouts))
    return {"accuracy": found.reward, "pass@16": pt.measure.mean_pass_at_k(found.values, 16), "works": worked}


SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
ARMS = {
    "base": pt.trial(Habits, None, base_measures),
    **{
        f"flips {share:.0%}": arm(lambda seed, share=share: flipped(pt.each(is_right), share, seed=seed))
        for share in SHARES
    },
    "flips 40% by reply": arm(lambda seed: flipped(pt.each(is_right), 0.4, seed=seed, by="reply")),
    "patterns only": arm(lambda seed: WORKING),
    "judge": arm(lambda seed: tiny_reward("judge", 0.6, seed)),
    "judge, calibrated": arm(lambda seed: tiny_reward("calibrated", 0.6, seed)),
    "judge, calibrated, weight 1": arm(
        lambda seed: calibrated(pt.each(lambda rollout: hasty_score(rollout, 0.6, seed)), WORKING, weight=1.0)
    ),
}
CLAIMS = pt.claims("""
    flipping 40 % of the rewards costs little
        paper: MATH-500 72.0 with 40 % flipped, 75.9 without; here within 0.1
        accuracy in [0, 1]: flips 40% > flips 0% - 0.1
    rewards still teach when 40 % of them are flipped
        paper: MATH-500 72.0, from about 5
        accuracy: flips 40% > base
    flipping 20 % of the rewards costs little
        paper: the curve falls slowly up to 40 %; here within 0.1
        accuracy in [0, 1]: flips 20% > flips 0% - 0.1
    less noise is better: no rewards flipped against 20 %
        paper: accuracy falls as more rewards are flipped
        accuracy in [0, 1]: flips 0% > flips 20%
    less noise is better: 20 % of the rewards flipped against 40 %
        paper: accuracy falls as more rewards are flipped
        accuracy: flips 20% > flips 40%
    rewards teach nothing when half of them are flipped
        paper: training collapses at 50 %
        accuracy: base > flips 50%
    flipping the rewards of single replies hardly matters
        paper: such flips only make the reward sparse; here within 0.1
        accuracy: flips 40% by reply > flips 0% - 0.1
    rewarding patterns alone teaches for a while
        paper: a peak of 70.2 on MATH-500 with no reward for correctness; both peaks are the largest of 13 evaluations
        peak: patterns only > flips 50%
    rewarding patterns alone loses again what it taught
        paper: accuracy declines with endless re-checking; here by more than 0.1
        peak: patterns only > accuracy: patterns only + 0.1
    rewarding patterns calibrates a noisy judge
        paper: a net win of 30 % over the judge alone, at 65 % accuracy
        accuracy in [0, 1]: judge, calibrated > judge
    rewarding patterns with a weight of 1 calibrates a noisy judge
        ours: ten times the paper's weight: tried first, before the paper's own
        accuracy: judge, calibrated, weight 1 > judge
""")
HEADLINE = pt.Headline(
    "flipping 40 % of the rewards costs little",
    "under GRPO with groups of four it costs 0.36 of accuracy; 20 % cost 0.01",
)
