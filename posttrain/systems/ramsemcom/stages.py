"""Train a scheduler and compare it with rules: on scenes, an encoder and a receiver of the user's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import posttrain as pt
from posttrain.systems.ramsemcom import recipe, scheduler
from posttrain.systems.ramsemcom.element import Scene
from posttrain.systems.ramsemcom.exchange import Rules, exchange
from posttrain.systems.ramsemcom.link import Radio
from posttrain.systems.ramsemcom.network import LinkChoices
from posttrain.systems.ramsemcom.reward import Prices, measures, reward
from posttrain.systems.ramsemcom.rules import RULES, Scheduler
from posttrain.systems.ramsemcom.scenes import Encoder, encoder, scenes

SMALL = "the scheduler is a few thousand parameters; what is large is the receiver, which may be a server"


@dataclass(frozen=True)
class SceneOptions:
    """Whose scenes, who searches them, and who answers."""

    data: str
    """Scenes: JSONL or a Hugging Face dataset with `elements` and `question`, `answer` (or `questions`), `snr`."""
    encoder: str
    """CLIP model, or a language model or encoder of sentences for text alone: Hub id or folder."""
    receiver: str
    """Who answers from what has been fetched: a chat server (http://...), Hub id, folder, or smollm2."""
    links: int = 3
    """Scenes that share a budget: one episode."""
    snr_low: float = -5.0
    """Least mean signal-to-noise ratio, in dB, of a scene that has no `snr`."""
    snr_high: float = 20.0
    """Greatest one."""
    limit: int | None = None
    """Use only the first so many lines."""
    split: str = "train"
    """Split of a Hugging Face dataset."""
    max_new: int = 16
    """Most tokens of an answer."""
    device: str | None = None
    """cpu, cuda, mps; the best one here if not given."""

    def __post_init__(self) -> None:
        pt.at_least(1, links=self.links, max_new=self.max_new)
        if not self.snr_low <= self.snr_high:
            raise ValueError(f"`snr_low={self.snr_low}` is above `snr_high={self.snr_high}`")

    def players(self) -> dict[str, pt.Sampler]:
        model = pt.ModelOptions(max_new=self.max_new, temperature=0.0, device=self.device)
        return {"receiver": model.player(self.receiver)}

    def tasks(self, seed: int, data: str | None = None, by: Encoder | None = None) -> list[pt.Task[tuple[Scene, ...]]]:
        """Episodes of `links` scenes, in the order of the file; those left over make no episode."""
        found = scenes(
            data or self.data,
            by or encoder(self.encoder, self.device),
            decibels=(self.snr_low, self.snr_high),
            seed=seed,
            limit=None if data else self.limit,
            split="test" if data else self.split,
        )
        if len(found) < self.links:
            raise ValueError(
                f"`data={data or self.data}`: {len(found)} scenes, and an episode takes `links={self.links}`"
            )
        return episodes(found, self.links)


def episodes(found: Sequence[Scene], links: int) -> list[pt.Task[tuple[Scene, ...]]]:
    count = len(found) // links
    return [pt.Task(f"episode-{i}", (), tuple(found[i * links : (i + 1) * links])) for i in range(count)]


@pt.one_process(SMALL)
def train(
    shown: SceneOptions,
    radio: Radio,
    rules: Rules,
    prices: Prices,
    run: pt.Run = pt.Run("runs/ramsemcom", steps=100, tasks=64, lr=3e-3),
    samples: int = 4,
    held_out: tuple[str, ...] = (),
) -> pt.Session:
    """PPO of the scheduler. The receiver is asked after every round, so a server of many requests is best.

    samples   episodes of the same scenes in a step
    held_out  scenes that are only evaluated: FILE, or NAME=FILE
    """
    pt.at_least(1, samples=samples)
    by = encoder(shown.encoder, shown.device)
    tasks = shown.tasks(run.seed, by=by)
    tests = {name: shown.tasks(run.seed, file, by) for name, file in pt.named_files(held_out).items()}
    torch.manual_seed(pt.mix(run.seed, "scheduler"))
    policy = scheduler(shown.links)
    made = recipe(policy, exchange(radio, rules), shown.players(), prices, samples=samples)
    return pt.train(policy, tasks, made, run, held_out=tests)


@pt.one_process(SMALL)
def evaluate(
    shown: SceneOptions,
    radio: Radio,
    rules: Rules,
    prices: Prices,
    output: pt.Output = pt.Output("runs/ramsemcom-evaluation"),
    scheduler: str | None = None,
    compare: tuple[str, ...] = tuple(RULES),
) -> Path:
    """A table of return, success, elements, bits and seconds a question, in OUT/measures.json.

    `invalid` counts episodes whose receiver could not be reached: they are left out.

    scheduler  OUT/model of stage train; the rules alone if not given
    compare    rules beside it
    """
    for name in compare:
        pt.check_choice(name, RULES, "compare")
    players: dict[str, pt.Sampler] = {name: Scheduler(RULES[name]) for name in compare}
    if scheduler:
        network = pt.load_network(scheduler, LinkChoices, argument="scheduler")
        if network.count != shown.links:
            raise ValueError(f"`links={shown.links}`: the scheduler in {scheduler} decides for {network.count}")
        players = {"scheduler": pt.DecisionPolicy(network), **players}
    out = Path(output.out)
    settings = {"seed": output.seed, **output.settings}
    pt.prepare_folder(out, "evaluation", [MEASURES], settings, resume=output.resume, overwrite=output.overwrite)
    tasks, env, receiver = shown.tasks(output.seed), exchange(radio, rules), shown.players()
    table = {}
    for name, player in players.items():
        found = pt.evaluate({"policy": player, **receiver}, tasks, reward(prices), env, samples=1, seed=output.seed)
        table[name] = {**measures(found), "invalid": float(found.invalid)}
        print(f"{name:14}" + "".join(f"{key} {value:<10.3g}" for key, value in table[name].items()))
    pt.write_json(out / MEASURES, table)
    return out


MEASURES = "measures.json"


def laptop(
    radio: Radio,
    rules: Rules,
    prices: Prices,
    run: pt.Run = pt.Run("runs/ramsemcom", steps=60, tasks=32, lr=3e-3),
    links: int = 3,
) -> pt.Session:
    """Vehicles that are asked for the colours of shapes which another vehicle's camera has seen.

    links  vehicles that share the budget
    """
    from posttrain.lab.world.patches import Patches, Receiver
    from posttrain.systems.ramsemcom import lab

    pt.at_least(1, links=links)
    world = Patches(run.seed)
    policy = lab.new_scheduler(run.seed, links)
    made = recipe(policy, exchange(radio, rules), {"receiver": Receiver(world.eyes)}, prices, samples=lab.SAMPLES)
    shown, tests = lab.tasks(world, lab.TRAINING, "training", links), lab.tasks(world, 64, "test", links)
    return pt.train(policy, shown, made, run, held_out=tests)


STAGES = {"laptop": laptop, "train": train, "evaluate": evaluate}
