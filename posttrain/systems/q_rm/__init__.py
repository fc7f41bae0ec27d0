"""Q-RM: a token-level Q-function reward model, from preference pairs alone (arXiv:2505.23363).

A discriminative policy phi = softmax Z is learnt from pairs, apart from the policy that speaks: the mean of Z over the
chosen reply must exceed that over the rejected one. In maximum-entropy terms Z is the optimal Q up to a constant of the
state, so that Z of each token can be its advantage, in REINFORCE or in PPO.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from posttrain.advantage import by_decision, decision_rewards, raw, whitened
from posttrain.cli.options import ModelOptions, RunOptions, TaskOptions
from posttrain.core import Group, Invalid, Reward, Score, Task
from posttrain.data import Pair, read_pairs
from posttrain.evaluation import evaluate
from posttrain.kl import kl_in_reward
from posttrain.lab.claim import Claim
from posttrain.lab.world.lookup import Lookup, right, token_marks
from posttrain.lab.world.words import Size, base
from posttrain.loss import clipped, likelihood, token_mean
from posttrain.measure import auc
from posttrain.policy.text import TextPolicy
from posttrain.policy.value import Critic, Gae
from posttrain.recipe import Part, Recipe
from posttrain.reward import each
from posttrain.run.session import Session
from posttrain.seeding import mix
from posttrain.step import train, train_in_memory
from posttrain.systems.q_rm.model import PER_STEP, RATE, Head, QModel, by_token, preference, taught_by_pairs
from posttrain.systems.q_rm.rivals import dpo_reward, outcome_model, process_model, truth


def scaled(credit: list[Tensor]) -> list[Tensor]:
    """The step's credit in its standard deviations, without taking off the mean: as released for REINFORCE."""
    std = torch.cat(credit).std(unbiased=False).clamp(min=1e-6)
    return [values / std for values in credit]


class TokenCritic(Gae):
    """PPO as released: A_t = r_t / std(r) - 0.01 V_t / std(V), the return is r_t. V reads the state before the token.

    Both deviations are of the whole step, so that its `across` must be the recipe's.
    """

    def __init__(self, critic: Critic, weight: float = 0.01):
        super().__init__(critic, gamma=0.0, lam=0.0)
        self.weight = weight

    def __call__(self, group: Group, scores: list[Score]) -> list[Tensor]:
        super().__call__(group, scores)  # keeps rows, returns and values for `across` and `learn`
        return [decision_rewards(rollout, score) for rollout, score in zip(group, scores, strict=True)]

    def across(self, credit: list[Tensor]) -> list[Tensor]:
        values = [value for _, _, value in self.seen]
        spread = torch.cat(values).std(unbiased=False).clamp(min=1e-6)
        return [a - self.weight * v / spread for a, v in zip(scaled(credit), values, strict=True)]


def recipe(reward: Reward, *, centre: bool = True, samples: int = 1, updates: int = 1) -> Recipe:
    """REINFORCE on token rewards. `centre=False` is the release, which only divides by the deviation."""
    return Recipe(
        reward,
        advantage=by_decision,
        across=whitened if centre else scaled,
        loss=likelihood,
        reduce=token_mean,
        samples=samples,
        updates=updates,
    )


def ppo_recipe(reward: Reward, critic: Critic, reference: TextPolicy, kl: float = 0.01, updates: int = 4) -> Recipe:
    """PPO on token rewards with a KL of 0.01 in the reward (the release takes its absolute value), no GAE."""
    token = TokenCritic(critic)
    return Recipe(
        kl_in_reward(reward, reference, kl),
        advantage=token,
        across=token.across,
        loss=clipped(),
        reduce=token_mean,
        samples=1,
        updates=updates,
    )


PARTS: Mapping[str, Part] = {}


# ---- at two scales

MINIBATCH = 8  # prompts of an optimizer step, of a chunk of 3072


