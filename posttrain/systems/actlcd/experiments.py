"""The arms of the claims: a small model that was told misconceptions, and gates over its decoding."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from posttrain.core import Rollout, Task
from posttrain.decode.decode import Decoding
from posttrain.episode import rollout
from posttrain.lab.world.misconceptions import Misconceptions, Questions, conversation, right
from posttrain.lab.world.words import Size, base
from posttrain.policy.text import TextPolicy
from posttrain.recipe import Recipe
from posttrain.reward import each
from posttrain.seeding import mix
from posttrain.step import train_in_memory
from posttrain.systems.actlcd.bcq import Bcq
from posttrain.systems.actlcd.features import entropy_column
from posttrain.systems.actlcd.gate import Above, Constant, GatePolicy, Net
from posttrain.systems.actlcd.labels import NEITHER, Transitions, labels
from posttrain.systems.actlcd.learning import learned, played, rate, seen

Arm: TypeAlias = Callable[[int, bool], dict[str, float]]
Learner: TypeAlias = Literal["terminal", "token", "clone"]

TOLD = Size(hidden=64, layers=6, steps=1500, rows=24)
HOW = Decoding(layers=(1, 2))
HIDDEN, STEPS, PER_STEP, RATE, REFRESH = (128, 64), 1000, 256, 1e-3, 25  # of the gate
GROUPINGS, SAMPLES, CHAINS = 12, 2, 128


@dataclass(frozen=True)
class Laboratory:
    """One seed's world, its model, and the tasks on either side of the split of facts."""

    seed: int
    quick: bool = False
    snowball: bool = False

    @cached_property
    def world(self) -> Misconceptions:
        return Misconceptions(self.seed)

    @cached_property
    def speaker(self) -> TextPolicy:
        size = replace(TOLD, steps=30) if self.quick else TOLD
        return base(self.world, self.seed, size, build=Misconceptions.taught)

    def training(self) -> list[Task]:
        facts, count = self.world.split[0], 1 if self.quick else GROUPINGS
        if self.snowball:
            return self.world.chains(facts, "train", count * len(facts) // self.world.turns)
        return [task for k in range(count) for task in self.world.sequences(facts, f"train-{k}")]

    def held_out(self) -> list[Task]:
        facts = self.world.split[1]
        if self.snowball:
            return self.world.chains(facts, "test", 8 if self.quick else CHAINS)
        return self.world.sequences(facts[:32] if self.quick else facts, "test")

    def policy(self, gate: nn.Module, temperature: float = 0.0, penalty: float = 1.0) -> GatePolicy:
        return GatePolicy(self.speaker, gate, replace(HOW, penalty=penalty), temperature=temperature)

    def truth(self, one: Rollout) -> Tensor:
        """[N] the right tokens: of the chain as it should have been."""
        questions: Questions = one.task.truth
        ids = self.speaker.tokenizer.convert_tokens_to_ids(list(questions.answers))
        return torch.tensor(ids[: one.decisions])

    def collected(self, terminal: bool) -> Transitions:
        """What a gate that contrasts at random saw, did and earned."""
        mixed = self.policy(Constant(0.5), temperature=1.0)
        return played(
            mixed,
            self.training(),
            conversation,
            self.truth,
            samples=1 if self.quick else SAMPLES,
            seed=mix(self.seed, "collected"),
            terminal=terminal,
        )

    def answered(self, policy: GatePolicy, samples: int = 1) -> list[Rollout]:
        groups = rollout(conversation, self.held_out(), {"policy": policy}, samples, mix(self.seed, "held out"))
        return [one for group in groups for one in group]


def measured(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Held out: the share of right facts, of all right answers, of rare and common facts; how often it contrasts."""
    marks: list[tuple[bool, bool]] = []
    for one in rollouts:
        questions: Questions = one.task.truth
        said = (*one.facts, *[""] * (len(questions.answers) - len(one.facts)))
        marks += [(rare, a == b) for rare, a, b in zip(questions.rare, said, questions.answers, strict=True)]
    return {
        "factuality": statistics.fmean(map(right, rollouts)),
        "whole sequences": statistics.fmean(right(one) == 1.0 for one in rollouts),
        "rare": statistics.fmean([ok for rare, ok in marks if rare] or [0.0]),
        "common": statistics.fmean([ok for rare, ok in marks if not rare] or [0.0]),
        "contrast rate": rate(rollouts),
    }


def fixed(contrast: float, snowball: bool = False) -> Arm:
    """Always the one action: greedy, or DoLa."""

    def arm(seed: int, quick: bool) -> dict[str, float]:
        lab = Laboratory(seed, quick, snowball)
        plain = measured(lab.answered(lab.policy(Constant(contrast))))
        dear = measured(lab.answered(lab.policy(Constant(contrast), penalty=1.2)))
        return plain | {"factuality at 1.2": dear["factuality"]}

    return arm


def bcq(learner: Learner, snowball: bool = False) -> Arm:
    """Learnt from the collected transitions; beside it, a gate that contrasts as often, anywhere."""

    def arm(seed: int, quick: bool) -> dict[str, float]:
        lab = Laboratory(seed, quick, snowball)
        gate = taught_gate(lab, learner)
        found = measured(lab.answered(lab.policy(gate)))
        chance = lab.policy(Constant(found["contrast rate"]), temperature=1.0)
        random = measured(lab.answered(chance, samples=2 if quick else 8))
        dear = measured(lab.answered(lab.policy(gate, penalty=1.2)))
        return found | {
            "factuality at 1.2": dear["factuality"],
            "random gate": random["factuality"],
            "random gate, contrast rate": random["contrast rate"],
        }

    return arm


def taught_gate(lab: Laboratory, learner: Learner) -> Bcq:
    data = lab.collected(terminal=learner != "token")
    torch.manual_seed(mix(lab.seed, "gate") % 2**32)
    gate = Bcq(data.features.shape[1], HIDDEN, cloned=learner == "clone")
    gate.view.fit(data.features)
    steps = 20 if lab.quick else STEPS
    learned(gate, data, steps=steps, per_step=PER_STEP, lr=RATE, seed=lab.seed, refresh=REFRESH)
    return gate


def by_entropy(seed: int, quick: bool) -> dict[str, float]:
    """The best threshold on the mature entropy, above or below, on the facts that gates are trained on."""
    lab = Laboratory(seed, quick)
    data = lab.collected(terminal=False)
    known = data.label != NEITHER
    column = entropy_column(len(HOW.layers))
    values, needed = data.features[known, column], data.label[known] == 1
    best = (-1.0, 0.0, True)
    for threshold in values.quantile(torch.linspace(0, 1, 101)).tolist():
        share = ((values > threshold) == needed).float().mean().item()
        best = max(best, (share, threshold, True), (1 - share, threshold, False))
    return measured(lab.answered(lab.policy(Above(column, best[1], best[2]))))


def oracle(seed: int, quick: bool) -> dict[str, float]:
    """Of what both actions would say after greedy answers, the right one where there is one."""
    lab = Laboratory(seed, quick)
    found = lab.answered(lab.policy(Constant(0.0)))
    label = [
        labels(torch.cat([t.plain for t in seen(one)]), torch.cat([t.other for t in seen(one)]), lab.truth(one))
        for one in found
    ]
    flat = torch.cat(label)
    return {
        "factuality": (flat != NEITHER).float().mean().item(),
        "contrast rate": (flat == 1).float().mean().item(),
    }


def online(seed: int, quick: bool) -> dict[str, float]:
    """Ours: the gate trained while it plays, by GRPO on the share of right facts; nobody labels a token."""
    lab = Laboratory(seed, quick)
    torch.manual_seed(mix(seed, "gate") % 2**32)
    policy = lab.policy(Constant(0.5), temperature=1.0)
    tasks = lab.training()
    first = rollout(conversation, tasks[:64], {"policy": policy}, 1, mix(seed, "first"))
    net = Net(policy.inputs, HIDDEN)
    net.view.fit(torch.cat([trace.features for group in first for trace in seen(group[0])]))
    policy = lab.policy(net, temperature=1.0)
    recipe = Recipe(each(right), env=conversation, samples=8)
    train_in_memory(policy, tasks, recipe, steps=3 if quick else 60, per_step=4 if quick else 16, lr=3e-3, seed=seed)
    return measured(lab.answered(lab.policy(net)))
