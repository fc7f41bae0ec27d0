"""ToMAP on a laptop: the same base model and the same steps, with different things in the prompt."""

from __future__ import annotations

import statistics

import posttrain as pt
from posttrain.lab.world.persuasion import EACH, Bob, Persuasion
from posttrain.lab.world.words import Size, base
from posttrain.run.directory import json_value
from posttrain.systems.tomap.counterclaims import Counterclaim, Topic
from posttrain.systems.tomap.dialogue import SHOWN, Setting, argument, dialogue, tasks_of, well_formed
from posttrain.systems.tomap.predictor import Guessing, Hashed, Predictor, examples, majority, split_by_dialogue
from posttrain.systems.tomap.recipe import recipe
from posttrain.systems.tomap.reward import ALLOWED, Weights, repeated, validation

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


def tasks(world: Persuasion, setting: Setting, held_out: bool = False) -> list[pt.Task[Topic]]:
    return tasks_of(topics_of(world, held_out), world, SHOWN[setting], EACH)


def players(world: Persuasion, setting: Setting, predictor: Predictor | None) -> dict[str, pt.Sampler]:
    """Bob, and what stands in for a look into his head."""
    found: dict[str, pt.Sampler] = {"persuadee": Bob(world)}
    if setting == "black_random":
        found["predictor"] = Guessing()
    if setting == "full":
        assert predictor is not None
        found["predictor"] = predictor
    return found


