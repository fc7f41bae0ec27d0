"""ActLCD on a laptop: a small model that was told misconceptions, and gates on its decoding."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

import posttrain as pt
from posttrain.decode.decode import Decoding
from posttrain.lab.world.misconceptions import Misconceptions, Questions, conversation, share_right
from posttrain.lab.world.words import Size, base
from posttrain.systems.actlcd.bcq import Bcq
from posttrain.systems.actlcd.features import entropy_column, width
from posttrain.systems.actlcd.gate import Above, Constant, GatePolicy, Net
from posttrain.systems.actlcd.labels import NEITHER, Transitions, labels
from posttrain.systems.actlcd.learning import gate_choices, learn_in_memory, rate, sample_transitions

Learner: TypeAlias = Literal["terminal", "token", "clone"]

TOLD = Size(hidden=64, layers=6, steps=1500, rows=24)
LAYERS = (1, 2)
INPUTS = width("values", len(LAYERS))
HIDDEN, STEPS, PER_STEP, RATE, REFRESH = (128, 64), 1000, 256, 1e-3, 25  # of the gate
GROUPINGS, SAMPLES, CHAINS = 12, 2, 128
ONLINE = pt.Recipe(pt.each(share_right), env=conversation, samples=8)  # of a gate that learns while it plays


def speaker(world: Misconceptions, seed: int, budget: pt.Budget = pt.FULL) -> pt.TextPolicy:
    return base(world, seed, budget.size(TOLD), build=Misconceptions.base_policy)


def training(world: Misconceptions, snowball: bool = False) -> list[pt.Task]:
    facts = world.split[0]
    if snowball:
        return world.chains(facts, "train", GROUPINGS * len(facts) // world.turns)
    return [task for k in range(GROUPINGS) for task in world.sequences(facts, f"train-{k}")]


def held_out(world: Misconceptions, snowball: bool = False) -> list[pt.Task]:
    facts = world.split[1]
    return world.chains(facts, "test", CHAINS) if snowball else world.sequences(facts, "test")


def gate_policy(
    speaker: pt.TextPolicy, gate: nn.Module, *, temperature: float = 0.0, penalty: float = 1.0
) -> GatePolicy:
    return GatePolicy(speaker, gate, Decoding(LAYERS, penalty=penalty), temperature=temperature)


def truth(speaker: pt.TextPolicy, one: pt.Rollout) -> Tensor:
    """[N] the right tokens: of the chain as it should have been."""
    questions: Questions = one.task.truth
    ids = speaker.tokenizer.convert_tokens_to_ids(list(questions.answers))
    return torch.tensor(ids[: one.decisions])


def collect(speaker: pt.TextPolicy, tasks: Sequence[pt.Task], seed: int, *, terminal: bool = True) -> Transitions:
    """What a gate that contrasts at random saw, did and earned."""
    mixed, seed = gate_policy(speaker, Constant(0.5), temperature=1.0), pt.mix(seed, "collected")
    return sample_transitions(
        mixed, tasks, conversation, partial(truth, speaker), samples=SAMPLES, seed=seed, terminal=terminal
    )


def collected_decisions(tasks: Sequence[pt.Task]) -> int:
    """How many transitions `collect` finds; fewer where a snowball ends early."""
    return SAMPLES * sum(len(task.truth.answers) for task in tasks)


# ---- measures


def measures(rollouts: Sequence[pt.Rollout]) -> dict[str, float]:
    """Held out: the share of right facts, of all right answers, of rare and common facts; how often it contrasts."""
    marks: list[tuple[bool, bool]] = []
    for one in rollouts:
        questions: Questions = one.task.truth
        said = (*one.facts, *[""] * (len(questions.answers) - len(one.facts)))
        marks += [(rare, a == b) for rare, a, b in zip(questions.rare, said, questions.answers, strict=True)]
    return {
        "factuality": statistics.fmean(map(share_right, rollouts)),
        "whole sequences": statistics.fmean(share_right(one) == 1.0 for one in rollouts),
        "rare": statistics.fmean([ok for rare, ok in marks if rare] or [0.0]),
        "common": statistics.fmean([ok for rare, ok in marks if not rare] or [0.0]),
        "contrast rate": rate(rollouts),
    }


def within(tasks: list[pt.Task], budget: pt.Budget) -> list[pt.Task]:
    return tasks[: budget.items(len(tasks))]


def answers(
    lab: pt.Lab,
    gate: nn.Module,
    *,
    snowball: bool = False,
    samples: int = 1,
    temperature: float = 0.0,
    penalty: float = 1.0,
) -> list[pt.Rollout]:
    """What the model says to held-out questions with this gate."""
    policy = gate_policy(lab.policy, gate, temperature=temperature, penalty=penalty)
    tests = within(held_out(lab.world, snowball), lab.budget)
    groups = pt.rollout(conversation, tests, {"policy": policy}, samples, pt.mix(lab.seed, "held out"))
    return [one for group in groups for one in group]


# ---- arms


def arm(measure: Callable[[pt.Lab], pt.Measures]) -> pt.Arm:
    """The model is the same in all arms; a gate over it is made and measured."""
    return pt.trial(Misconceptions, None, measure, policy=speaker)


def fixed(contrast: float, snowball: bool = False) -> pt.Arm:
    """Always the one action: greedy, or DoLa."""

    def measure(lab: pt.Lab) -> pt.Measures:
        gate = Constant(contrast)
        plain = measures(answers(lab, gate, snowball=snowball))
        penalised = measures(answers(lab, gate, snowball=snowball, penalty=1.2))
        return plain | {"factuality at 1.2": penalised["factuality"]}

    return arm(measure)


def bcq(learner: Learner, snowball: bool = False) -> pt.Arm:
    """Learnt from the collected transitions; beside it, a gate that contrasts as often, anywhere."""

    def measure(lab: pt.Lab) -> pt.Measures:
        gate = learnt_gate(lab, learner, snowball)
        found = measures(answers(lab, gate, snowball=snowball))
        chance = Constant(found["contrast rate"])
        random = measures(answers(lab, chance, snowball=snowball, samples=8, temperature=1.0))
        penalised = measures(answers(lab, gate, snowball=snowball, penalty=1.2))
        return found | {
            "factuality at 1.2": penalised["factuality"],
            "random gate": random["factuality"],
            "random gate, contrast rate": random["contrast rate"],
        }

    return arm(measure)


def learnt_gate(lab: pt.Lab, learner: Learner, snowball: bool) -> Bcq:
    tasks = within(training(lab.world, snowball), lab.budget)
    data = collect(lab.policy, tasks, lab.seed, terminal=learner != "token")
    torch.manual_seed(pt.mix(lab.seed, "gate") % 2**32)
    gate = Bcq(INPUTS, HIDDEN, cloned=learner == "clone")
    gate.view.fit(data.features)
    steps = lab.budget.steps(STEPS)
    learn_in_memory(gate, data, steps=steps, per_step=PER_STEP, lr=RATE, seed=lab.seed, refresh=REFRESH)
    return gate


def by_entropy(lab: pt.Lab) -> pt.Measures:
    """The best threshold on the mature entropy, above or below, on the facts that gates are trained on."""
    data = collect(lab.policy, within(training(lab.world), lab.budget), lab.seed, terminal=False)
    known = data.label != NEITHER
    column = entropy_column(len(LAYERS))
    values, needed = data.features[known, column], data.label[known] == 1
    best = (-1.0, 0.0, True)
    for threshold in values.quantile(torch.linspace(0, 1, 101)).tolist():
        share = ((values > threshold) == needed).float().mean().item()
        best = max(best, (share, threshold, True), (1 - share, threshold, False))
    return measures(answers(lab, Above(column, best[1], best[2])))


def oracle(lab: pt.Lab) -> pt.Measures:
    """Of what both actions would say after greedy answers, the right one where there is one."""
    label = [
        labels(
            torch.cat([t.plain for t in gate_choices(one)]),
            torch.cat([t.other for t in gate_choices(one)]),
            truth(lab.policy, one),
        )
        for one in answers(lab, Constant(0.0))
    ]
    flat = torch.cat(label)
    return {
        "factuality": (flat != NEITHER).float().mean().item(),
        "contrast rate": (flat == 1).float().mean().item(),
    }


def online(lab: pt.Lab) -> pt.Measures:
    """Ours: the gate trained while it plays, by GRPO on the share of right facts; nobody labels a token."""
    torch.manual_seed(pt.mix(lab.seed, "gate") % 2**32)
    tasks, mixed = within(training(lab.world), lab.budget), gate_policy(lab.policy, Constant(0.5), temperature=1.0)
    first = pt.rollout(conversation, tasks[:64], {"policy": mixed}, 1, pt.mix(lab.seed, "first"))
    gate = Net(INPUTS, HIDDEN)
    gate.view.fit(torch.cat([trace.features for group in first for trace in gate_choices(group[0])]))
    steps, per_step = lab.budget.steps(60), lab.budget.items(16)
    playing = gate_policy(lab.policy, gate, temperature=1.0)
    pt.train_in_memory(playing, tasks, ONLINE, steps=steps, per_step=per_step, lr=3e-3, seed=lab.seed)
    return measures(answers(lab, gate))


PICTURE = "factuality"

ARMS = {
    "greedy": fixed(0.0),
    "DoLa": fixed(1.0),
    "entropy gate": arm(by_entropy),
    "BC only": bcq("clone"),
    "ActLCD": bcq("terminal"),
    "ActLCD, token reward": bcq("token"),
    "GRPO gate": arm(online),
    "oracle": arm(oracle),
    "greedy, snowball": fixed(0.0, snowball=True),
    "DoLa, snowball": fixed(1.0, snowball=True),
    "BC only, snowball": bcq("clone", snowball=True),
    "ActLCD, snowball": bcq("terminal", snowball=True),
}
CLAIMS = pt.claims("""
    DoLa surfaces facts that the model suppresses
        paper: premise: contrasting layers raises factuality where the model knows better
        rare: DoLa > greedy
    DoLa damages answers that greedy decoding has right
        paper: premise: an indiscriminate contrast costs correct tokens
        common: greedy > DoLa
    the gate beats greedy decoding
        paper: TruthfulQA +19.81, StrategyQA +7.51
        factuality: ActLCD > greedy
    the gate beats DoLa
        paper: better than DoLa on five benchmarks
        factuality: ActLCD > DoLa
    where the gate contrasts matters, not how often
        ours: against a gate that contrasts at random, equally often
        factuality: ActLCD > random gate: ActLCD
    the gate beats greedy decoding at an equal repetition penalty
        ours: the paper compares greedy at 1.0 with ActLCD at 1.2; here both have 1.2
        factuality at 1.2: ActLCD > greedy
    reinforcement improves on cloning
        ours: a reward-aware classifier against its behaviour-cloning classifier alone
        factuality: ActLCD > BC only
    the gate beats a threshold on the entropy
        ours: the simplest gate, tuned on the same facts
        factuality: ActLCD > entropy gate
    a sequence-level reward is as good as token-level rewards
        paper: the reward of the sequence against the same sum paid token by token; within 0.02
        factuality: ActLCD > ActLCD, token reward - 0.02
    the gate comes close to an oracle
        ours: the oracle has every fact right that one of the two actions has right; within 0.1
        factuality: ActLCD > oracle - 0.1
    learning the gate offline is as good as learning it online
        ours: the same gate by GRPO on right facts, without labels: 30,720 decisions, 6,144 offline; within 0.03
        factuality: ActLCD > GRPO gate - 0.03
    the gate beats greedy decoding where mistakes snowball
        paper: long-form answers: LongFact +3.30; here an answer is the next question's subject
        factuality: ActLCD, snowball > greedy, snowball
    the gate beats DoLa where mistakes snowball
        paper: long-form answers; here an answer is the next question's subject
        factuality: ActLCD, snowball > DoLa, snowball
    reinforcement improves on cloning where mistakes snowball
        ours: a sequence-level reward should know that an early mistake costs more
        factuality: ActLCD, snowball > BC only, snowball
""")
HEADLINE = pt.Headline("the gate beats greedy decoding")
# decode needs the gate of a run: tests/test_actlcd_full.py
# Stage decode needs the gate of a run: tests/test_actlcd_full.py.
SMOKE = pt.Smoke(
    """
    laptop
    laptop --learner clone --snowball
    laptop --learner token
    laptop --learner grpo
    train --data {questions} --max-new 6 --layers high --held-out {questions}
    train --data {questions} --max-new 6 --reward grader --features ids --learner clone
    """,
    {"lab.TOLD": Size(hidden=64, layers=6, steps=20, rows=8), "lab.GROUPINGS": 1, "lab.CHAINS": 8},
)
