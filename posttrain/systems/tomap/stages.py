"""The stages on checkpoints, servers and topics of the user's own: propose, collect, predictor, train, evaluate."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from posttrain.core import Env, Sampler, Score, Task
from posttrain.directory import Directory, read_rollouts, whole_lines, write_json
from posttrain.evaluation import evaluate
from posttrain.options import ModelOptions, RunOptions, hashed
from posttrain.policy.text import TextPolicy
from posttrain.progress import bar
from posttrain.recipe import Recipe
from posttrain.run import Run
from posttrain.seeding import mix
from posttrain.step import Played
from posttrain.systems.tomap.counterclaims import Topic, proposed, record, topics, write
from posttrain.systems.tomap.dialogue import SHOWN, Limit, Setting, dialogue, tasks_of
from posttrain.systems.tomap.predictor import (
    Guessing,
    Predictor,
    divided,
    embedder,
    examples,
    load,
    logged,
    majority,
)
from posttrain.systems.tomap.recipe import recipe
from posttrain.systems.tomap.reward import Weights, validated
from posttrain.systems.tomap.wording import English

AT_ONCE = 32  # topics for which counterclaims are proposed together


# ---- options


@dataclass(frozen=True)
class DialogueOptions:
    """What is argued about, with whom, and what Alice is told."""

    data: str
    """Topics: JSONL, CSV or Parquet with `pos`, `neg` and, from --stage propose on, `counterclaims`."""
    persuadee: str | None = None
    """Bob: a chat server (http://...), a Hub id or a folder."""
    setting: Setting = "lite"
    """rl: nothing is shown; lite: counterclaims; full: and Bob's agreement with each as predicted; white: as he says;
    black_random: guessed; black_max: always the most."""
    predictor: str | None = None
    """Setting full: the folder of --stage predictor."""
    turns: int = 3
    """Turns of each in a dialogue."""
    count: int = 3
    """Counterclaims of a topic that are used."""
    most: int = 200
    """Tokens of an argument; what is longer is cut, and costs."""
    limit: int | None = None
    """Use only the first so many topics."""
    persuadee_temperature: float = 1.0
    """Of what Bob says in training; in validation, and of his attitudes, it is 0."""
    probe: bool = False
    """Ask Bob for all his beliefs in training too, so that a predictor can learn from the run."""

    def tasks(self, data: str | None = None, validation: bool = False) -> list[Task[Topic]]:
        """The topics of `--data`, or all of another file."""
        found = topics(data or self.data, validation=validation, limit=None if data else self.limit)
        return tasks_of(found, English(self.most), SHOWN[self.setting], self.count)

    def env(self, policy: TextPolicy, probe: bool = False) -> Env:
        limit = Limit(self.most, policy.chat.encode, policy.chat.decode)
        wording, shown = English(self.most), SHOWN[self.setting]
        return dialogue(wording, shown, turns=self.turns, count=self.count, limit=limit, probe=probe or self.probe)

    def players(self, model: ModelOptions) -> dict[str, Sampler]:
        """Those besides Alice. Raises ValueError when Bob is not named, or a predictor is missing."""
        if self.persuadee is None:
            raise ValueError("give --persuadee: a chat server (http://...), a Hub id or a folder")
        if self.setting == "full" and self.predictor is None:
            raise ValueError(
                "--setting full shows what a predictor says: give --predictor FOLDER, made with --stage predictor, or "
                "take --setting lite"
            )
        found = {"persuadee": persuadee_of(self.persuadee, model, self.persuadee_temperature)}
        if self.setting == "black_random":
            found["predictor"] = Guessing()
        if self.predictor and self.setting == "full":
            found["predictor"] = load(self.predictor, model.device)
        return found

    def describe(self) -> dict[str, Any]:
        return {**vars(self), **hashed(self.data)}


@dataclass(frozen=True)
class PredictorOptions:
    """What the attitude predictor is made of."""

    logs: str = ""
    """Run directories, of --stage collect or of training with --probe, separated by commas."""
    encoder: str = "BAAI/bge-m3"
    """A Hub id or folder, the address of a server (http://.../v1), or hashed:WIDTH:LONGEST."""
    share: float = 0.25
    """Of the dialogues, to learn from."""


@dataclass(frozen=True)
class LearningOptions:
    """The numbers of PPO and of the reward."""

    critic_lr: float = 2e-6
    minibatch: int = 64
    """Turns in one optimizer step."""
    kl: float = 0.001
    """Weight of the k3 term to the model it starts from; 0 keeps no reference."""
    entropy: float = 0.001
    """Weight of the entropy bonus."""
    final: float = 0.0
    """Share of a turn's persuasion that is the whole dialogue's."""
    power: float = 1.0
    """Exponent of the change of mind."""
    keep_negative: bool = True
    """Losing ground costs."""

    def recipe(self, policy: TextPolicy, talk: DialogueOptions, players: Mapping[str, Sampler], tasks: int) -> Recipe:
        weights = Weights(final=self.final, power=self.power, keep_negative=self.keep_negative, most=talk.most)
        return recipe(
            policy,
            talk.env(policy),
            players,
            weights=weights,
            updates=max(tasks * talk.turns // self.minibatch, 1),
            critic_lr=self.critic_lr,
            kl=self.kl,
            entropy=self.entropy,
        )


def persuadee_of(name: str, model: ModelOptions, temperature: float) -> Sampler:
    """Bob: a chat server by its address, or a checkpoint that is run here."""
    if name.startswith("http"):
        from posttrain.sampler.server import server

        return server(name, max_new=model.max_new, temperature=temperature)
    return replace(model, model=name, lora=0, temperature=temperature).policy()


def roomy(policy: TextPolicy, tasks: Sequence[Task[Topic]], turns: int, most: int) -> None:
    """Raises ValueError when the longest dialogue would not fit the model's context, before any work."""
    rounds = 2 * (turns - 1) * most
    for task in tasks:
        length = len(policy.chat.prompt(task.prompt)[0]) + rounds + policy.sampling.max_new
        if length > policy.context:
            raise ValueError(
                f"topic {task.key!r}: the last of {turns} turns may take {length} tokens, but the model has "
                f"{policy.context} positions: lower --turns, --most or --max-new, or take a model with a longer context"
            )


# ---- before training


def propose(policy: TextPolicy, talk: DialogueOptions, run: Run) -> Path:
    """`run.out`/topics.jsonl: the topics with ten counterclaims each, by the persuader itself.

    Written while it goes on; resumed, it continues where it was stopped.
    """
    found, path = topics(talk.data, limit=talk.limit), Path(run.out) / "topics.jsonl"
    Directory(path.parent).prepare({"kind": "propose", "run": run}, run)
    kept = list(whole_lines(path)) if run.resume else []
    write(path, kept)
    with bar("topics", len(found), run.quiet) as done:
        done(len(kept))
        for start in range(len(kept), len(found), AT_ONCE):
            some = found[start : start + AT_ONCE]
            write(path, map(record, proposed(policy, some, seed=run.seed)), "a")
            done(len(some))
    counts = [len(one.counterclaims) for one in topics(path)]
    print(
        f"{path}: {len(counts)} topics, {statistics.fmean(counts):.1f} counterclaims each, {counts.count(0)} topics "
        "without any"
    )
    return path


def collect(
    policy: TextPolicy,
    tasks: Sequence[Task[Topic]],
    env: Env,
    others: Mapping[str, Sampler],
    run: Run,
) -> Path:
    """A run directory in which nothing is learned: its rollouts are what a predictor learns from.

    `run.steps` times `run.tasks` dialogues, topics in turn; one that could not be played is left out by the predictor.
    Resumed, it goes on with the first step of which nothing was written.
    """
    directory = Directory(Path(run.out))
    directory.prepare({"kind": "collect", "run": run}, run)
    with bar("dialogues", run.steps * run.tasks, run.quiet) as done:
        for step in range(run.steps):
            if any(read_rollouts(run.out, step)):
                done(run.tasks)
                continue
            some = [tasks[(step * run.tasks + i) % len(tasks)] for i in range(run.tasks)]
            seed = mix(run.seed, "collect", step)
            found = evaluate({"policy": policy, **others}, some, validated(), env, seed=seed, watch=done)
            played = [
                Played(rollout, score, None)
                for group, scores in zip(found.groups, found.scores, strict=True)
                for rollout, score in zip(group, scores, strict=True)
            ]
            directory.write_rollouts(step, policy, played)
    print(f"{run.out}: {run.steps * run.tasks} dialogues")
    return directory.path


def teach(given: PredictorOptions, run: RunOptions, device: str | None = None) -> dict[str, float]:
    """A predictor from the dialogues of some runs, saved in `run.out`; its accuracy on dialogues left aside.

    Raises ValueError when no runs are named.
    """
    if not given.logs:
        raise ValueError("--stage predictor needs --logs: run directories of --stage collect, or of training")
    found = examples(logged([part.strip() for part in given.logs.split(",") if part.strip()]), English())
    learnt, tested = divided(found, given.share, run.seed)
    predictor = Predictor(embedder(given.encoder, device), seed=run.seed)
    predictor.learn(learnt, seed=run.seed)
    measures = {
        "accuracy": predictor.accuracy(tested),
        "majority": majority(tested),
        "examples": float(len(learnt)),
    }
    predictor.save(Path(run.out), **measures)
    print(
        f"{run.out}: accuracy {measures['accuracy']:.3f} on {len(tested)} attitudes, always the commonest "
        f"{measures['majority']:.3f}"
    )
    return measures


# ---- after it


def judged(
    policy: TextPolicy, tasks: Sequence[Task[Topic]], env: Env, others: Mapping[str, Sampler], run: RunOptions
) -> dict[str, float]:
    """Means over dialogues on validation topics, written to `run.out`/evaluation.json; the shift is in hundredths."""
    with bar("dialogues", len(tasks), run.quiet) as done:
        found = evaluate({"policy": policy, **others}, tasks, validated(), env, seed=run.seed, watch=done)
    marks = [score for scores in found.scores for score in scores if isinstance(score, Score)]
    measures = {name: statistics.fmean(score.parts[name] for score in marks) for name in marks[0].parts}
    measures |= {"dialogues": float(len(marks)), "invalid": float(found.invalid)}
    Path(run.out).mkdir(parents=True, exist_ok=True)
    write_json(Path(run.out) / "evaluation.json", measures)
    for name, value in measures.items():
        print(f"{name:>12} {value:8.3f}")
    return measures
