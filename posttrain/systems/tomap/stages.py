"""ToMAP on checkpoints, servers and topics of the user's own: propose, collect, predictor, pt.train, evaluate."""

from __future__ import annotations

import itertools
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import posttrain as pt
from posttrain.group import ScoredRollout
from posttrain.run.rollouts import write_rollouts
from posttrain.systems.tomap.counterclaims import Topic, propose_counterclaims, record, topics
from posttrain.systems.tomap.dialogue import SHOWN, Limit, Setting, Shown, dialogue, tasks_of
from posttrain.systems.tomap.predictor import (
    Guessing,
    Predictor,
    embedder,
    examples,
    logged,
    majority,
    split_by_dialogue,
)
from posttrain.systems.tomap.recipe import recipe
from posttrain.systems.tomap.reward import Weights, validation
from posttrain.systems.tomap.serving import predictor_of
from posttrain.systems.tomap.wording import English

AT_ONCE = 32  # topics for which counterclaims are proposed together


@dataclass(frozen=True)
class TalkOptions:
    """What is argued about, with whom, and what Alice is told."""

    data: str
    """Topics: JSONL, CSV or Parquet with `pos`, `neg` and, after stage propose, `counterclaims`."""
    persuadee: str
    """Bob: a chat server (http://..., with #MODEL if it has several), a Hub id or a folder."""
    setting: Setting = "lite"
    """rl: nothing is shown; lite: counterclaims; full: and Bob's agreement with each as predicted; white: as he says;
    black_random: guessed; black_max: always the most."""
    predictor: str | None = None
    """Setting full: the folder of stage predictor, or a server of it (posttrain serve --scorer tomap=FOLDER)."""
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

    def __post_init__(self):
        pt.at_least(1, turns=self.turns, count=self.count, most=self.most)
        pt.at_least(0, persuadee_temperature=self.persuadee_temperature)
        if self.predictor and self.setting != "full":
            raise ValueError(f"`predictor={self.predictor}` is shown in `setting=full` alone, not in {self.setting}")
        if self.setting == "full" and not self.predictor:
            raise ValueError(
                "`setting=full` shows what a predictor says: give `predictor`, made by stage predictor, or take "
                "`setting=lite`"
            )

    def tasks(self, data: str | None = None, *, validation: bool = False, probe: bool = False) -> list[pt.Task[Topic]]:
        """A task for every topic that has what is to be shown, of `data` or of another file.

        Raises ValueError when none has.
        """
        found, shown = (
            topics(data or self.data, validation=validation, limit=None if data else self.limit),
            self.prompt_contents,
        )
        kept = [one for one in found if one.counterclaims or not (shown.counterclaims or probe)]
        if found and not kept:
            raise ValueError(f"`data={data or self.data}`: no topic has counterclaims; make them with stage propose")
        if len(kept) < len(found):
            left = len(found) - len(kept)
            print(f"{left} of {len(found)} topics have no counterclaims and are left out", file=sys.stderr)
        return tasks_of(kept, English(self.most), shown, self.count)

    @property
    def prompt_contents(self) -> Shown:
        return SHOWN[self.setting]

    def env(self, policy: pt.TextPolicy, probe: bool = False) -> pt.Env:
        limit = Limit(self.most, policy.chat.encode, policy.chat.decode)
        return dialogue(
            English(self.most), self.prompt_contents, turns=self.turns, count=self.count, limit=limit, probe=probe
        )

    def players(self, model: pt.ModelOptions) -> dict[str, pt.Sampler]:
        """Those besides Alice. Raises ValueError or ServerError when Bob cannot be reached or loaded."""
        found = {"persuadee": model.player(self.persuadee, self.persuadee_temperature)}
        if self.setting == "black_random":
            found["predictor"] = Guessing()
        if self.predictor:
            found["predictor"] = predictor_of(self.predictor, device=model.device)
        return found


