"""The options of ToMAP's stages on checkpoints, servers and topics of the user's own."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from posttrain.core import Env, Sampler, Task
from posttrain.options import ModelOptions, hashed
from posttrain.policy.text import TextPolicy
from posttrain.recipe import Recipe
from posttrain.sampler.server import Player
from posttrain.systems.tomap.counterclaims import Topic, topics
from posttrain.systems.tomap.dialogue import SHOWN, Limit, Setting, dialogue, tasks_of
from posttrain.systems.tomap.predictor import Guessing
from posttrain.systems.tomap.recipe import recipe
from posttrain.systems.tomap.reward import Weights
from posttrain.systems.tomap.serving import predictor_of
from posttrain.systems.tomap.wording import English

Stage = Literal["propose", "collect", "predictor", "train", "evaluate"]


@dataclass(frozen=True)
class DialogueOptions:
    """What is argued about, with whom, and what Alice is told."""

    data: str | None = None
    """Topics: JSONL, CSV or Parquet with `pos`, `neg` and, from --stage propose on, `counterclaims`."""
    persuadee: str | None = None
    """Bob: a chat server (http://..., with #MODEL if it has several), a Hub id or a folder."""
    setting: Setting = "lite"
    """rl: nothing is shown; lite: counterclaims; full: and Bob's agreement with each as predicted; white: as he says;
    black_random: guessed; black_max: always the most."""
    predictor: str | None = None
    """Setting full: the folder of --stage predictor, or a server of it (posttrain serve --predictor FOLDER)."""
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

    def check(self) -> None:
        """Raises ValueError naming an option whose value makes no sense."""
        for name in ("turns", "count", "most"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} {getattr(self, name)}: at least 1")
        if self.persuadee_temperature < 0:
            raise ValueError(f"--persuadee-temperature {self.persuadee_temperature}: not below 0")
        if self.predictor and self.setting != "full":
            raise ValueError(f"--predictor is shown in --setting full alone, not in {self.setting}")
        if self.setting == "full" and not self.predictor:
            raise ValueError(
                "--setting full shows what a predictor says: give --predictor FOLDER, made with --stage predictor, or "
                "take --setting lite"
            )

    def topics(self, data: str | None = None, validation: bool = False) -> list[Topic]:
        """Those of `--data`, or all of another file."""
        if self.data is None:
            raise ValueError("give --data: topics with their claims in `pos` and the negations in `neg`")
        return topics(data or self.data, validation=validation, limit=None if data else self.limit)

    def tasks(self, data: str | None = None, validation: bool = False) -> list[Task[Topic]]:
        """Of every topic that has what is to be shown. Raises ValueError when none has."""
        found, shown = self.topics(data, validation), SHOWN[self.setting]
        kept = [one for one in found if one.counterclaims or not (shown.counterclaims or self.probe)]
        if found and not kept:
            raise ValueError(f"--data {data or self.data}: no topic has counterclaims; make them with --stage propose")
        if len(kept) < len(found):
            left = len(found) - len(kept)
            print(f"{left} of {len(found)} topics have no counterclaims and are left out", file=sys.stderr)
        return tasks_of(kept, English(self.most), shown, self.count)

    def env(self, policy: TextPolicy) -> Env:
        limit = Limit(self.most, policy.chat.encode, policy.chat.decode)
        shown = SHOWN[self.setting]
        return dialogue(English(self.most), shown, turns=self.turns, count=self.count, limit=limit, probe=self.probe)

    def players(self, model: ModelOptions) -> dict[str, Sampler]:
        """Those besides Alice. Raises ValueError or ServerError when Bob is not named, or not there."""
        if self.persuadee is None:
            raise ValueError("give --persuadee: a chat server (http://...), a Hub id or a folder")
        found = {"persuadee": model.player(self.persuadee, "--persuadee", self.persuadee_temperature)}
        if self.setting == "black_random":
            found["predictor"] = Guessing()
        if self.predictor:
            found["predictor"] = predictor_of(self.predictor, device=model.device)
        return found

    def describe(self, players: Mapping[str, Sampler] = {}) -> dict[str, Any]:
        """For run.json. A server's address is left out: a run may be continued with Bob at another one."""
        bob = players.get("persuadee")
        who = bob.server.model if isinstance(bob, Player) else self.persuadee
        return {**vars(self), "persuadee": who, **(hashed(self.data) if self.data else {})}


@dataclass(frozen=True)
class PredictorOptions:
    """What the attitude predictor is made of."""

    logs: str = ""
    """Run directories, of --stage collect or of training with --probe, separated by commas."""
    encoder: str = "BAAI/bge-m3"
    """A Hub id or folder, the address of a server (http://.../v1), or hashed:WIDTH:LONGEST."""
    share: float = 0.25
    """Of the dialogues, to learn from."""

    def check(self) -> None:
        if not self.logs:
            raise ValueError("--stage predictor needs --logs: run directories of --stage collect, or of training")
        if not 0 < self.share < 1:
            raise ValueError(f"--share {self.share}: between 0 and 1, as some dialogues must be left to test it on")


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

    def check(self) -> None:
        if self.minibatch < 1:
            raise ValueError(f"--minibatch {self.minibatch}: at least 1")
        if not 0 <= self.final <= 1:
            raise ValueError(f"--final {self.final}: a share of 0 to 1")
        if self.power <= 0:
            raise ValueError(f"--power {self.power}: above 0")

    def recipe(
        self, policy: TextPolicy, talk: DialogueOptions, players: Mapping[str, Sampler], tasks: int, micro_tokens: int
    ) -> Recipe:
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
            micro_tokens=micro_tokens,
        )


def refuse(stage: Stage, held_out: str | None, talk: DialogueOptions, predicting: PredictorOptions) -> None:
    """Raises ValueError for an option that another stage takes, or without which this one cannot do."""
    if held_out and stage != "train":
        raise ValueError("--held-out is an option of --stage train")
    if predicting != PredictorOptions() and stage != "predictor":
        raise ValueError("--logs, --encoder and --share are options of --stage predictor")
    if stage == "predictor":
        predicting.check()
        if talk != DialogueOptions():
            raise ValueError("--stage predictor learns from --logs: it takes no --data, and nothing of a dialogue")
    elif stage == "propose":
        if talk != DialogueOptions(talk.data, limit=talk.limit):
            raise ValueError("--stage propose takes --data and --limit, and nothing of a dialogue")
    else:
        talk.check()
        if talk.probe and stage != "train":
            raise ValueError("--probe is an option of --stage train; --stage collect always asks")
