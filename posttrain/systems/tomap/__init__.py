"""ToMAP: a persuader that is told what the other thinks, trained by PPO (arXiv:2505.22961).

Alice argues with Bob about a claim, three turns each; what she earns is how far he moves. Two modules give her a theory
of his mind: counterclaims that he may hold, proposed by herself beforehand, and a predictor that says from the dialogue
how much he agrees with each.

    dialogue        two players with private thoughts; Bob's attitude after every round
    reward          persuasion, tags, format, repetition, length, for every turn
    counterclaims   the tree of a topic, and how it is made
    predictor       an encoder and a small network, learnt from logged dialogues
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from posttrain.options import ModelOptions, RunOptions, naming
from posttrain.recipe import Part
from posttrain.run import Session
from posttrain.step import train
from posttrain.systems.tomap.claims import ARMS, CLAIMS, SHOWN
from posttrain.systems.tomap.dialogue import Setting
from posttrain.systems.tomap.experiments import prepared
from posttrain.systems.tomap.options import DialogueOptions, LearningOptions, PredictorOptions, Stage, refuse
from posttrain.systems.tomap.recipe import recipe
from posttrain.systems.tomap.stages import collect, judged, propose, roomy, teach

__all__ = ["ARMS", "CLAIMS", "PARTS", "SHOWN", "full", "laptop", "recipe"]

PARTS: Mapping[str, Part] = {}


def laptop(
    setting: Setting = "full", run: RunOptions = RunOptions("runs/tomap", steps=40, tasks=32, lr=1e-3)
) -> Session:
    """A persuader of few words against a simulated Bob, on topics of six counterclaims; held out: new topics.

    setting  what Alice is told: rl (nothing), lite (counterclaims), full (and Bob's agreement with each as predicted),
             white (as he says), black_random (guessed), black_max (always the most)
    """
    policy, tasks, tests, made = prepared(setting, run.seed)
    return train(policy, tasks, made, run.run(setting=setting), held_out=tests)


def full(
    model: ModelOptions,
    talk: DialogueOptions,
    learning: LearningOptions,
    predicting: PredictorOptions,
    run: RunOptions = RunOptions("runs/tomap", steps=200, tasks=128, lr=1e-6, warmup=40),
    stage: Stage = "train",
    held_out: str | None = None,
) -> Session | None:
    """Your checkpoint against Bob, stage by stage: propose, collect, predictor, then train, then evaluate.

    stage     propose writes OUT/topics.jsonl with counterclaims; collect logs --steps times --tasks dialogues in which
              Bob is asked for all his beliefs; predictor learns from --logs; evaluate holds a dialogue on each topic
              of --data and writes OUT/evaluation.json
    held_out  train: topics of the same form, on which Bob answers at temperature 0
    """
    refuse(stage, held_out, talk, predicting)
    learning.check()
    if stage == "predictor":
        teach(predicting, run.run(**vars(predicting)), model.device)
        return None
    if stage == "propose":
        found = talk.topics()
        propose(model.policy(), found, run.run(**talk.describe(), **vars(model)))
        return None
    talk = replace(talk, probe=talk.probe or stage == "collect")
    tasks = talk.tasks(validation=stage == "evaluate")
    with naming("--data", "--held-out"):
        tests = talk.tasks(held_out, validation=True) if held_out else []
    policy, others = model.policy(), talk.players(model)
    roomy(policy, [*tasks, *tests], talk.turns, talk.most)
    described = run.run(**talk.describe(others), **vars(learning), **vars(model))
    if stage == "train":
        made = learning.recipe(policy, talk, others, run.tasks, run.micro_tokens)
        return train(policy, tasks, made, described, held_out=tests)
    (judged if stage == "evaluate" else collect)(policy, tasks, talk.env(policy), others, described)
    return None