@dataclass(frozen=True)
class PpoOptions:
    """The numbers of PPO and of the reward."""

    critic_lr: float = 2e-6
    """Learning rate of the critic."""
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

    def __post_init__(self):
        pt.at_least(1, minibatch=self.minibatch)
        if not 0 <= self.final <= 1:
            raise ValueError(f"`final={self.final}`: a share of 0 to 1")
        if self.power <= 0:
            raise ValueError(f"`power={self.power}`: it must be above 0")

    def recipe(
        self, policy: pt.TextPolicy, env: pt.Env, players: Mapping[str, pt.Sampler], talk: TalkOptions, run: pt.Run
    ) -> pt.Recipe:
        return recipe(
            policy,
            env,
            players,
            weights=Weights(final=self.final, power=self.power, keep_negative=self.keep_negative, most=talk.most),
            updates=max(run.tasks * talk.turns // self.minibatch, 1),
            critic_lr=self.critic_lr,
            kl=self.kl,
            entropy=self.entropy,
            micro_tokens=run.micro_tokens,
        )


def learn(
    talk: TalkOptions,
    ppo: PpoOptions,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    run: pt.Run = pt.Run("runs/tomap", steps=200, tasks=128, lr=1e-6, warmup=40),
    probe: bool = False,
    held_out: tuple[str, ...] = (),
) -> pt.Session:
    """Train your checkpoint as Alice, by PPO, on what she can make Bob believe.

    probe     ask Bob for all his beliefs in training too, so that a predictor can learn from the run
    held_out  topics of the same form, on which Bob answers at temperature 0: FILE, or NAME=FILE
    """
    tasks = talk.tasks(probe=probe)
    tests = {name: talk.tasks(file, validation=True, probe=probe) for name, file in pt.named_files(held_out).items()}
    policy = model.policy()
    check_room(policy, itertools.chain(tasks, *tests.values()), talk)
    made = ppo.recipe(policy, talk.env(policy, probe), talk.players(model), talk, run)
    return scale.train(policy, tasks, made, run, held_out=tests)


def check_room(policy: pt.TextPolicy, tasks: Iterable[pt.Task[Topic]], talk: TalkOptions) -> None:
    """Raises ValueError when the longest dialogue would not fit the model's context, before any work."""
    rounds = 2 * (talk.turns - 1) * talk.most
    for task in tasks:
        length = len(policy.chat.prompt(task.prompt)[0]) + rounds + policy.sampling.max_new
        if length > policy.context:
            raise ValueError(
                f"topic {task.key!r}: the last of {talk.turns} turns may take {length} tokens, but the model has "
                f"{policy.context} positions: lower `turns`, `most` or `max_new`, or take a model with a longer context"
            )


# ---- before training


def propose(
    data: str,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    output: pt.Output = pt.Output("runs/tomap-topics"),
    limit: int | None = None,
) -> Path:
    """Write OUT/topics.jsonl: the topics with ten counterclaims each, by the persuader itself.

    It ends with an error when not a single one was proposed.

    data   topics: JSONL, CSV or Parquet with `pos` and `neg`
    limit  use only the first so many topics
    """
    found, policy = topics(data, limit=limit), model.policy()
    path = Path(output.out) / "topics.jsonl"
    prepare_directory("propose", output)
    lines = pt.ranks.run_on_primary(lambda: pt.Lines(path, output.resume), "for the topics that are there")
    with scale.playing(policy, output.out) as player, pt.progress_bar("topics", len(found), output.quiet) as done:
        done(len(lines.found))
        for start in range(len(lines.found), len(found), AT_ONCE):
            some = found[start : start + AT_ONCE]
            proposed = [*map(record, propose_counterclaims(player, some, seed=output.seed))]
            pt.ranks.run_on_primary(lambda proposed=proposed: lines.add(*proposed), "for the topics to be written")
            done(len(some))
    counts = [len(one.counterclaims) for one in topics(path)]
    mean, none = statistics.fmean(counts), counts.count(0)
    if none == len(counts):
        raise ValueError(
            f"not one counterclaim was proposed for the {none} topics in {path}: no reply of {model.model} held a "
            "numbered list. Give a model that follows instructions, or more `max_new`, and `overwrite=True`"
        )
    print(f"{path}: {len(counts)} topics, {mean:.1f} counterclaims each, {none} topics without any")
    return path.parent


def collect(
    talk: TalkOptions,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    output: pt.Output = pt.Output("runs/tomap-logs"),
    dialogues: int = 1024,
) -> Path:
    """Log dialogues in which Bob is asked for all his beliefs: what a predictor learns from.

    dialogues  how many, topics in turn
    """
    tasks, policy = talk.tasks(probe=True), model.policy()
    check_room(policy, tasks, talk)
    turn = itertools.cycle(tasks)
    batches = [[next(turn) for _ in range(min(AT_ONCE, dialogues - at))] for at in range(0, dialogues, AT_ONCE)]
    path = hold_dialogues(policy, batches, talk, model, scale, output, "collect", probe=True)
    print(f"{path}: {dialogues} dialogues")
    return path


def hold_dialogues(
    policy: pt.TextPolicy,
    batches: Sequence[Sequence[pt.Task[Topic]]],
    talk: TalkOptions,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    output: pt.Output,
    kind: str,
    *,
    probe: bool = False,
) -> Path:
    """A run directory with the dialogues of every batch as the rollouts of a step; those that are there stay."""
    others, env = talk.players(model), talk.env(policy, probe)
    directory = prepare_directory(kind, output)
    numbers, total = range(len(batches)), sum(map(len, batches))
    kept = pt.ranks.run_on_primary(
        lambda: [any(pt.read_rollouts(output.out, step)) for step in numbers], "for the dialogues so far"
    )
    with (
        scale.playing(policy, output.out, batches[0]) as player,
        pt.progress_bar("dialogues", total, output.quiet) as done,
    ):
        for step, some in enumerate(batches):
            if kept[step]:
                done(len(some))
                continue
            seed = pt.mix(output.seed, kind, step)
            found = pt.evaluate({"policy": player, **others}, some, validation(), env, seed=seed, watch=done)
            pairs = zip(found.rollouts, found.marks, strict=True)
            played = [ScoredRollout(rollout, score, None) for rollout, score in pairs]
            if pt.ranks.is_primary():
                write_rollouts(directory.rollouts, step, policy, played)
    return directory.path


def prepare_directory(kind: str, output: pt.Output) -> pt.Directory:
    directory = pt.Directory(Path(output.out))
    pt.ranks.run_on_primary(lambda: directory.prepare({"kind": kind, "run": output}, output), "for the folder")
    return directory


def predictor(
    logs: tuple[str, ...],
    output: pt.Output = pt.Output("runs/tomap-predictor"),
    encoder: str = "BAAI/bge-m3",
    share: float = 0.25,
    device: str | None = None,
) -> Path:
    """Learn Bob's attitudes from logged dialogues, and save the predictor; its accuracy on dialogues left aside.

    logs     run directories, of stage collect or of training with `probe=True`
    encoder  a Hub id or folder, the address of a server (http://.../v1), or hashed:WIDTH:LONGEST
    share    of the dialogues, to learn from
    device   of the encoder
    """
    if not 0 < share < 1:
        raise ValueError(f"`share={share}`: between 0 and 1, as some dialogues must be left to test it on")
    learnt, tested = split_by_dialogue(examples(logged(logs), English()), share, output.seed)
    made = Predictor(embedder(encoder, device), seed=output.seed)
    path = prepare_directory("predictor", output).path
    made.learn(learnt, seed=output.seed)
    accuracy, commonest = made.accuracy(tested), majority(tested)
    made.save(path, accuracy=accuracy, majority=commonest, examples=float(len(learnt)))
    print(f"{path}: accuracy {accuracy:.3f} on {len(tested)} attitudes, always the commonest {commonest:.3f}")
    return path


# ---- after it


def evaluate_dialogues(
    talk: TalkOptions,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    output: pt.Output = pt.Output("runs/tomap-evaluation"),
) -> Path:
    """Hold a dialogue on each topic; write OUT/evaluation.json, the means over them, and the dialogues beside it."""
    tasks, policy = talk.tasks(validation=True), model.policy()
    check_room(policy, tasks, talk)
    batches = [tasks[start : start + AT_ONCE] for start in range(0, len(tasks), AT_ONCE)]
    path = hold_dialogues(policy, batches, talk, model, scale, output, "evaluate")
    if pt.ranks.is_primary():
        records = list(pt.read_rollouts(path))
        marks = [one["parts"] for one in records if one["reward"] is not None]
        measures = {name: statistics.fmean(parts[name] for parts in marks) for name in marks[0]}
        measures |= {"dialogues": float(len(marks)), "invalid": float(len(records) - len(marks))}
        pt.write_json(path / "evaluation.json", measures)
        for name, value in measures.items():
            print(f"{name:>12} {value:8.3f}")
    return path


def laptop(setting: Setting = "full", run: pt.Run = pt.Run("runs/tomap", steps=40, tasks=32, lr=1e-3)) -> pt.Session:
    """A persuader of few words against a simulated Bob, on topics of six counterclaims; held out: new topics.

    setting  what Alice is told: rl (nothing), lite (counterclaims), full (and Bob's agreement with each as predicted),
             white (as he says), black_random (guessed), black_max (always the most)
    """
    from posttrain.systems.tomap.lab import laptop_run

    policy, tasks, tests, made = laptop_run(setting, run.seed)
    return pt.train(policy, tasks, made, run, held_out=tests)


STAGES = {
    "laptop": laptop,
    "train": learn,
    "propose": propose,
    "collect": collect,
    "predictor": predictor,
    "evaluate": evaluate_dialogues,
}
