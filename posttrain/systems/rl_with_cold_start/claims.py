"""What the paper claims, what we ask of it beside, and the arms that are compared."""

from __future__ import annotations

import random
from collections.abc import Callable

from posttrain.core import Reward
from posttrain.data import Demonstration
from posttrain.lab.claim import Claim
from posttrain.lab.world.glyphs import Glyphs
from posttrain.policy.text import TextPolicy
from posttrain.recipe import Recipe
from posttrain.seeding import mix
from posttrain.systems.rl_with_cold_start.experiments import (
    LONGER,
    SFT_EPOCHS,
    base_of,
    best_learned,
    chains,
    measured,
    reinforced,
    spoilt,
    world_of,
)

Measures = dict[str, float]
Chains = Callable[[Glyphs, bool], list[Demonstration]]


def right_chains(world: Glyphs, quick: bool) -> list[Demonstration]:
    return chains(world, quick=quick)


def careful_chains(world: Glyphs, quick: bool) -> list[Demonstration]:
    return chains(world, " so ", quick)


def wrong_chains(world: Glyphs, quick: bool) -> list[Demonstration]:
    draw = random.Random(mix(world.seed, "spoilt"))
    return [spoilt(one, draw) for one in careful_chains(world, quick)]


def arm(
    taught: Chains | None = None, epochs: int = SFT_EPOCHS, rl: bool = False, second_right: float = 0.5
) -> Callable[[int, bool], Measures]:
    """`taught` None: no cold start. The epochs of SFT are its best ones, by problems kept for the choice."""

    def run(seed: int, quick: bool) -> Measures:
        world = world_of(seed, second_right)
        policy = base_of(world, quick)
        epoch = 0
        if taught:
            every = 4 if epochs > SFT_EPOCHS else 2
            epoch = best_learned(policy, world, taught(world, quick), 1 if quick else epochs, every, quick)
        if rl:
            reinforced(policy, world, released, quick)
        return measured(policy, world, quick) | {"best epoch": float(epoch)}

    return run


def released(reward: Reward, *, reference: TextPolicy) -> Recipe:
    from posttrain.systems.rl_with_cold_start import recipe

    return recipe(reward, reference=reference)


ARMS = {
    "base": arm(),
    "RL only": arm(rl=True),
    "SFT only": arm(right_chains),
    "SFT + RL": arm(right_chains, rl=True),
    "SFT, as long": arm(right_chains, LONGER),
    "SFT, careful": arm(careful_chains),
    "SFT, wrong answers": arm(wrong_chains),
    "SFT, wrong answers, + RL": arm(wrong_chains, rl=True),
    "base, second looks help": arm(second_right=1.0),
}
CLAIMS = (
    Claim(
        "SFT followed by RL beats SFT alone",
        "both stages beat SFT-only on MathVision, MathVerse, MathVista and We-Math",
        "mean@1",
        "SFT + RL",
        "SFT only",
    ),
    Claim(
        "SFT followed by RL beats RL alone",
        "both stages beat RL-only on MathVision, MathVerse, MathVista and We-Math",
        "mean@1",
        "SFT + RL",
        "RL only",
    ),
    Claim(
        "SFT followed by RL beats the base model",
        "66.3 to 73.4 on MathVista, 62.9 to 70.4 on We-Math (7B)",
        "mean@1",
        "SFT + RL",
        "base",
    ),
    Claim("SFT alone beats the base model", "SFT-only > base", "mean@1", "SFT only", "base"),
    Claim(
        "SFT followed by RL beats SFT alone in greedy decoding",
        "both stages beat SFT-only; here decoded greedily",
        "greedy",
        "SFT + RL",
        "SFT only",
    ),
    Claim(
        "the base model reflects before any RL",
        "aha patterns exist in the base model; here in more than 1 % of its replies",
        "reflection",
        "base",
        0.01,
    ),
    Claim(
        "reflection is no sign of being right",
        "reflection does not predict accuracy: P(right | reflection) - P(right | none), here at most 0.05",
        "reflection gap",
        "base",
        0.0,
        larger=False,
        margin=0.05,
    ),
    Claim(
        "chains with wrong answers still help",
        "structure matters more than correctness; against the base model",
        "mean@1",
        "SFT, wrong answers",
        "base",
    ),
    Claim(
        "RL is better after chains with wrong answers than without any",
        "ours: the structure of chains may be what RL needs",
        "mean@1",
        "SFT, wrong answers, + RL",
        "RL only",
        control=True,
    ),
    Claim(
        "chains with right answers help more than chains with wrong ones",
        "ours: the same careful chains with their right answers",
        "mean@1",
        "SFT, careful",
        "SFT, wrong answers",
        control=True,
    ),
    Claim(
        "careful chains alone do as well as SFT followed by RL",
        "ours: SFT on the teacher's careful chains only, within 0.05 of SFT on all of its chains and then RL",
        "mean@1",
        "SFT, careful",
        "SFT + RL",
        margin=0.05,
        control=True,
    ),
    Claim(
        "RL is worth its time",
        "ours: against SFT for as long, at its best epoch",
        "mean@1",
        "SFT + RL",
        "SFT, as long",
        control=True,
    ),
    Claim(
        "the measure of reflection shows a gap where there is one",
        "ours: a base model whose second looks are always right",
        "reflection gap",
        "base, second looks help",
        "base",
        control=True,
    ),
)