def predictor_of(policy: pt.TextPolicy, world: Persuasion, seed: int, count: int) -> tuple[Predictor, dict[str, float]]:
    """Learnt from dialogues of the base model in which Bob was asked for all that he believes."""
    env = dialogue(world, SHOWN["lite"], count=EACH, probe=True)
    topics = tasks(world, "lite")[: count // 4]
    found = pt.evaluate(
        {"policy": policy, "persuadee": Bob(world)},
        topics,
        validation(WEIGHTS),
        env,
        samples=4,
        seed=pt.mix(seed, "logged"),
    )
    facts = [json_value(one.facts) for one in found.rollouts]
    learnt, tested = split_by_dialogue(examples(facts, world), 0.9, seed)
    predictor = Predictor(Hashed(256), SIZES, seed=seed)
    predictor.learn(learnt, epochs=4, rows=128, lr=3e-3, seed=seed)
    measures = {"predictor accuracy": predictor.accuracy(tested), "majority class": majority(tested)}
    return predictor, measures


def measures(lab: pt.Lab, setting: Setting) -> dict[str, float]:
    """On new topics: dialogues of three turns, and of six."""
    tests, out = tasks(lab.world, setting, held_out=True)[: lab.budget.items(80)], dict[str, float]()
    for turns, name in ((3, ""), (6, ", 6 turns")):
        env = dialogue(lab.world, SHOWN[setting], turns=turns, count=EACH)
        found = lab.evaluate(tests, validation(WEIGHTS), env, samples=2)
        out |= {f"shift{name}": found.reward} | {f"{key}{name}": value for key, value in style(found).items()}
    return out | lab.notes


def style(found: pt.Evaluation) -> dict[str, float]:
    said: list[list[str]] = [[str(turn.reply.content) for turn in one.turns] for one in found.rollouts]
    again = [
        repeated(argument(text), [argument(one) for one in texts[:t]], WEIGHTS.width) > ALLOWED
        for texts in said
        for t, text in enumerate(texts)
    ]
    return {
        "relative": found.part("relative"),
        "repetition": statistics.fmean(again),
        "format": statistics.fmean(well_formed(text) for texts in said for text in texts),
    }


def recipe_for(
    policy: pt.TextPolicy, world: Persuasion, setting: Setting, predictor: Predictor | None
) -> tuple[pt.Recipe, dict[str, pt.Sampler]]:
    others = players(world, setting, predictor)
    env = dialogue(world, SHOWN[setting], count=EACH)
    return recipe(policy, env, others, weights=WEIGHTS, updates=UPDATES, critic_lr=CRITIC_RATE), others


def base_policy(world: Persuasion, seed: int, budget: pt.Budget = pt.FULL) -> pt.TextPolicy:
    return base(world, seed, budget.size(TINY))


def laptop_run(setting: Setting, seed: int) -> tuple[pt.TextPolicy, list[pt.Task], list[pt.Task], pt.Recipe]:
    """What a run needs: the base model, topics to learn from, new ones, and the recipe."""
    world = Persuasion(seed)
    policy = base_policy(world, seed)
    predictor = predictor_of(policy, world, seed, LOGGED)[0] if setting == "full" else None
    made, _ = recipe_for(policy, world, setting, predictor)
    return policy, tasks(world, setting), tasks(world, setting, held_out=True), made


def arm(setting: Setting, learns: bool = True) -> pt.Arm:
    """Trained with this in the prompt; `learns=False`: the base model with the same in its prompt."""

    def build_recipe(lab: pt.Lab) -> pt.Recipe:
        predictor = None
        if setting == "full":
            predictor, lab.notes = predictor_of(lab.policy, lab.world, lab.seed, lab.budget.items(LOGGED))
        found, lab.others = recipe_for(lab.policy, lab.world, setting, predictor)
        return found

    return pt.trial(
        Persuasion,
        build_recipe,
        lambda lab: measures(lab, setting),
        steps=STEPS if learns else 0,
        per_step=PER_STEP,
        lr=RATE,
        size=TINY,
        tasks=lambda lab: tasks(lab.world, setting),
    )


PICTURE = "shift"  # the measure that is drawn: agreement at the end less at the beginning, in hundredths

ARMS = {
    "base": arm("rl", learns=False),
    "RL": arm("rl"),
    "ToMAP-lite": arm("lite"),
    "ToMAP": arm("full"),
    "white": arm("white"),
    "black, random": arm("black_random"),
    "untrained ToMAP": arm("full", learns=False),
}
CLAIMS = pt.claims("""
    reinforcement makes a better persuader
        paper: 13.84 against 11.76 on average
        shift: RL > base
    ToMAP beats RL
        paper: 17.48 against 13.84 on average, 23.01 against 16.42 in training
        shift: ToMAP > RL
    attitudes help beyond counterclaims
        paper: ToMAP against ToMAP-lite, which is not told how much Bob agrees
        shift: ToMAP > ToMAP-lite
    true attitudes are no worse than predicted ones
        paper: the oracle `white` against ToMAP
        shift: white > ToMAP
    predicted attitudes beat random ones
        paper: ToMAP against random attitudes
        shift: ToMAP > black, random
    ToMAP beats RL in long conversations
        paper: suited to long conversations; here six turns, after training on three
        shift, 6 turns: ToMAP > RL
    ToMAP keeps gaining in long conversations
        paper: suited to long conversations; here six turns against three
        shift, 6 turns: ToMAP > shift: ToMAP
    training reduces repetition
        paper: repetition is reduced in training
        repetition: ToMAP < untrained ToMAP
    the predictor beats always guessing the commonest answer
        paper: an MLP on embeddings of statement and dialogue
        predictor accuracy: untrained ToMAP > majority class: untrained ToMAP
    training teaches the form of replies
        paper: a reward for it; here the share of well-formed replies
        format: ToMAP > untrained ToMAP
    ToMAP learns beyond what its prompt tells it
        ours: against the base model, told all that ToMAP is told
        shift: ToMAP > untrained ToMAP
    counterclaims help by themselves
        ours: ToMAP-lite against RL
        shift: ToMAP-lite > RL
    attitudes still help in long conversations
        ours: ToMAP against ToMAP-lite at six turns
        shift, 6 turns: ToMAP > ToMAP-lite
""")
HEADLINE = pt.Headline("ToMAP beats RL")
# the other stages are run in tests/test_tomap.py
# The other stages run in tests/test_tomap.py.
SMOKE = pt.Smoke(
    """
    laptop
    laptop --setting rl
    laptop --setting black_random
    """,
    {"lab.LOGGED": 20},
)
