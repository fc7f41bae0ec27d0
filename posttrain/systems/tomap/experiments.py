"""The arms of the claims: the same base model and the same steps, with different things in the prompt."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import replace

from posttrain.core import Sampler, Score, Task
from posttrain.directory import plain
from posttrain.evaluation import Evaluation, evaluate
from posttrain.policy.text import TextPolicy
from posttrain.recipe import Recipe
from posttrain.seeding import mix
from posttrain.step import practised
from posttrain.systems.tomap.counterclaims import Counterclaim, Topic
from posttrain.systems.tomap.dialogue import SHOWN, Setting, argument, dialogue, tasks_of, well_formed
from posttrain.systems.tomap.predictor import Guessing, Hashed, Predictor, divided, examples, majority
from posttrain.systems.tomap.recipe import recipe
from posttrain.systems.tomap.reward import ALLOWED, Weights, repeated, validated
from posttrain.world.persuasion import EACH, Bob, Persuasion
from posttrain.world.words import Size, base

TINY = Size(hidden=48, layers=2, steps=800, rows=32)
WEIGHTS = Weights(width=2)  # two words of a tiny argument are what eight are of a long one
STEPS, PER_STEP, UPDATES, RATE, CRITIC_RATE = 40, 32, 3, 1e-3, 2e-3  # twice the rate for the critic, as published
LOGGED = 1200  # dialogues that the predictor learns from
SIZES = (128, 64)


def topics_of(world: Persuasion, held_out: bool) -> list[Topic]:
    return [
        Topic(
            world.claim(i),
            world.claim(i),
            f"no {world.claim(i)}",
            tuple(Counterclaim(c, f"no {c}") for c in world.counterclaims(i)),
            validation=held_out,
        )
        for i in world.numbers(held_out)
    ]


def tasks(world: Persuasion, setting: Setting, held_out: bool = False) -> list[Task[Topic]]:
    return tasks_of(topics_of(world, held_out), world, SHOWN[setting], EACH)


def players(world: Persuasion, setting: Setting, predictor: Predictor | None) -> dict[str, Sampler]:
    """Bob, and what stands in for a look into his head."""
    found: dict[str, Sampler] = {"persuadee": Bob(world)}
    if setting == "black_random":
        found["predictor"] = Guessing()
    if setting == "full":
        assert predictor is not None
        found["predictor"] = predictor
    return found


def predictor_of(policy: TextPolicy, world: Persuasion, seed: int, count: int) -> tuple[Predictor, dict[str, float]]:
    """Learnt from dialogues of the base model in which Bob was asked for all that he believes."""
    env = dialogue(world, SHOWN["lite"], count=EACH, probe=True)
    topics = tasks(world, "lite")[: count // 4]
    found = evaluate(
        {"policy": policy, "persuadee": Bob(world)},
        topics,
        validated(WEIGHTS),
        env,
        samples=4,
        seed=mix(seed, "logged"),
    )
    facts = [plain(one.facts) for group in found.groups for one in group]
    learnt, tested = divided(examples(facts, world), 0.9, seed)
    predictor = Predictor(Hashed(256), SIZES, seed=seed)
    predictor.learn(learnt, epochs=4, rows=128, lr=3e-3, seed=seed)
    measures = {"predictor accuracy": predictor.accuracy(tested), "majority class": majority(tested)}
    return predictor, measures


def measured(
    policy: TextPolicy, world: Persuasion, setting: Setting, others: Mapping[str, Sampler], seed: int, count: int
) -> dict[str, float]:
    """On new topics: dialogues of three turns, and of six."""
    tests, out = tasks(world, setting, held_out=True)[:count], dict[str, float]()
    for turns, name in ((3, ""), (6, ", 6 turns")):
        env = dialogue(world, SHOWN[setting], turns=turns, count=EACH)
        found = evaluate({"policy": policy, **others}, tests, validated(WEIGHTS), env, samples=2, seed=seed)
        out |= {f"shift{name}": found.reward} | {f"{key}{name}": value for key, value in described(found).items()}
    return out


def described(found: Evaluation) -> dict[str, float]:
    marks = [score for scores in found.scores for score in scores if isinstance(score, Score)]
    said: list[list[str]] = [[str(t.reply.content) for t in one.turns] for group in found.groups for one in group]
    again = [
        repeated(argument(text), [argument(one) for one in texts[:t]], WEIGHTS.width) > ALLOWED
        for texts in said
        for t, text in enumerate(texts)
    ]
    return {
        "relative": statistics.fmean(score.parts["relative"] for score in marks),
        "repetition": statistics.fmean(again),
        "format": statistics.fmean(well_formed(text) for texts in said for text in texts),
    }


def trained(
    policy: TextPolicy, world: Persuasion, setting: Setting, predictor: Predictor | None
) -> tuple[Recipe, dict[str, Sampler]]:
    others = players(world, setting, predictor)
    env = dialogue(world, SHOWN[setting], count=EACH)
    return recipe(policy, env, others, weights=WEIGHTS, updates=UPDATES, critic_lr=CRITIC_RATE), others


def prepared(setting: Setting, seed: int) -> tuple[TextPolicy, list[Task], list[Task], Recipe]:
    """What a run needs: the base model, topics to learn from, new ones, and the recipe."""
    world = Persuasion(seed)
    policy = base(world, seed, TINY)
    predictor = predictor_of(policy, world, seed, LOGGED)[0] if setting == "full" else None
    made, _ = trained(policy, world, setting, predictor)
    return policy, tasks(world, setting), tasks(world, setting, held_out=True), made


def arm(setting: Setting, learns: bool = True) -> Callable[[int, bool], dict[str, float]]:
    def run(seed: int, quick: bool) -> dict[str, float]:
        world = Persuasion(seed)
        policy = base(world, seed, replace(TINY, steps=20) if quick else TINY)
        predictor, out = predictor_of(policy, world, seed, 20 if quick else LOGGED) if setting == "full" else (None, {})
        made, others = trained(policy, world, setting, predictor)
        if learns:
            steps, per_step = (2, 4) if quick else (STEPS, PER_STEP)
            practised(policy, tasks(world, setting), made, steps=steps, per_step=per_step, lr=RATE, seed=seed)
        return out | measured(policy, world, setting, others, seed, 8 if quick else 80)

    return run