def laptop(whole: bool = False, run: RunOptions = RunOptions("runs/q-rm", steps=100, tasks=12, lr=3e-4)) -> Session:
    """Long answers that are right token by token: pairs from the base model, a Q model, REINFORCE on its scores.

    whole  pay every token the mean of the scores, and not each its own
    """
    world = Lookup(run.seed)
    policy = base(world, run.seed, TINY)
    model = q_model(policy, pairs_of(policy, world, PAIRS, run.seed), run.seed, STEPS)
    made = replace(recipe(by_token(model.valued, whole=whole)), evaluation=each(right))
    tests = world.problems(64, "test")
    return train(policy, world.problems(2000, "training"), made, run.run(whole=whole), held_out=tests)


def full(
    task: TaskOptions,
    model: ModelOptions,
    pairs: str,
    run: RunOptions = RunOptions("runs/q-rm", steps=12, tasks=3072, lr=1e-6),
    method: Literal["reinforce", "ppo"] = "reinforce",
    backbone: str | None = None,
    head: Head = "scalar",
    pair_steps: int = 500,
    pair_lr: float = 1e-5,
    held_out: str | None = None,
) -> Session:
    """Your checkpoint on questions, under a Q model learnt from `--pairs` (prompt, chosen, rejected).

    pairs       JSONL, CSV or Parquet file, or dataset, of the pairs that teach the Q model
    method      REINFORCE on the scores, or PPO with a critic
    backbone    checkpoint of the Q model, the policy's own if not given; it must have the policy's tokenizer
    head        a score of the state that has read the token (scalar, as released), or of every token before it
    pair_steps  steps of 16 pairs that teach the Q model
    pair_lr     their learning rate
    held_out    data of tasks that are only evaluated, by --grade
    """
    policy = model.policy()
    body = ModelOptions(backbone, template=model.template, device=model.device).policy() if backbone else policy
    if backbone and body.tokenizer.get_vocab() != policy.tokenizer.get_vocab():
        raise ValueError(f"--backbone {backbone}: its tokenizer is not the policy's, so it cannot score its tokens")
    torch.manual_seed(mix(run.seed, "q") % 2**32)  # a resumed run learns the same Q model again
    q = QModel(body, head)
    found = taught_by_pairs(
        q, read_pairs(pairs), steps=pair_steps, per_step=16, lr=pair_lr, seed=run.seed, loss=preference()
    )
    print(f"Q model: pair accuracy {found['accuracy']:.3f} over the last tenth of {pair_steps} steps")
    reward = by_token(q.valued)
    updates = max(run.tasks // MINIBATCH, 1)
    made = recipe(reward, centre=False, updates=updates)
    if method == "ppo":
        made = ppo_recipe(reward, Critic(policy, lr=1e-5), policy.frozen(), updates=updates)
    made = replace(made, evaluation=task.reward())
    described = {"pairs": pairs, "method": method, "backbone": backbone, "head": head, **task.describe(), **vars(model)}
    tests = task.held_out(held_out)
    return train(policy, task.tasks(), made, run.run(**described), held_out=tests)


# ---- claims

TINY = Size(hidden=48, layers=2, steps=1200)
PAIRS, STEPS = 2700, 400
EVERY, GOAL = 10, 0.75


def pairs_of(policy: TextPolicy, world: Lookup, count: int, seed: int) -> list[Pair]:
    """One right and one wrong sample of a question, for as many questions as have both."""
    found = evaluate({"policy": policy}, world.problems(count, "pairs"), each(right), samples=4, seed=seed)
    pairs = []
    for group, values in zip(found.groups, found.values, strict=True):
        good = [rollout.text for rollout, value in zip(group, values, strict=True) if value]
        bad = [rollout.text for rollout, value in zip(group, values, strict=True) if not value]
        if good and bad:
            pairs.append(Pair(group[0].task.prompt, good[0], bad[0]))
    return pairs


def q_model(policy: TextPolicy, pairs: Sequence[Pair], seed: int, steps: int) -> QModel:
    torch.manual_seed(mix(seed, "q") % 2**32)
    model = QModel(policy)
    taught_by_pairs(model, pairs, steps=steps, per_step=PER_STEP, lr=RATE, seed=seed, loss=preference())
    return model


def q_reward(whole: bool) -> Callable[..., Reward]:
    def build(policy: TextPolicy, pairs: Sequence[Pair], world: Lookup, seed: int, steps: int) -> Reward:
        return by_token(q_model(policy, pairs, seed, steps).valued, whole=whole)

    return build


def arm(build: Callable[..., Any], tokens: bool = True) -> Callable[[int, bool], dict[str, float]]:
    def run(seed: int, quick: bool) -> dict[str, float]:
        world = Lookup(seed, length=6) if quick else Lookup(seed)
        policy = base(world, seed, Size(steps=60) if quick else TINY)
        pairs = pairs_of(policy, world, 120 if quick else PAIRS, seed)
        if quick and not pairs:
            pairs = [Pair(t.prompt, t.truth, "y0") for t in world.problems(40, "pairs")]
        reward = build(policy, pairs, world, seed, 4 if quick else STEPS)
        tests, curve, steps = world.problems(16 if quick else 64, "test"), {}, 10 if quick else 120
        found = {"token AUC": token_auc(policy, reward, tests, seed)} if tokens else {}

        def watch(step: int) -> None:
            if step % EVERY == 0:
                curve[step] = evaluate({"policy": policy}, tests, each(right), samples=4, seed=seed).reward

        made = recipe(reward)
        made = made if tokens else Recipe(
            reward, advantage=raw, across=whitened, loss=likelihood, reduce=token_mean, samples=1
        )  # fmt: skip
        train_in_memory(
            policy, world.problems(2000, "training"), made, steps=steps, per_step=12, lr=3e-4, seed=seed, watch=watch
        )
        reached = next((step for step, value in curve.items() if value >= GOAL), steps + EVERY)
        return {
            "start": curve[0],
            "accuracy at 60": curve.get(60, curve[steps]),
            "accuracy at 100": curve.get(100, curve[steps]),
            "accuracy at 120": curve[steps],
            "steps to 0.75": float(reached),
            **found,
        }

    return run


def token_auc(policy: TextPolicy, reward: Reward, tests: Sequence[Task], seed: int) -> float:
    """Of fresh samples: the chance that a right token is paid more than a wrong one."""
    found = evaluate({"policy": policy}, tests, each(right), samples=4, seed=seed)
    paid, marks = [], []
    for group in found.groups:
        for rollout, score in zip(group, reward(group), strict=True):
            assert not isinstance(score, Invalid)
            assert score.decisions is not None
            paid += score.decisions[:-1].tolist()
            marks += token_marks(rollout)[:-1].bool().tolist()
    return auc(paid, marks) if 0 < sum(marks) < len(marks) else 0.5


ARMS = {
    "Q-RM": arm(q_reward(whole=False)),
    "Q-RM, sequence": arm(q_reward(whole=True)),
    "DPO-RM": arm(dpo_reward),
    "process RM": arm(process_model),
    "outcome RM": arm(outcome_model, tokens=False),
    "truth": arm(truth, tokens=False),
}
CLAIMS = (
    Claim(
        "Q-RM's credit for tokens learns faster than its score for the sequence",
        "Q-values as token advantages: the control that isolates credit assignment",
        "steps to 0.75",
        "Q-RM",
        "Q-RM, sequence",
        larger=False,
    ),
    Claim(
        "Q-RM's credit for tokens is more accurate after 60 steps than its score for the sequence",
        "Q-values as token advantages, at equal steps",
        "accuracy at 60",
        "Q-RM",
        "Q-RM, sequence",
    ),
    Claim(
        "Q-RM beats an outcome reward model",
        "GSM8K 72.2 against 66.3; at this size because an outcome model verifies poorly, not for its credit assignment",
        "accuracy at 100",
        "Q-RM",
        "outcome RM",
        control=True,
    ),
    Claim("Q-RM beats DPO-RM", "72.2 against 68.7", "accuracy at 100", "Q-RM", "DPO-RM"),
    Claim(
        "Q-RM is as good as a token-level process model",
        "the paper compares with a step-level one; this one is told which tokens are wrong; within 0.05",
        "accuracy at 100",
        "Q-RM",
        "process RM",
        margin=0.05,
    ),
    Claim("Q-RM finds the wrong tokens", "from pairs alone; here with an AUC above 0.95", "token AUC", "Q-RM", 0.95),
    Claim(
        "Q-RM beats the true outcome as a reward",
        "0 or 1 for the whole answer, at equal steps",
        "accuracy at 100",
        "Q-RM",
        "truth",
        control=True,
    ),
)
